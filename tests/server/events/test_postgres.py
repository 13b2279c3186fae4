"""Commits of one server ring on another, over PostgreSQL; without its LISTEN, a second later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from agenthive_server.events.notifier import LocalNotifier
from agenthive_server.events.postgres import LOOKED_EVERY, PostgresNotifier
from agenthive_server.kernel.clock import ManualClock, SystemClock, settle
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.health import Status
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.store_model import changing, task
from agenthive_server.testing.waiting import eventually


class PlayedEar:
    """An ear at a log of the test's."""

    def __init__(self, log: PlayedLog) -> None:
        self._log = log

    async def look(self) -> int:
        return await self._log.look()

    def close(self) -> None:
        self._log.closed += 1


class PlayedLog:
    """A log that grows as the test says, and a database that is there or not."""

    def __init__(self) -> None:
        self.head = 0
        self.down = self.deaf = False
        self.rung: list[int] = []
        self.heard: Callable[[int], None] = self.rung.append
        self.closed = self.looks = 0

    async def listen(self, heard: Callable[[int], None]) -> PlayedEar:
        if self.down or self.deaf:
            raise StoreUnavailable("gone")
        self.heard = heard
        return PlayedEar(self)

    async def look(self) -> int:
        self.looks += 1
        if self.down:
            raise StoreUnavailable("gone")
        return self.head


@asynccontextmanager
async def listening(log: PlayedLog, clock: ManualClock) -> AsyncIterator[PostgresNotifier]:
    notifier = PostgresNotifier(log.listen, log.look, log.rung.append, clock)
    running = asyncio.create_task(notifier.run())
    await settle()
    yield notifier
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def test_what_was_committed_before_it_listened_rings(clock: ManualClock) -> None:
    log = PlayedLog()
    log.head = 7
    async with listening(log, clock) as notifier:
        assert log.rung == [7]
        assert notifier.probe()[0][1].status is Status.OK
    assert log.closed == 1


async def test_a_notification_rings_at_once_and_saves_a_look(clock: ManualClock) -> None:
    log = PlayedLog()
    async with listening(log, clock):
        for head in (3, 4):
            log.heard(head)
            await clock.advance(LOOKED_EVERY)
        assert log.rung == [0, 3, 4]
        assert log.looks == 1


async def test_silence_makes_it_look(clock: ManualClock) -> None:
    log = PlayedLog()
    async with listening(log, clock):
        log.head = 9
        await clock.advance(LOOKED_EVERY)
        assert log.rung == [0, 9]


async def test_deaf_it_looks_every_second_until_it_hears_again(clock: ManualClock) -> None:
    log = PlayedLog()
    async with listening(log, clock) as notifier:
        log.down = True
        await clock.advance(LOOKED_EVERY)
        assert notifier.probe() == [("listener", notifier.probe()[0][1])]
        assert (notifier.probe()[0][1].status, notifier.trouble) == (Status.DEGRADED, "gone")
        log.down, log.deaf = False, True
        log.head = 5
        await clock.advance(LOOKED_EVERY)
        log.head = 6
        await clock.advance(LOOKED_EVERY)
        assert log.rung == [0, 5, 6]
        assert notifier.trouble == "gone"
        log.deaf = False
        await clock.advance(LOOKED_EVERY)
        assert notifier.trouble == ""
        log.heard(8)
        assert log.rung[-1] == 8
    assert log.closed == 2


# With a database


@pytest.fixture
async def store(postgres: PostgresServer) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(postgres.url("rings"), clock=SystemClock())
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def rung(store: PostgresStore) -> AsyncIterator[LocalNotifier]:
    """The notifier of a server that hears of commits from the database only."""
    local = LocalNotifier(SystemClock())

    async def head() -> int:
        return (await store.bounds()).head

    notifier = PostgresNotifier(store.listen, head, local.ring, SystemClock())
    running = asyncio.create_task(notifier.run())
    await eventually(lambda: not notifier.trouble)
    yield local
    running.cancel()
    await asyncio.wait([running])


async def test_commits_wake_readers_over_another_connection(store: PostgresStore, rung: LocalNotifier) -> None:
    head = (await store.bounds()).head
    reader = asyncio.create_task(rung.wait(head + 1, timeout=60))
    await settle()
    await store.commit([changing(events=1)])
    await store.commit([changing(task("a", revision=9), events=3)])
    await settle()
    assert not reader.done()
    await store.commit([changing(events=1)])
    assert await asyncio.wait_for(reader, 10)


async def test_nonsense_on_the_channel_and_a_lost_connection_cost_no_event(
    store: PostgresStore, rung: LocalNotifier
) -> None:
    head = (await store.bounds()).head
    link = store._keeper
    await link.call(lambda db: db.execute("SELECT pg_notify($1, 'nonsense')", store.channel))
    ended = await link.call(
        lambda db: db.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'agenthive listener'"
        )
    )
    assert ended
    reader = asyncio.create_task(rung.wait(head, timeout=60))
    await store.commit([changing(events=1)])
    assert await asyncio.wait_for(reader, 10)
