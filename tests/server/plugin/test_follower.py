"""One plugin on its way along the log: it never says that it has come further than it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from agenthive_server.events.log import EventLog
from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.replicas import AlwaysHeld
from agenthive_server.plugin.follower import MOST, Follower
from agenthive_server.storage.memory import MemoryStore

KIND = EventType.TASK_PAUSED


class Way:
    """A log that the test writes, and a follower on it whose handler waits until it is let go."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.log = EventLog(self.store, lambda _: b"")
        self.pumped = 0
        self.moved = 0
        self.seen: list[int] = []
        self.gaps: list[tuple[int, int]] = []
        self.gate = asyncio.Event()
        self.cursor = 0
        self.follower = Follower(
            "p",
            {KIND: self.handle},
            self.gap,
            log=self.log,
            clock=self.clock,
            chance=lambda: 1.0,
            role=AlwaysHeld(),
            load=self.load,
            pumped=lambda: self.pumped,
            moved=self.note,
        )

    async def handle(self, event: Event) -> None:
        await self.gate.wait()
        self.seen.append(event.sequence)

    async def gap(self, first: int, last: int) -> None:
        self.gaps.append((first, last))

    async def load(self) -> int:
        return self.cursor

    def note(self) -> None:
        self.moved += 1

    async def write(self, count: int, kind: EventType = KIND) -> None:
        """Commit events and hand them out, as the pump does."""
        changes = ChangeSet(events=[Event(type=kind, namespace="n") for _ in range(count)])
        await self.store.commit([changes])
        self.log.append(changes.events)
        for event in changes.events:
            if event.type is KIND:
                self.follower.offer(event)
        self.pumped = self.log.head
        await settle()


@pytest.fixture
async def way() -> AsyncIterator[Way]:
    way = Way()
    await way.log.open()
    running = asyncio.create_task(way.follower.run())
    await settle()
    yield way
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_it_has_reached_what_it_has_dealt_with_and_no_more(way: Way) -> None:
    await way.write(5, EventType.TASK_RESUMED)
    assert (way.follower.reached, way.follower.lag, way.moved) == (5, 0, 0)
    await way.write(2)
    assert (way.follower.reached, way.follower.lag) == (5, 2)
    await way.write(3, EventType.TASK_RESUMED)
    assert (way.follower.reached, way.follower.lag) == (5, 5)
    way.gate.set()
    await settle()
    assert (way.follower.reached, way.follower.lag, way.seen, way.moved) == (10, 0, [6, 7], 2)


async def test_what_does_not_fit_into_memory_is_read_from_the_log_in_its_turn(way: Way) -> None:
    await way.write(1)
    await way.write(3 * MOST)
    assert way.follower.reached == 0
    assert way.follower.lag == 3 * MOST + 1
    way.gate.set()
    while way.follower.lag:
        await settle()
    assert way.seen == list(range(1, 3 * MOST + 2))
    await way.write(1)
    assert way.seen[-1] == 3 * MOST + 2


async def test_what_comes_again_is_not_taken_twice(way: Way) -> None:
    way.gate.set()
    await way.write(2)
    for event in await way.log.read(0, 10):
        way.follower.offer(event)
    await settle()
    assert way.seen == [1, 2]


async def test_in_a_hurry_it_leaves_out_also_the_one_it_is_at(way: Way) -> None:
    await way.write(4)
    way.follower.hurry(2)
    await settle()
    assert way.gaps == [(1, 2)]
    assert way.follower.reached == 2
    way.gate.set()
    await settle()
    assert way.seen == [3, 4]
    way.follower.hurry(3)
    await settle()
    assert way.gaps == [(1, 2)]


async def test_parked_it_begins_with_nothing_new(way: Way) -> None:
    await way.write(3)
    way.follower.park()
    way.gate.set()
    await settle()
    assert (way.seen, way.follower.reached) == ([1], 1)
    assert way.follower.at_rest.is_set()
