"""Loops: turn after turn; a store that is away is told in health, and no end of the loop."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import pytest
from agenthive_plugins.production.loops import Troubles, every
from agenthive_server.kernel.clock import settle
from agenthive_server.plugin.api import ManualClock, Status, StoreUnavailable

LOG = logging.getLogger("plugin.production")


async def test_a_turn_that_fails_is_told_until_one_succeeds() -> None:
    told: list[tuple[Status, str]] = []
    clock, turns = ManualClock(), []

    async def turn() -> None:
        turns.append(clock.now())
        if len(turns) == 2:
            raise StoreUnavailable("the disk is gone")

    background = every("sample", 10.0, turn, clock=clock, troubles=Troubles(lambda *r: told.append(r)), log=LOG)
    task = asyncio.create_task(background.run())
    await settle()
    for _ in range(3):
        await clock.advance(10)
    assert len(turns) == 3
    assert told == [(Status.DEGRADED, "sample: the disk is gone"), (Status.OK, "")]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_defect_is_not_hidden() -> None:
    async def turn() -> None:
        raise RuntimeError("a defect")

    clock = ManualClock()
    background = every("x", 1.0, turn, clock=clock, troubles=Troubles(lambda *r: None), log=LOG)
    task = asyncio.create_task(background.run())
    await settle()
    await clock.advance(1)
    with pytest.raises(RuntimeError):
        await task


def test_several_troubles_are_told_together() -> None:
    told: list[tuple[Status, str]] = []
    troubles = Troubles(lambda *r: told.append(r))
    for name, trouble in (("b", "late"), ("a", "gone"), ("b", "late"), ("b", ""), ("a", ""), ("a", "")):
        troubles.tell(name, trouble)
    assert told == [
        (Status.DEGRADED, "b: late"),
        (Status.DEGRADED, "a: gone; b: late"),
        (Status.DEGRADED, "a: gone"),
        (Status.OK, ""),
    ]
