"""A database that is killed or restarted under load loses nothing it has acknowledged; what it refused is not there."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from agenthive_server.kernel.changes import COMMITTED
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.records import CursorRecord, Kind
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.postgres import PostgresServer, open_postgres
from agenthive_server.testing.store_model import changing, task
from agenthive_server.testing.waiting import eventually


@pytest.fixture
def own_postgres(postgres_binaries: Path) -> Iterator[PostgresServer]:
    """A server that may be harmed."""
    with open_postgres(postgres_binaries) as server:
        yield server


class Writer:
    """Commits groups of one to five change sets with two tasks and two events each; a cursor counts the groups."""

    def __init__(self, store: PostgresStore, seed: int) -> None:
        self._store = store
        self._chance = random.Random(seed)
        self._attempts = itertools.count()
        self.acknowledged: dict[int, int] = {}
        self.refused: list[int] = []
        self.stopped = False

    async def run(self) -> None:
        done = 0
        while not self.stopped:
            attempt, size = next(self._attempts), self._chance.randint(1, 5)
            group = [
                changing(task(f"{attempt}-{n}-0"), task(f"{attempt}-{n}-1", title="x" * 4_000), events=2)
                for n in range(size)
            ]
            group.append(changing(CursorRecord(namespace="n", id="groups", revision=done + 1, sequence=attempt)))
            try:
                outcomes = await self._store.commit(group)
            except StoreUnavailable:
                self.refused.append(attempt)
                await asyncio.sleep(0.005)
            else:
                assert set(outcomes) == {COMMITTED}
                done += 1
                self.acknowledged[attempt] = size


async def check(store: PostgresStore, writer: Writer) -> None:
    (counter,) = await store.get(Kind.CURSOR, [("n", "groups")])
    assert isinstance(counter, CursorRecord)
    assert counter.revision == len(writer.acknowledged)
    members = Counter(int(record.id.partition("-")[0]) for record in await store.scan(Kind.TASK))
    assert members == {attempt: 2 * size for attempt, size in writer.acknowledged.items()}
    events = await store.read_events(0, 1_000_000)
    assert [event.sequence for event in events] == list(range(1, members.total() + 1))
    assert (await store.bounds()).head == members.total()


@pytest.mark.crash
@pytest.mark.timeout(0)
async def test_nothing_acknowledged_is_lost_and_nothing_refused_is_there(
    own_postgres: PostgresServer, soak_seed: int, soak_rounds: int | None
) -> None:
    chance = random.Random(soak_seed)
    store = PostgresStore(own_postgres.url(), clock=SystemClock())
    await store.open()
    writer = Writer(store, soak_seed)
    running = asyncio.create_task(writer.run())
    for number in range(soak_rounds or 6):
        await asyncio.sleep(chance.uniform(0.05, 0.5))
        harm = own_postgres.kill if number % 2 else own_postgres.stop
        await asyncio.to_thread(harm)
        await asyncio.sleep(chance.uniform(0, 0.3))
        await asyncio.to_thread(own_postgres.start)
        before = len(writer.acknowledged)
        await eventually(lambda: len(writer.acknowledged) >= before + 3, limit=30, what="commits succeed again")  # noqa: B023 - awaited here
    writer.stopped = True
    await running
    await check(store, writer)
    await store.close()
    again = PostgresStore(own_postgres.url(), clock=SystemClock())
    await again.open()
    await check(again, writer)
    await again.close()
    print(f"seed {soak_seed}: {len(writer.acknowledged)} groups acknowledged, {len(writer.refused)} refused")
    assert writer.refused


@pytest.mark.crash
async def test_sessions_that_are_ended_at_any_moment_cost_nothing(own_postgres: PostgresServer, soak_seed: int) -> None:
    """Every session of the store is ended again and again, in the middle of whatever it does."""
    store = PostgresStore(own_postgres.url(), clock=SystemClock())
    await store.open()
    writer = Writer(store, soak_seed)
    running = asyncio.create_task(writer.run())
    other = await store._dialer.dial(application_name="the enemy")
    chance = random.Random(soak_seed)
    while len(writer.acknowledged) < 150:
        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'agenthive writer'"
        )
        await asyncio.sleep(chance.uniform(0, 0.05))
    writer.stopped = True
    await running
    await check(store, writer)
    other.terminate()
    await store.close()
