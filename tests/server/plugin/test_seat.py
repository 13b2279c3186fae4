"""What runs on one replica at a time: it begins when the plugin took over, and ends when the role is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.kernel.decide import View
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.plugin.api import Background, Failure
from agenthive_server.plugin.cell import Act, Bounds, Cell, Running
from agenthive_server.plugin.seat import PAUSE, Seat
from agenthive_server.plugin.tasks import cancel_all, start_loop


class Baton:
    """A role that the test passes from hand to hand."""

    def __init__(self) -> None:
        self._mine = asyncio.Event()
        self._tell: Callable[[], None] = lambda: None

    @property
    def held(self) -> bool:
        return self._mine.is_set()

    def take(self) -> None:
        self._mine.set()

    def lose(self) -> None:
        self._mine.clear()
        self._tell()

    async def acquire(self) -> None:
        await self._mine.wait()

    def check(self, view: View) -> None:
        raise NotImplementedError

    async def release(self) -> None:
        self.lose()

    def when_lost(self, tell: Callable[[], None]) -> None:
        self._tell = tell


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def act(clock: ManualClock) -> Act:
    return Cell("p", Failure.OPEN, Running(), Bounds(tasks=3), clock, lambda *told: None).act("TASK", "work")


async def test_a_loop_runs_where_the_role_is_and_nowhere_else(act: Act, clock: ManualClock) -> None:
    told: list[str] = []
    baton = Baton()
    seat = Seat(baton, clock)

    async def takes_over() -> None:
        told.append("takes over")

    async def run() -> None:
        told.append("begins")
        try:
            await asyncio.Event().wait()
        finally:
            told.append("ends")

    seat.prepare(act, takes_over)
    _ = start_loop(Background("a", run), act, clock, seat)
    _ = start_loop(Background("b", run), act, clock, seat)
    await settle()
    assert told == []
    assert not seat.held
    baton.take()
    await settle()
    assert told == ["takes over", "begins", "begins"]
    baton.lose()
    await settle()
    assert told[3:] == ["ends", "ends"]
    assert not seat.held
    baton.take()
    await settle()
    assert told[5:] == ["takes over", "begins", "begins"]
    assert act.failures == 0
    await cancel_all(act.cell, 1.0)
    assert told[8:] == ["ends", "ends"]


async def test_a_loop_that_swallows_its_cancellation_begins_anew_with_the_role(act: Act, clock: ManualClock) -> None:
    runs: list[str] = []
    baton = Baton()

    async def run() -> None:
        runs.append("begins")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    _ = start_loop(Background("a", run), act, clock, Seat(baton, clock))
    baton.take()
    await settle()
    baton.lose()
    baton.take()
    await settle()
    assert runs == ["begins", "begins"]
    await cancel_all(act.cell, 1.0)


async def test_what_times_out_by_itself_is_a_failure_and_not_the_loss_of_the_role(act: Act, clock: ManualClock) -> None:
    baton = Baton()
    baton.take()

    async def run() -> None:
        raise TimeoutError

    _ = start_loop(Background("a", run), act, clock, Seat(baton, clock))
    await settle()
    assert act.failures == 1
    await cancel_all(act.cell, 1.0)


async def test_nothing_begins_before_taking_over_went_well(act: Act, clock: ManualClock) -> None:
    tries: list[int] = []
    baton = Baton()
    seat = Seat(baton, clock)

    async def takes_over() -> None:
        tries.append(act.failures)
        if len(tries) == 1:
            raise StoreUnavailable("away")
        if len(tries) == 2:
            raise ValueError

    seat.prepare(act, takes_over)
    baton.take()
    taking = asyncio.create_task(seat.acquire())
    await settle()
    assert (seat.held, tries) == (False, [0])
    clock.move(PAUSE)
    await settle()
    assert (seat.held, tries) == (False, [0, 0])
    assert act.failures == 1
    clock.move(2 * PAUSE)
    await taking
    assert (seat.held, len(tries)) == (True, 3)


async def test_lost_while_it_takes_over_it_begins_with_that_again(act: Act, clock: ManualClock) -> None:
    tries: list[str] = []
    gate = asyncio.Event()
    baton = Baton()
    seat = Seat(baton, clock)

    async def takes_over() -> None:
        tries.append("begins")
        await gate.wait()
        tries.append("done")

    seat.prepare(act, takes_over)
    baton.take()
    taking = asyncio.create_task(seat.acquire())
    await settle()
    baton.lose()
    gate.set()
    await settle()
    assert not seat.held
    baton.take()
    clock.move(PAUSE)
    await taking
    assert tries == ["begins", "begins", "done"]


async def test_left_it_begins_with_nothing_more_and_is_held_until_it_is_released(act: Act, clock: ManualClock) -> None:
    baton = Baton()
    baton.take()
    seat = Seat(baton, clock)
    ended: list[bool] = []

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            # What it stores on its way out, it stores with the role.
            ended.append(baton.held)

    _ = start_loop(Background("a", run), act, clock, seat)
    await settle()
    await seat.leave(1.0)
    assert ended == [True]
    assert baton.held
    await seat.release()
    baton.take()
    await settle()
    assert ended == [True]
    assert not seat.held
    await cancel_all(act.cell, 1.0)
