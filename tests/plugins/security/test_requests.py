"""A changing call that is repeated has one effect, and is told from another with the same id."""

from __future__ import annotations

from typing import Any

import pytest
from agenthive.v1 import security_service_pb2 as pb
from agenthive_plugins.security.requests import KEPT_SECONDS, Request, is_over
from agenthive_server.plugin.api import BadRequest, Call, HookState
from agenthive_server.plugin.state import PluginState


def request(principal: str = "admin", method: str = "/S/Issue", request_id: str = "1", of: str = "ann") -> Request:
    call: Any = Call.__new__(Call)
    call.principal, call.method = principal, method
    return Request(call, pb.IssueTokenRequest(principal=of, request_id=request_id))


async def seen(state: PluginState, asked: Request, ref: str = "made") -> str | None:
    def change(rows: HookState) -> str | None:
        earlier = asked.earlier(rows)
        if earlier is None:
            asked.remember(rows, ref, 100.0)
        return earlier

    return await state.change(change)


async def test_a_repeat_finds_what_was_made(state: PluginState) -> None:
    assert await seen(state, request()) is None
    assert await seen(state, request(), "other") == "made"
    with pytest.raises(BadRequest) as caught:
        await seen(state, request(of="bob"))
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_the_same_id_of_somebody_else_or_for_something_else_is_another_call(state: PluginState) -> None:
    assert await seen(state, request()) is None
    assert await seen(state, request(principal="another")) is None
    assert await seen(state, request(method="/S/Revoke")) is None
    assert len(await state.scan("request/")) == 3


async def test_without_an_id_nothing_is_remembered(state: PluginState) -> None:
    for _ in range(2):
        assert await seen(state, request(request_id="")) is None
    assert await state.scan() == []


async def test_a_memory_is_kept_for_a_day(state: PluginState) -> None:
    await seen(state, request())
    (stored,) = await state.scan("request/")
    assert not is_over(stored.value, 100.0 + KEPT_SECONDS)
    assert is_over(stored.value, 101.0 + KEPT_SECONDS)


def test_an_id_is_bounded() -> None:
    for wrong in ("x" * 129, "a\x00b"):
        with pytest.raises(BadRequest):
            request(request_id=wrong)
