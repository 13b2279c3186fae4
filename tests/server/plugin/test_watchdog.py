"""The thread that watches the event loop names who blocks it, and nobody else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from agenthive_server.kernel.clock import ManualClock, SystemClock
from agenthive_server.plugin.api import Failure
from agenthive_server.plugin.cell import Act, Bounds, Cell, Running
from agenthive_server.plugin.watchdog import Block, Watchdog
from agenthive_server.testing.waiting import eventually

SECONDS = 0.2


def new_act(running: Running, *roots: str) -> Act:
    cell = Cell("p", Failure.OPEN, running, Bounds(), ManualClock(), lambda *_: None)
    cell.roots = roots
    return cell.act("HOOK", "before_spawn")


class Watch:
    """A watchdog, and what it has found."""

    def __init__(self) -> None:
        self.running = Running()
        self.cells: list[Cell] = []
        self.found: list[Block] = []
        self.dog = Watchdog(self.running, lambda: self.cells, self.found.append, SystemClock(), seconds=SECONDS)


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    watch = Watch()
    watch.dog.start()
    await asyncio.sleep(0)
    yield watch
    watch.dog.stop()


def block(seconds: float = 3 * SECONDS) -> None:
    time.sleep(seconds)


async def test_the_act_that_runs_is_named_with_the_line(watch: Watch) -> None:
    act = new_act(watch.running, __file__)
    watch.running.act = act
    block()
    watch.running.act = None
    await eventually(lambda: watch.found)
    (found,) = watch.found
    assert (found.cell, found.act) == (act.cell, "before_spawn")
    assert found.place.startswith("test_watchdog.py:")
    assert found.seconds >= SECONDS


async def test_without_a_mark_the_files_on_the_stack_tell_whose_code_it_is(watch: Watch) -> None:
    act = new_act(watch.running, __file__)
    watch.cells.append(act.cell)
    block()
    await eventually(lambda: watch.found)
    assert (watch.found[0].cell, watch.found[0].act) == (act.cell, "block")


async def test_a_block_of_somebody_else_is_nobodys(watch: Watch) -> None:
    watch.cells.append(new_act(watch.running, "/elsewhere/").cell)
    block()
    await eventually(lambda: watch.found)
    assert watch.found[0].cell is None


async def test_a_loop_that_answers_is_left_alone(watch: Watch) -> None:
    act = new_act(watch.running, __file__)
    for _ in range(10):
        watch.running.act = act
        block(SECONDS / 8)
        watch.running.act = None
        await asyncio.sleep(0)
    assert watch.found == []


async def test_it_stops_and_can_be_switched_off(watch: Watch) -> None:
    watch.dog.stop()
    block()
    await asyncio.sleep(0)
    assert watch.found == []
    off = Watchdog(Running(), list, watch.found.append, SystemClock(), seconds=0)
    off.start()
    off.stop()
