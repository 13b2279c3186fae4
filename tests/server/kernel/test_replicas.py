"""Two replicas on one store: the handlers of a plugin run where the role is, and go on where the other left off."""

from __future__ import annotations

import asyncio

from agenthive_server.kernel.clock import settle
from agenthive_server.kernel.decide import View
from agenthive_server.kernel.errors import Refused
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.replicas import AlwaysHeld, sole
from agenthive_server.plugin.dispatch import Dispatcher
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


async def test_handlers_run_where_the_role_is_and_go_on_where_the_other_left_off() -> None:
    async with open_hive() as hive:
        batons = [Baton(True), Baton(False)]
        seen: list[tuple[int, str]] = []
        replicas = []
        for number, baton in enumerate(batons):

            def roles(_: str, baton: Baton = baton) -> Baton:
                return baton

            async def handle(event: Event, number: int = number) -> None:
                seen.append((number, event.task_id))

            made = Dispatcher(hive.log, hive.notifier, hive.kernel.decisions, hive.clock, lambda: 1.0, roles=roles)
            replicas.append((made, asyncio.create_task(made.run())))
            await made.attach("p", {EventType.TASK_DELEGATED: handle})
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
        assert not any(baton.held for baton in batons)


async def test_the_only_replica_holds_every_role() -> None:
    role = sole("anything")
    await role.acquire()
    assert role.held
    await role.release()
    assert role.held
    assert isinstance(role, AlwaysHeld)
