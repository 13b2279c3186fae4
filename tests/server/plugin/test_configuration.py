"""Settings of plugins: typed, named when wrong, shown without their secrets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import pytest
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.plugin.api import SECRET, Config, Plugin, PluginContext, Registration
from agenthive_server.plugin.configuration import configured, shown, with_secrets


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part."""

    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 80


class Struct(Config, frozen=True, kw_only=True):
    """As plugins have them."""

    level: int = 1
    inner: Inner = Inner()
    token: Annotated[str, SECRET] = ""
    keys: Annotated[tuple[str, ...], SECRET] = ()

    def __post_init__(self) -> None:
        if self.level == 13:
            raise ValueError("thirteen is unlucky")


@dataclass(frozen=True)
class Data:
    """The same as a dataclass."""

    level: int = 1
    names: tuple[str, ...] = field(default=())


@asynccontextmanager
async def never(ctx: PluginContext[Any]) -> AsyncIterator[Plugin]:
    yield Plugin()


STRUCT: Registration[Any] = Registration("p", open=never, config=Struct)
DATA: Registration[Any] = Registration("p", open=never, config=Data)


def test_defaults_and_values() -> None:
    assert configured(STRUCT, {}) == Struct()
    assert configured(STRUCT, {"inner": {"port": 8}, "keys": ["a"]}) == Struct(inner=Inner(8), keys=("a",))
    assert configured(DATA, {"names": ["a"]}) == Data(names=("a",))


@pytest.mark.parametrize(
    ("registration", "raw", "where", "why"),
    [
        (STRUCT, {"levle": 1}, "config.levle", "no such setting; known are inner, keys, level, token"),
        (DATA, {"levle": 1}, "config.levle", "known are level, names"),
        (STRUCT, {"level": "x"}, "config.level", "Expected `int`, got `str`"),
        (STRUCT, {"inner": {"port": 0}}, "config.inner.port", ">= 1"),
        (STRUCT, {"inner": {"prot": 1}}, "config.inner.prot", "unknown field `prot`"),
        (STRUCT, {"level": 13}, "config", "thirteen is unlucky"),
    ],
)
def test_what_does_not_fit_is_named(registration: Registration[Any], raw: dict[str, Any], where: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why) as refused:
        configured(registration, raw)
    assert refused.value.field == where


def test_secrets_are_hidden_and_those_not_set_are_shown_as_such() -> None:
    assert shown(STRUCT, {"token": "hush", "keys": ["a", "b"]}) == {
        "level": 1,
        "inner": {"port": 80},
        "token": "***",
        "keys": ["***", "***"],
    }
    assert shown(STRUCT, {})["token"] == ""
    # What does not fit any more, after an update of the plugin, is shown as it was written, without secrets.
    assert shown(STRUCT, {"level": "x", "token": "hush"}) == {"level": "x", "token": "***"}


def test_secrets_given_back_as_they_were_shown_stay() -> None:
    present = {"token": "hush", "keys": ["a"], "level": 2}
    assert with_secrets(STRUCT, {"token": "***", "keys": ["***"]}, present) == {"token": "hush", "keys": ["a"]}
    assert with_secrets(STRUCT, {"token": "new"}, present) == {"token": "new"}
    assert with_secrets(STRUCT, {"token": "***"}, {}) == {}
    assert with_secrets(STRUCT, {"level": 3}, present) == {"level": 3}
