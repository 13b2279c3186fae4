"""Questions are answered from one state of the database; texts it cannot hold are found nowhere."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from agenthive_server.kernel.errors import CursorCompacted
from agenthive_server.kernel.ports import Query
from agenthive_server.kernel.records import Kind
from agenthive_server.storage.postgres.reader import storable
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.store_model import changing, sample, task

_NOWHERE = ["\x00", "a\x00b", "\ud800", "ok\udfff"]


@pytest.mark.parametrize(
    ("text", "can_be"), [("", True), ("ü\U0010ffff\x01\u2028", True), *((t, False) for t in _NOWHERE)]
)
def test_what_can_be_stored_is_known_beforehand(text: str, can_be: bool) -> None:
    assert storable("fine", text) is can_be


@pytest.mark.parametrize("odd", _NOWHERE)
async def test_what_cannot_be_stored_is_found_nowhere(store: PostgresStore, odd: str) -> None:
    await store.commit([changing(task("a", labels={"x": "y"}))])
    assert await store.get(Kind.TASK, [("default", odd), ("default", "a"), (odd, "a")]) == [
        None,
        task("a", labels={"x": "y"}),
        None,
    ]
    for query in (
        Query(namespace=odd),
        Query(namespace="default", role=odd),
        Query(namespace="default", prefix=odd),
        Query(namespace="default", states=frozenset({odd})),
        Query(namespace="default", labels={odd: "x"}),
        Query(namespace="default", labels={"x": odd}),
        Query(namespace="default", after=(1.0, odd)),
    ):
        assert await store.query(Kind.TASK, query) == []
    assert await store.find_blob("default", odd) is None


async def test_many_records_are_scanned_without_holding_anyone_up(store: PostgresStore) -> None:
    records = [sample(Kind.REQUEST, ("n", f"r{number:05}"), 1, number) for number in range(2_500)]
    for start in range(0, len(records), 500):
        await store.commit([changing(*records[start : start + 500])])
    scan = asyncio.create_task(store.scan(Kind.REQUEST))
    await store.commit([changing(task("a"), events=1)])
    assert await scan == records


async def test_readers_beside_commits_and_compaction_see_no_hole(store: PostgresStore) -> None:
    async def commit() -> None:
        for _ in range(60):
            await store.commit([changing(events=3), changing(events=1)])

    async def compact() -> None:
        while not committing.done():
            head = (await store.bounds()).head
            await store.compact(head - 20)

    async def read() -> int:
        position, seen = 0, 0
        while not committing.done() or position < (await store.bounds()).head:
            try:
                events = await store.read_events(position, 5)
            except CursorCompacted as gap:
                position = int(gap.metadata["oldest_sequence"]) - 1
                continue
            numbers = [position, *(event.sequence for event in events)]
            assert all(later == earlier + 1 for earlier, later in pairwise(numbers))
            assert not events or events[-1].sequence == events[-1].last
            position, seen = numbers[-1], seen + len(events)
        return seen

    committing = asyncio.create_task(commit())
    seen = await asyncio.gather(read(), read(), compact())
    assert seen[0]
    assert seen[1]
    assert (await store.bounds()).head == 240


async def test_a_time_is_found_while_events_go(store: PostgresStore) -> None:
    await store.commit([changing(events=2)])
    events = await store.read_events(0, 10)
    assert await store.sequence_at(events[0].time) == 0
    assert await store.sequence_at(events[0].time + 1) == 2
    await store.compact(99)
    assert await store.sequence_at(0.0) == 2
