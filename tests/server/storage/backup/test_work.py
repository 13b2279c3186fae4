"""Long work in a thread: given up when whoever waits goes away, and resting as long as it works."""

from __future__ import annotations

import asyncio
import threading

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.storage.backup.work import GivenUp, Token, run


async def test_it_returns_what_the_work_returns_and_raises_what_it_raises() -> None:
    assert await run(lambda token: threading.current_thread().name) == "backup_0"
    with pytest.raises(ZeroDivisionError):
        await run(lambda token: 1 // 0)


async def test_whoever_cancels_it_waits_until_it_has_stopped() -> None:
    begun, stopped = asyncio.Event(), []
    loop = asyncio.get_running_loop()

    def work(token: Token) -> None:
        loop.call_soon_threadsafe(begun.set)
        try:
            while True:
                token.step()
        except GivenUp:
            stopped.append(True)
            raise

    running = asyncio.create_task(run(work))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert stopped


def test_it_rests_as_long_as_it_worked_but_not_for_ever() -> None:
    rests: list[float] = []

    class Watched(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            rests.append(timeout or 0.0)
            return False

    clock = ManualClock()
    token = Token(clock)
    token._given_up = Watched()
    for seconds in (0.0, 0.125, 60.0):
        clock.move(seconds)
        token.step()
    assert rests == [0.0, 0.125, 0.25]
