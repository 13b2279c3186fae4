"""Background loops that are kept alive."""

from __future__ import annotations

import asyncio
import logging

import pytest
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.kernel.health import Status
from agenthive_server.lifecycle import Loops


async def test_a_loop_that_fails_is_told_logged_and_started_again(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    loops, starts, quiet = Loops(clock), 0, asyncio.Event()

    async def failing() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise RuntimeError("a defect")
        await asyncio.Event().wait()

    async def steady() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            quiet.set()

    with caplog.at_level(logging.ERROR):
        loops.start({"failing": failing, "steady": steady})
        await settle()
    assert "loop failing failed" in caplog.text
    ((name, reading),) = loops.probe()
    assert (name, reading.status) == ("loop/failing", Status.DEGRADED)
    assert not quiet.is_set()
    await clock.advance(1.1)
    assert starts == 2
    await loops.stop()
    assert quiet.is_set()
