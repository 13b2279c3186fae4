"""What the settings say of plugins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from agenthive_server.plugged import bounds, first_states, for_looking, patience, shown_settings
from agenthive_server.plugin.api import SECRET, Config, Plugin, PluginContext, Registration
from agenthive_server.plugin.overview import First
from agenthive_server.plugin.registry import Broken, Registry
from agenthive_server.settings import SettingsError, load


class Knobs(Config, frozen=True, kw_only=True):
    """Settings of a plugin."""

    level: int = 1
    token: Annotated[str, SECRET] = ""


@asynccontextmanager
async def never(ctx: PluginContext[Any]) -> AsyncIterator[Plugin]:
    yield Plugin()


REGISTRY = Registry([Registration("p", open=never, config=Knobs)], [Broken("gone", "cannot be loaded")])


def test_the_tables_of_plugins_are_their_first_states() -> None:
    settings = load(flags={"plugins.enabled": ["p"], "plugins.p.level": 2, "plugins.p.required": True}, environ={})
    assert first_states(settings.plugins, REGISTRY) == {"p": First(enabled=True, required=True, config={"level": 2})}


def test_environment_variables_reach_them() -> None:
    environ = {"AGENTHIVE_PLUGINS__ENABLED": '["p"]', "AGENTHIVE_PLUGINS__P__LEVEL": "3"}
    assert first_states(load(environ=environ).plugins, REGISTRY)["p"] == First(enabled=True, config={"level": 3})


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"plugins.x.level": 1}, "plugins.x: no such plugin is installed; there are p"),
        ({"plugins.p.levle": 1}, "plugins.p.levle: plugin p has no such setting"),
        ({"plugins.p.level": "a"}, "plugins.p.level: Expected `int`"),
        ({"plugins.p.required": 2}, "plugins.p.required: expected true or false"),
    ],
)
def test_what_does_not_fit_is_a_sentence(flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        first_states(load(flags=flags, environ={}).plugins, REGISTRY)


def test_settings_of_one_that_cannot_be_loaded_are_left_to_the_host() -> None:
    settings = load(flags={"plugins.enabled": ["gone"]}, environ={})
    assert first_states(settings.plugins, REGISTRY)["gone"].enabled


def test_they_are_shown_in_effect_and_without_secrets() -> None:
    settings = load(flags={"plugins.p.token": "hush"}, environ={})
    shown = shown_settings(settings, REGISTRY)["plugins"]
    assert shown["p"] == {"required": False, "level": 1, "token": "***"}
    assert "by_name" not in shown


def test_passwords_of_databases_are_not_shown() -> None:
    flags = {"server.store": "postgresql://u:hush@h/d", "server.redis": "redis://:hush@h:6379/0"}
    server = shown_settings(load(flags=flags, environ={}), REGISTRY)["server"]
    assert (server["store"], server["redis"]) == ("postgresql://u:***@h/d", "redis://:***@h:6379/0")
    assert shown_settings(load(environ={}), REGISTRY)["server"]["redis"] == ""


def test_what_plugins_may_do_is_a_setting() -> None:
    settings = load(flags={"plugins.maximum_failures": 0, "plugins.open_seconds": 3}, environ={}).plugins
    assert (bounds(settings).failures, bounds(settings).tasks) == (1, 200)
    assert patience(settings).open == 3


def test_a_server_that_is_only_looked_at_is_reached_by_nobody_and_keeps_nothing() -> None:
    settings = load(flags={"server.listen": "0.0.0.0:1", "server.insecure": True, "plugins.enabled": ["p"]}, environ={})
    alone = for_looking(settings, "/nowhere")
    assert (alone.server.listen, alone.server.store, alone.server.insecure) == ("127.0.0.1:0", "memory:", False)
    assert alone.plugins.enabled == ["p"]
