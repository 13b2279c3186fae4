"""What plugins call of the server is not held against them."""

from __future__ import annotations

import asyncio

from agenthive_server.kernel.clock import ManualClock
from agenthive_server.plugin.api import Failure
from agenthive_server.plugin.cell import Bounds, Cell, Running
from agenthive_server.plugin.driving import driven
from agenthive_server.plugin.outside import outside


class Thing:
    """Something of the server's."""

    name = "thing"

    def __init__(self, running: Running) -> None:
        self.running = running

    def look(self, number: int) -> tuple[int, bool]:
        return number, self.running.act is None

    async def work(self, *, number: int) -> tuple[int, bool]:
        before = self.running.act is None
        await asyncio.sleep(0)
        return number, before and self.running.act is None


async def test_methods_run_as_nobodys_and_the_mark_comes_back() -> None:
    running = Running()
    act = Cell("p", Failure.OPEN, running, Bounds(), ManualClock(), lambda *_: None).act("TASK", "work")
    thing = outside(Thing(running), running)

    async def plugin() -> list[object]:
        found: list[object] = [thing.look(1), running.act is act]
        found += [await thing.work(number=2), running.act is act, thing.name]
        return found

    assert await driven(plugin(), running, act) == [(1, True), True, (2, True), True, "thing"]
    assert not hasattr(thing, "_secret")
