"""The suite holds for the plugins of the tests, and finds what is wrong with others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agenthive_server.plugin.api import (
    Background,
    Call,
    Config,
    Event,
    EventType,
    Hooks,
    Outcome,
    Plugin,
    PluginContext,
    Registration,
    Stage,
)
from agenthive_server.testing.plugin_suite import PluginCase, PluginSuite


class Settings(Config, frozen=True, kw_only=True):
    """Settings of the plugin below."""

    level: int = 0


class Quiet:
    """Does nothing, asynchronously."""

    stage = Stage.ADMIT

    async def before(self, call: Call) -> None:
        await asyncio.sleep(0)

    def after(self, call: Call, outcome: Outcome) -> None:
        """Do nothing."""


@asynccontextmanager
async def open_quiet(ctx: PluginContext[Settings]) -> AsyncIterator[Plugin]:
    async def run() -> None:
        while True:
            await ctx.clock.sleep(0.01)

    async def handle(event: Event) -> None:
        await ctx.state.put("last", str(event.sequence).encode())

    yield Plugin(
        interceptors=(Quiet(),),
        hooks=Hooks(before_delegate=lambda task: task.state.put(task.task_id, b"")),
        handlers={EventType.TASK_DELEGATED: handle},
        tasks=(Background("loop", run),),
    )


QUIET = Registration("quiet", open=open_quiet, config=Settings, summary="Does nothing.")


class TestQuiet(PluginSuite):
    @pytest.fixture
    def case(self) -> PluginCase:
        return PluginCase(registration=QUIET, settings={"level": 1}, others={"level": 2})


@asynccontextmanager
async def open_leaky(ctx: PluginContext[Any]) -> AsyncIterator[Plugin]:
    KEPT.append(ctx)
    yield Plugin()


KEPT: list[PluginContext[Any]] = []


async def test_one_that_keeps_something_alive_is_found(tmp_path: Any) -> None:
    from agenthive_server.testing.plugin_suite import open_case

    case = PluginCase(registration=Registration("leaky", open=open_leaky, summary="Leaks."))
    async with open_case(case, tmp_path) as app:
        with pytest.raises(AssertionError):
            await PluginSuite().test_switched_two_hundred_times_it_leaves_nothing(case, app)
    KEPT.clear()
