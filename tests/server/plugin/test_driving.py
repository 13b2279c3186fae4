"""Steps of plugins' code: at each it is known whose they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.plugin.api import Failure
from agenthive_server.plugin.cell import Act, Bounds, Cell, Running
from agenthive_server.plugin.driving import driven, mark_each, steps_of


@pytest.fixture
def running() -> Running:
    return Running()


@pytest.fixture
def act(running: Running) -> Act:
    return Cell("p", Failure.OPEN, running, Bounds(), ManualClock(), lambda *_: None).act("TASK", "work")


async def test_every_step_is_marked_and_no_moment_between(running: Running, act: Act) -> None:
    seen: list[bool] = []

    async def work() -> str:
        seen.append(running.act is act)
        await asyncio.sleep(0)
        seen.append(running.act is act)
        return "done"

    task = asyncio.create_task(driven(work(), running, act))
    await asyncio.sleep(0)
    assert running.act is None
    assert (await task, seen, running.act) == ("done", [True, True], None)


async def test_what_the_server_does_for_it_is_not_marked(running: Running, act: Act) -> None:
    async def verb() -> bool:
        inside = running.act is None
        await asyncio.sleep(0)
        return inside and running.act is None

    async def work() -> tuple[bool, bool]:
        unmarked = await driven(steps_of(verb()), running, None)
        return unmarked, running.act is act

    assert await driven(work(), running, act) == (True, True)


async def test_errors_results_and_cancellation_go_through(running: Running, act: Act) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError("x")

    with pytest.raises(LookupError):
        await driven(fails(), running, act)
    task = asyncio.create_task(driven(asyncio.Event().wait(), running, act))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 7)
    assert await driven(steps_of(future), running, act) == 7


async def test_a_task_cancelled_before_its_first_step_leaves_no_coroutine_behind(running: Running, act: Act) -> None:
    task = asyncio.create_task(driven(asyncio.sleep(1), running, act))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_any_awaitable_has_steps(running: Running, act: Act) -> None:
    class Ready:
        def __await__(self) -> object:
            return iter(())

    assert await driven(steps_of(Ready()), running, act) is None  # type: ignore[arg-type]  # odd


async def test_a_generator_is_marked_step_by_step_and_closed_early(running: Running, act: Act) -> None:
    log: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(3):
                log.append(f"{number} {running.act is act}")
                yield number
                await asyncio.sleep(0)
        finally:
            log.append("closed")

    marked = mark_each(numbers(), running, act)
    assert await anext(marked) == 0
    assert running.act is None
    await marked.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert log == ["0 True", "closed"]
    assert [number async for number in mark_each(numbers(), running, act)] == [0, 1, 2]
