"""A group is written whole, refused whole, or looked up; nothing in between."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from agenthive_server.kernel.changes import COMMITTED, ChangeSet, Conflicted, Rejected
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import OutcomeUnknown, StoreUnavailable
from agenthive_server.kernel.ports import Query
from agenthive_server.kernel.records import Kind
from agenthive_server.storage.database import WAL_LONG
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.testing.store_model import changing, fact, task


async def turns(clock: ManualClock) -> None:
    """Let the loop and the threads run until somebody sleeps."""
    while clock.next_wake is None:  # noqa: ASYNC110 - a thread makes it so, and nobody tells
        await asyncio.sleep(0)


async def heads(store: SqliteStore) -> tuple[int, list[int]]:
    return (await store.bounds()).head, [event.sequence for event in await store.read_events(0, 100)]


@pytest.mark.parametrize("fate", ["lost", "full"])
async def test_a_commit_that_is_not_there_is_refused(store: SqliteStore, disk: Any, fate: str) -> None:
    disk.commits = [fate]
    changes = changing(task("a"), events=2)
    with pytest.raises(StoreUnavailable):
        await store.commit([changes])
    assert store.writable
    assert [event.sequence for event in changes.events] == [0, 0]
    assert await store.get(Kind.TASK, [task("a").key]) == [None]
    assert await store.commit([changing(task("a"), events=1)]) == [COMMITTED]
    assert store.writable == ""
    assert await heads(store) == (1, [1])


async def test_a_commit_that_is_there_after_all_is_answered(store: SqliteStore, disk: Any) -> None:
    await store.commit([changing(task("a"))])
    disk.commits = ["written"]
    changes = changing(task("b"), events=2)
    stale = changing(task("a"))
    assert await store.commit([changes, stale]) == [COMMITTED, Conflicted((task("a").ref,))]
    assert [(event.sequence, event.last, event.time) for event in changes.events] == [(1, 2, 1_000.0), (2, 2, 1_000.0)]
    assert await store.read_events(0, 10) == changes.events
    assert await store.commit([changing(events=1)]) == [COMMITTED]
    assert await heads(store) == (3, [1, 2, 3])


@pytest.mark.parametrize("fate", ["lost", "written"])
async def test_a_commit_is_looked_up_until_the_database_can_be_opened(
    store: SqliteStore, disk: Any, clock: ManualClock, fate: str
) -> None:
    disk.commits, disk.unreachable = [fate], True
    commit = asyncio.ensure_future(store.commit([changing(task("a"), events=1)]))
    for _ in range(3):
        await turns(clock)
        assert not commit.done()
        assert "unable to open" in store.writable
        clock.move(2.0)
    await turns(clock)
    disk.unreachable = False
    clock.move(2.0)
    await asyncio.wait([commit])
    assert (commit.exception() is None) is (fate == "written")
    assert (await store.get(Kind.TASK, [task("a").key]) == [task("a")]) is (fate == "written")
    assert await store.commit([changing(task("b"))]) == [COMMITTED]


async def test_giving_up_ends_the_looking_up(store: SqliteStore, disk: Any, clock: ManualClock) -> None:
    disk.commits, disk.unreachable = ["lost"], True
    commit = asyncio.ensure_future(store.commit([changing(task("a"))]))
    await turns(clock)
    assert store.in_doubt != ""
    store.give_up()
    with pytest.raises(OutcomeUnknown):
        await commit
    assert store.in_doubt == ""


async def test_closing_ends_the_looking_up(store: SqliteStore, disk: Any, clock: ManualClock) -> None:
    disk.commits, disk.unreachable = ["lost"], True
    commit = asyncio.ensure_future(store.commit([changing(task("a"))]))
    await turns(clock)
    await store.close()
    with pytest.raises(OutcomeUnknown):
        await commit


async def test_reads_fail_and_come_back_with_the_database(store: SqliteStore, disk: Any, clock: ManualClock) -> None:
    disk.commits, disk.unreachable = ["written"], True
    commit = asyncio.ensure_future(store.commit([changing(task("a"))]))
    await turns(clock)
    with pytest.raises(StoreUnavailable, match="unable to open"):
        await store.get(Kind.TASK, [task("a").key])
    disk.unreachable = False
    clock.move(2.0)
    assert await commit == [COMMITTED]
    assert await store.get(Kind.TASK, [task("a").key]) == [task("a")]


async def set_pragma(store: SqliteStore, pragma: str) -> None:
    await store._writer.call(lambda db: db.execute(pragma).fetchall())


async def test_a_full_disk_refuses_until_there_is_space(store: SqliteStore) -> None:
    await store.commit([changing(task("a"), events=1)])
    await set_pragma(store, "PRAGMA max_page_count=1")
    big = [changing(task(f"t{number}", title="x" * 3_000), events=1) for number in range(50)]
    with pytest.raises(StoreUnavailable, match="full"):
        await store.commit(big)
    assert "full" in store.writable
    assert await store.get(Kind.TASK, [("default", "a"), ("default", "t0")]) == [task("a"), None]
    await set_pragma(store, "PRAGMA max_page_count=1000000")
    assert set(await store.commit(big)) == {COMMITTED}
    assert store.writable == ""
    assert await heads(store) == (51, list(range(1, 52)))


async def test_a_read_only_database_refuses_and_can_be_read(store: SqliteStore) -> None:
    await store.commit([changing(task("a"))])
    await set_pragma(store, "PRAGMA query_only=ON")
    with pytest.raises(StoreUnavailable, match="readonly"):
        await store.commit([changing(task("b"))])
    assert "readonly" in store.writable
    assert await store.get(Kind.TASK, [task("a").key]) == [task("a")]
    await set_pragma(store, "PRAGMA query_only=OFF")
    assert await store.commit([changing(task("b"))]) == [COMMITTED]


class Unwritable:
    """Nothing a store can keep."""


@pytest.mark.parametrize(
    "bad",
    [
        changing(task("bad", title="\ud800")),
        changing(task("\ud800")),
        changing(task("bad", attempt=2**70)),
        changing(task("bad", reason=Unwritable())),
        ChangeSet(puts=changing(task("bad")).puts, events=[fact(1, thing=Unwritable())]),
        ChangeSet(puts={task(None).ref: task(None)}),  # type: ignore[arg-type] # what the types forbid
    ],
)
async def test_only_the_guilty_is_rejected(store: SqliteStore, bad: ChangeSet) -> None:
    group = [changing(task("a"), events=2), bad, changing(task("a", revision=2), events=1), changing(task("a"))]
    outcomes = await store.commit(group)
    assert outcomes[0] == outcomes[2] == COMMITTED
    assert isinstance(outcomes[1], Rejected)
    assert outcomes[1].reason
    assert outcomes[3] == Conflicted((task("a").ref,))
    assert await store.get(Kind.TASK, [("default", "a"), ("default", "bad")]) == [task("a", revision=2), None]
    assert await heads(store) == (3, [1, 2, 3])
    assert store.writable == ""


async def test_data_too_big_are_rejected(path: Path, clock: ManualClock, disk: Any) -> None:
    store = SqliteStore(path, clock=clock, connect=disk.connect)
    await store.open()

    def limit(db: sqlite3.Connection) -> None:
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 50_000)

    await store._writer.call(limit)
    outcomes = await store.commit([changing(task("a")), changing(task("big", title="x" * 60_000)), changing(task("b"))])
    assert outcomes[0] == outcomes[2] == COMMITTED
    assert isinstance(outcomes[1], Rejected)
    assert "too big" in outcomes[1].reason
    await store.close()


async def test_rows_of_a_group_that_is_refused_are_not_left_behind(store: SqliteStore) -> None:
    bad = changing(task("b"), task("bad", title="\ud800"), events=1)
    outcomes = await store.commit([bad])
    assert isinstance(outcomes[0], Rejected)
    assert await store.scan(Kind.TASK) == []
    assert await heads(store) == (0, [])


async def test_reads_do_not_wait_for_a_commit(store: SqliteStore) -> None:
    await store.commit([changing(task("a"), events=1)])
    entered, leave = threading.Event(), threading.Event()

    def hold(db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE task SET revision = 9")
        entered.set()
        leave.wait()
        db.execute("ROLLBACK")

    held = store._writer.call(hold)
    commit = asyncio.ensure_future(store.commit([changing(task("b"))]))
    while not entered.is_set():  # noqa: ASYNC110 - a thread sets it
        await asyncio.sleep(0)
    assert await store.get(Kind.TASK, [task("a").key]) == [task("a")]
    assert len(await store.query(Kind.TASK, Query(namespace="default"))) == 1
    assert len(await store.scan(Kind.TASK)) == 1
    assert len(await store.read_events(0, 10)) == 1
    assert not commit.done()
    leave.set()
    await held
    assert await commit == [COMMITTED]


async def test_the_write_ahead_log_is_written_back_when_it_is_long(store: SqliteStore, path: Path) -> None:
    wal = Path(f"{path}-wal")
    for round_ in range(3):
        number = 0
        while store._writing_back is None:
            number += 1
            await store.commit([changing(task(f"{round_}-{number}-{n}", title="x" * 4_000)) for n in range(64)])
        await store._writing_back
        await store.commit([changing(task(f"{round_}-after"))])
        assert not store._database.wal_is_long()
        # It keeps its size, but does not grow from round to round.
        assert wal.stat().st_size < 2 * WAL_LONG  # noqa: ASYNC240 - a look
