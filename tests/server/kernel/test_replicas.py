"""Two replicas on one store: the handlers of a plugin run where the role is, and go on where the other left off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agenthive_server.kernel.clock import settle
from agenthive_server.kernel.decide import View
from agenthive_server.kernel.errors import Refused
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.records import CursorRecord, Kind
from agenthive_server.kernel.replicas import AlwaysHeld, sole
from agenthive_server.plugin.dispatch import SAVE_ALWAYS, Dispatcher
from agenthive_server.testing.hive import open_hive


class Baton:
    """A role that the test passes from hand to hand."""

    def __init__(self, holds: bool) -> None:
        self._mine = asyncio.Event()
        self.give(holds)

    @property
    def held(self) -> bool:
        return self._mine.is_set()

    def give(self, holds: bool) -> None:
        if holds:
            self._mine.set()
        else:
            self._mine.clear()

    async def acquire(self) -> None:
        await self._mine.wait()

    def check(self, view: View) -> None:
        if not self.held:
            raise Refused("the role is held by another replica")

    async def release(self) -> None:
        self.give(False)

    def when_lost(self, tell: Callable[[], None]) -> None:
        pass


async def test_handlers_run_where_the_role_is_and_go_on_where_the_other_left_off() -> None:
    async with open_hive() as hive:
        batons = [Baton(True), Baton(False)]
        seen: list[tuple[int, str]] = []
        replicas = []
        for number, baton in enumerate(batons):

            async def handle(event: Event, number: int = number) -> None:
                seen.append((number, event.task_id))

            made = Dispatcher(hive.log, hive.notifier, hive.kernel.decisions, hive.clock, lambda: 1.0)
            replicas.append((made, asyncio.create_task(made.run())))
            await made.attach("p", {EventType.TASK_DELEGATED: handle}, role=baton)
        await settle()
        await hive.delegate("a")
        await hive.advance(2)
        batons[0].give(False)
        await hive.delegate("b")
        await hive.advance(2)
        assert seen == [(0, "a")]
        batons[1].give(True)
        await hive.advance(2)
        await hive.delegate("c")
        await hive.advance(2)
        batons[1].give(False)
        batons[0].give(True)
        await hive.delegate("d")
        await hive.advance(2)
        assert seen == [(0, "a"), (1, "b"), (1, "c"), (0, "d")]
        for dispatcher, loop in replicas:
            await dispatcher.detach("p")
            loop.cancel()
        await asyncio.gather(*(loop for _, loop in replicas), return_exceptions=True)


async def test_one_that_lost_the_role_holds_up_neither_the_cursors_of_others_nor_compaction() -> None:
    async with open_hive() as hive:
        baton, seen = Baton(True), list[str]()

        async def handle(event: Event) -> None:
            seen.append(event.task_id)
            if event.task_id == "a":
                # Lost while it deals with an event: where it is, is not for it to store any more.
                baton.give(False)

        made = Dispatcher(hive.log, hive.notifier, hive.kernel.decisions, hive.clock, lambda: 1.0)
        loop = asyncio.create_task(made.run())
        await made.attach("p", {EventType.TASK_DELEGATED: handle}, role=baton)
        await made.attach("q", {EventType.TASK_DELEGATED: handle})
        await settle()
        await hive.delegate("a")
        await hive.delegate("b")
        await hive.advance(3)
        cursors = [await hive.store.get(Kind.CURSOR, [("", f"plugin/{name}")]) for name in "pq"]
        assert [found.sequence for (found,) in cursors if isinstance(found, CursorRecord)] == [0, 2]
        assert made.lag("p") == 0
        # What another replica stored is what compaction waits for.
        assert made.release(2, 0) == 0
        assert made.release(2, 1) == 1
        await made.detach("p")
        await made.detach("q")
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def test_a_cursor_that_nothing_concerned_is_stored_once_a_minute() -> None:
    async with open_hive() as hive:
        made = Dispatcher(hive.log, hive.notifier, hive.kernel.decisions, hive.clock, lambda: 1.0)
        loop = asyncio.create_task(made.run())

        async def handle(event: Event) -> None:
            raise AssertionError(event)

        async def stored() -> int:
            (found,) = await hive.store.get(Kind.CURSOR, [("", "plugin/p")])
            assert isinstance(found, CursorRecord)
            return found.sequence

        await made.attach("p", {EventType.AGENT_LOST: handle})
        await hive.delegate("a")
        await hive.advance(SAVE_ALWAYS / 2)
        assert await stored() == 0
        await hive.advance(SAVE_ALWAYS / 2 + 2)
        assert await stored() == 1
        await made.detach("p")
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def test_the_only_replica_holds_every_role() -> None:
    role = sole("anything")
    await role.acquire()
    assert role.held
    await role.release()
    assert role.held
    assert isinstance(role, AlwaysHeld)
