"""Tasks of plugins: each belongs to the plugin whose code made it, there is a bound on them, and none outlives it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from agenthive_server.kernel.clock import Clock

from .cell import OPEN, Act, Cell, Running
from .driving import driven, steps_of
from .patience import FAILURES
from .registration import Background
from .seat import Seat, Unseated

REST: Final = 1.0
LONGEST_REST: Final = 30.0
"""Seconds before a loop that failed is started again: doubled with each failure, up to this."""

_log = logging.getLogger(__name__)

Factory = Callable[..., "asyncio.Task[Any]"]


class TaskFactory:
    """Makes the tasks of an event loop, and knows those that the code of plugins makes, by whatever means."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._loop: asyncio.AbstractEventLoop | None = None

    def install(self) -> None:
        """Make the tasks of the running loop from now on."""
        self._loop = asyncio.get_running_loop()
        if self._loop.get_task_factory() is None:
            self._loop.set_task_factory(self._make)

    def remove(self) -> None:
        """Leave the loop as it was."""
        if self._loop is not None and self._loop.get_task_factory() == self._make:
            self._loop.set_task_factory(None)

    def _make(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        act = self._running.act
        if act is None:
            return asyncio.Task(work, loop=loop, **options)
        return adopt(act if act.kind != OPEN else act.cell.background(), work, loop, **options)


def adopt(
    act: Act, work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop, **options: Any
) -> asyncio.Task[Any]:
    """Make a task of a plugin. Raises `RuntimeError` for one too many, and has the plugin switched off for it."""
    cell = act.cell
    if len(cell.tasks) >= cell.bounds.tasks:
        work.close()
        act.failures += 1
        cell.tell(act.name, f"has {len(cell.tasks)} tasks at once", off=True)
        raise RuntimeError(f"plugin {cell.name} has {len(cell.tasks)} tasks already")
    task: asyncio.Task[Any] = asyncio.Task(driven(work, cell.running, act), loop=loop, **options)
    cell.tasks.add(task)
    task.add_done_callback(cell.tasks.discard)
    return task


def spawn(act: Act, work: Coroutine[Any, Any, None], name: str) -> None:
    """Run something of a plugin in the background; what it raises is counted."""
    task = adopt(act, work, asyncio.get_running_loop())
    act.calls += 1
    task.set_name(f"{act.cell.name}/{name}")
    task.add_done_callback(partial(_ended, act))


def _ended(act: Act, task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        act.cell.failed(act, error)


def start_loop(background: Background, act: Act, clock: Clock, seat: Seat | None = None) -> asyncio.Task[Any]:
    """Keep a loop of a plugin running until its task is cancelled; with a seat whenever this replica has that."""

    async def keep() -> None:
        rest = REST
        while True:
            if seat is not None:
                # Waiting for its turn is not the plugin's doing.
                await driven(steps_of(seat.acquire()), act.cell.running, None)
            began = clock.monotonic()
            act.calls += 1
            try:
                await (background.run() if seat is None else _run_seated(background, seat))
                return
            except Unseated:
                continue
            except FAILURES as error:
                act.cell.failed(act, error)
            finally:
                act.seconds += clock.monotonic() - began
            if clock.monotonic() - began > LONGEST_REST:
                rest = REST
            await clock.sleep(rest)
            rest = min(2 * rest, LONGEST_REST)

    task = adopt(act, keep(), asyncio.get_running_loop())
    task.set_name(f"{act.cell.name}/{background.name}")
    return task


async def _run_seated(background: Background, seat: Seat) -> None:
    async with seat.span():
        await background.run()


async def cancel_all(cell: Cell, seconds: float) -> int:
    """Cancel the tasks and calls a plugin has left; returns how many did not end within `seconds`."""
    cell.ending = True
    left = cell.tasks | cell.calls
    left.discard(asyncio.current_task())
    for task in left:
        task.cancel("the plugin is switched off")
    if not left:
        return 0
    _, stubborn = await asyncio.wait(left, timeout=seconds)
    if stubborn:
        _log.error("plugin %s: %d of its tasks do not end", cell.name, len(stubborn))
    return len(stubborn)
