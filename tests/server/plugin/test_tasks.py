"""Tasks of plugins have an owner, a bound and an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.plugin.api import Background, Failure
from agenthive_server.plugin.cell import Act, Bounds, Cell, Running
from agenthive_server.plugin.tasks import TaskFactory, cancel_all, spawn, start_loop


class Told(list[tuple[str, str, bool]]):
    """What the host is told."""

    def __call__(self, cell: Cell, act: str, what: str, off: bool) -> None:
        self.append((act, what, off))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def act(told: Told, clock: ManualClock) -> Act:
    return Cell("p", Failure.OPEN, Running(), Bounds(tasks=3), clock, told).act("TASK", "work")


@pytest.fixture
async def factory(act: Act) -> AsyncIterator[TaskFactory]:
    factory = TaskFactory(act.cell.running)
    factory.install()
    yield factory
    factory.remove()
    assert asyncio.get_running_loop().get_task_factory() is None


async def test_a_task_made_by_whatever_means_belongs_to_whose_code_made_it(act: Act, factory: TaskFactory) -> None:
    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0), name="child")
            assert len(act.cell.tasks) == 2

    others = asyncio.create_task(asyncio.sleep(0))
    spawn(act, parent(), "parent")
    assert {task.get_name() for task in act.cell.tasks} == {"p/parent"}
    await asyncio.wait(set(act.cell.tasks))
    await others
    assert act.cell.tasks == set()


async def test_one_too_many_is_refused_and_switches_the_plugin_off(act: Act, factory: TaskFactory, told: Told) -> None:
    for number in range(3):
        spawn(act, asyncio.Event().wait(), f"wait {number}")  # type: ignore[arg-type]  # it never ends
    with pytest.raises(RuntimeError, match="3 tasks already"):
        spawn(act, asyncio.sleep(0), "one too many")
    assert told == [("work", "has 3 tasks at once", True)]
    assert not act.cell.live
    assert await cancel_all(act.cell, 1.0) == 0
    assert act.cell.tasks == set()


async def test_what_a_task_raises_is_counted(act: Act, told: Told) -> None:
    async def fails() -> None:
        raise OSError("text")

    spawn(act, fails(), "fails")
    await settle()
    assert act.failures == 1
    assert "OSError" in told[0][1]
    assert "text" not in told[0][1]


async def test_a_loop_that_fails_is_started_again_after_longer_and_longer_rests(act: Act, clock: ManualClock) -> None:
    begun: list[float] = []

    async def run() -> None:
        begun.append(clock.now())
        raise ValueError

    loop = start_loop(Background("turn", run), act, clock)
    await settle()
    await clock.advance(8.0)
    assert [later - sooner for sooner, later in pairwise(begun)] == [1.0, 2.0, 4.0]
    loop.cancel()
    await settle()
    assert act.cell.tasks == set()


async def test_a_loop_that_ends_by_itself_is_over(act: Act, clock: ManualClock) -> None:
    async def run() -> None:
        """End."""

    await start_loop(Background("once", run), act, clock)
    await settle()
    assert (act.calls, act.cell.tasks) == (1, set())


async def test_tasks_that_do_not_end_are_counted_and_left_behind(act: Act) -> None:
    gate = asyncio.Event()

    async def clings() -> None:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    spawn(act, clings(), "clings")
    await settle()
    assert await cancel_all(act.cell, 0.01) == 1
    gate.set()
    await settle()
    assert act.cell.tasks == set()
