"""A hive that was moved is the same hive; who may be served when; what is refused."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from agenthive_server.kernel.changes import COMMITTED
from agenthive_server.kernel.clock import ManualClock, SystemClock
from agenthive_server.kernel.errors import BadRequest, DataLoss, Refused, StoreUnavailable
from agenthive_server.kernel.ports import BlobInfo, StoreUnusable
from agenthive_server.kernel.records import Kind
from agenthive_server.storage.backup.create import Making, create_backup
from agenthive_server.storage.backup.restore import restore_backup
from agenthive_server.storage.backup.work import Token
from agenthive_server.storage.move.moving import Move, StillServed, forget_move
from agenthive_server.storage.postgres.dial import Connection
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.testing.harness import free_port
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.store_model import changing, sample, task
from agenthive_server.testing.store_script import Step, check_groups, groups
from agenthive_server.testing.waiting import eventually
from hypothesis import given, settings

MakeMove = Callable[..., Move]
Read = Callable[..., Awaitable[dict[str, Any]]]
Upload = Callable[..., Awaitable[BlobInfo]]


async def test_everything_is_there_and_the_same(
    filled: Path, move: MakeMove, told_by_file: Read, told_by_postgres: Read
) -> None:
    before = await told_by_file()
    assert all(before["records"].values())
    assert before["bounds"].oldest > 1
    moved = await move().run()
    assert (moved.standing.log_id, moved.standing.head) == (before["bounds"].log_id, before["bounds"].head)
    assert await told_by_postgres() == before
    assert {each.table: each.rows for each in moved.sums}["blob_chunk"] == 6


def test_any_hive_is_the_same_after_a_move(tmp_path: Path, postgres: PostgresServer) -> None:
    numbers = iter(range(1_000))

    @settings(max_examples=15, deadline=None)
    @given(groups())
    def check(script: list[Step]) -> None:
        number = next(numbers)
        asyncio.run(move_script(script, tmp_path / f"{number}.db", postgres.url(f"any{number}")))

    check()


async def move_script(script: list[Step], path: Path, url: str) -> None:
    clock = ManualClock(1_000.0)
    await check_groups(lambda: SqliteStore(path, clock=clock), clock, script)
    file = SqliteStore(path, clock=clock)
    before = await contents(file)
    await Move(path, url, SystemClock(), lambda _: None).run()
    assert await contents(PostgresStore(url, clock=clock, now=clock.now)) == before


async def contents(store: SqliteStore | PostgresStore) -> list[object]:
    await store.open()
    bounds = await store.bounds()
    kinds = [kind for kind in Kind if kind is not Kind.ROLE]
    records = [sorted(await store.scan(kind), key=lambda record: record.key) for kind in kinds]
    events = await store.read_events(bounds.oldest - 1, 10_000)
    await store.close()
    return [bounds, records, events]


async def test_what_was_moved_goes_on_as_one_hive(
    filled: Path, move: MakeMove, url: str, clock: ManualClock, told_by_file: Read
) -> None:
    before = await told_by_file()
    await move().run()
    store = PostgresStore(url, clock=clock, now=clock.now)
    await store.open()
    known = before["records"][Kind.AGENT]["default", "agent-a"]
    assert await store.commit([changing(known.evolve(revision=known.revision + 1), task("new"), events=1)]) == [
        COMMITTED
    ]
    (event,) = await store.read_events(before["bounds"].head, 10)
    assert event.sequence == before["bounds"].head + 1
    assert event.time >= before["events"][-1].time
    await store.close()


async def test_uploads_that_never_became_a_blob_stay_behind(
    filled: Path, move: MakeMove, rows_there: Callable[[], Awaitable[dict[str, int]]]
) -> None:
    with closing(sqlite3.connect(filled)) as db, db:
        db.executemany("INSERT INTO blob_chunk VALUES (?, 0, 'x')", [(f"{n:032x}",) for n in range(300)])
        db.executemany("INSERT INTO blob_chunk VALUES (?, 0, 'x')", [(f"z{n}",) for n in range(300)])
    await move().run()
    assert (await rows_there())["blob_chunk"] == 6


async def test_a_part_that_an_older_version_has_moved_is_gone_on_with(
    filled: Path, move: MakeMove, admin: Connection, clock: ManualClock, told_by_file: Read, told_by_postgres: Read
) -> None:
    before = await told_by_file()
    store = SqliteStore(filled, clock=clock)
    await store.open()
    with pytest.raises(StillServed):
        await move().run()
    await store.close()
    await admin.execute("DROP TABLE state; DROP TABLE change; UPDATE alembic_version SET version_num = '0001'")
    await move().run()
    assert await told_by_postgres() == before


async def test_a_backup_of_what_was_moved_can_be_restored(
    filled: Path, move: MakeMove, tmp_path: Path, clock: ManualClock
) -> None:
    """It is another hive then, as everything that is restored."""
    await move().run()
    making = Making(clock=clock, software="1", minimum_free=0)
    create_backup(filled, tmp_path / "backup", making, Token())
    restore_backup(tmp_path / "backup", tmp_path / "new", Token(), clock)
    store = SqliteStore(tmp_path / "new" / "hive.db", clock=clock)
    await store.open()
    await store.close()


# Who may be served


async def test_the_source_is_not_served_any_more_unless_the_move_is_undone(
    filled: Path, move: MakeMove, told_by_file: Read, told_by_postgres: Read, url: str
) -> None:
    before = await told_by_file()
    await move().run()
    with pytest.raises(StoreUnusable, match=r"was moved to postgresql://127.*: serve that.*--undo") as caught:
        await told_by_file()
    assert "hive:" not in str(caught.value)
    await move().take_back()
    assert await told_by_file() == before
    with pytest.raises(StoreUnusable, match="being moved here"):
        await told_by_postgres()
    # And there again: nothing has to be copied.
    assert (await move().run()).written == 0
    assert await told_by_postgres() == before


async def test_a_move_is_not_undone_once_the_target_was_served(
    filled: Path, move: MakeMove, url: str, clock: ManualClock, told_by_file: Read
) -> None:
    await move().run()
    store = PostgresStore(url, clock=clock, now=clock.now)
    await store.open()
    await store.commit([changing(task("new"), events=1)])
    await store.close()
    with pytest.raises(Refused, match="has been served since"):
        await move().take_back()
    with pytest.raises(StoreUnusable):
        await told_by_file()
    forget_move(filled)
    await told_by_file()
    with pytest.raises(Refused, match="was not moved"):
        forget_move(filled)


async def test_a_target_in_the_making_is_not_served(
    filled: Path, move: MakeMove, told_by_postgres: Read, clock: ManualClock, url: str
) -> None:
    store = SqliteStore(filled, clock=clock)
    await store.open()
    with pytest.raises(StillServed, match="stop the server"):
        await move().run()
    with pytest.raises(StoreUnusable, match="holds a part of a hive that is being moved here"):
        await told_by_postgres()
    await store.close()
    await move().run()
    await told_by_postgres()


async def test_a_server_that_slipped_in_before_the_move_began_commits_nothing(
    filled: Path, move: MakeMove, url: str, clock: ManualClock
) -> None:
    """It has found an empty database fit, and goes on when the move has begun."""
    late = PostgresStore(url, clock=SystemClock())
    await late._database.prepare()
    store = SqliteStore(filled, clock=clock)
    await store.open()
    with pytest.raises(StillServed):
        await move().run()
    late._database.prepare = lambda: asyncio.sleep(0, {})  # type: ignore[method-assign]
    try:
        await late.open()
        with pytest.raises(StoreUnavailable):
            await late.commit([changing(task("lost"), events=1)])
        await late.close()
    except StoreUnusable:
        pass
    await store.close()
    await move().run()


# While it is served


async def test_a_hive_is_copied_while_it_is_served_and_finished_when_its_server_stops(
    filled: Path,
    move: MakeMove,
    said: list[str],
    clock: ManualClock,
    told_by_file: Read,
    told_by_postgres: Read,
    upload: Upload,
) -> None:
    store = SqliteStore(filled, clock=clock)
    await store.open()
    moving = asyncio.create_task(move().run(wait=True))
    number = 0
    while not any("stop the server" in line for line in said):
        number += 1
        clock.move(1)
        agent = (await store.get(Kind.AGENT, [("default", "agent-a")]))[0]
        assert agent is not None
        changed = changing(agent.evolve(revision=agent.revision + 1), task(f"t{number}"), events=3)
        assert await store.commit([changed]) == [COMMITTED]
        await asyncio.sleep(0.01)
    # What no pass has seen yet: changed, removed, made anew under an old key, compacted, a blob more and one less.
    gone = (await store.get(Kind.STATE, [("default", "state-a")]))[0]
    assert gone is not None
    await store.commit([changing(task("late"), events=1, deletes=(gone,))])
    await store.commit([changing(sample(Kind.STATE, ("default", "state-a"), 1, 11))])
    await store.compact(20)
    await upload(store, b"late" * 500_000, time=9.0)
    assert await store.expire_blobs(2.0) == 2
    await store.close()
    moved = await moving
    with closing(sqlite3.connect(filled)) as db:
        db.execute("DROP TABLE moved")
    before = await told_by_file()
    assert before["bounds"].oldest == 19
    assert await told_by_postgres() == before
    assert moved.standing.head == before["bounds"].head
    assert number


async def test_a_long_copy_holds_no_transaction_of_the_source(
    filled: Path, move: MakeMove, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two pages nobody is in the file: its log can be written back, and a doubtful commit looked up."""
    store = SqliteStore(filled, clock=clock)
    await store.open()
    busy: list[int] = []

    async def look(*arguments: Any, **options: Any) -> None:
        with closing(sqlite3.connect(filled)) as db:
            busy.append(db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
        await plain(*arguments, **options)

    from agenthive_server.storage.move.target import Target

    plain = Target.write
    monkeypatch.setattr(Target, "write", look)
    with pytest.raises(StillServed):
        await move().run()
    assert len(busy) > len(Kind)
    assert not any(busy)
    await store.close()


# What is refused


async def test_only_an_empty_place_or_a_part_of_the_same_hive_is_moved_to(
    filled: Path, move: MakeMove, url: str, tmp_path: Path, clock: ManualClock, rows_there: Any
) -> None:
    other = SqliteStore(tmp_path / "other.db", clock=clock)
    await other.open()
    await other.commit([changing(task("t"), events=1)])
    with pytest.raises(StillServed):
        await Move(tmp_path / "other.db", url, SystemClock(), lambda _: None).run()
    await other.close()
    with pytest.raises(Refused, match="holds a part of another hive"):
        await move().run()
    assert (await rows_there())["task"] == 1
    await Move(tmp_path / "other.db", url, SystemClock(), lambda _: None).run()
    with pytest.raises(Refused, match="holds already another hive"):
        await move().run()
    assert (await rows_there())["task"] == 1


async def test_tables_that_are_there_and_empty_do_not_matter(
    filled: Path, move: MakeMove, url: str, told_by_postgres: Read, told_by_file: Read
) -> None:
    await PostgresStore(url, clock=SystemClock())._database.prepare()
    before = await told_by_file()
    await move().run()
    assert await told_by_postgres() == before


async def test_a_place_where_a_server_was_is_not_empty(filled: Path, move: MakeMove, url: str) -> None:
    store = PostgresStore(url, clock=SystemClock())
    await store.open()
    with pytest.raises(Refused, match="holds already another hive"):
        await move().run()
    await store.close()


async def test_a_hive_that_was_moved_is_not_moved_elsewhere(
    filled: Path, move: MakeMove, postgres: PostgresServer, url: str
) -> None:
    await move().run()
    assert (await move().run()).before
    with pytest.raises(Refused, match=r"was moved to postgresql://127.* before; --undo"):
        await move(postgres.url("elsewhere")).run()


async def test_the_same_hive_at_both_ends_is_not_guessed_about(filled: Path, move: MakeMove, url: str) -> None:
    await move().run()
    forget_move(filled)
    with pytest.raises(Refused, match="make sure which of the two is served"):
        await move().run()


async def test_two_at_once_are_one_too_many(
    filled: Path, move: MakeMove, said: list[str], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive_server.storage.move.target.LOCK_LIMIT", 0.5)
    store = SqliteStore(filled, clock=clock)
    await store.open()
    first = asyncio.create_task(move().run(wait=True))
    await eventually(lambda: any("stop the server" in line for line in said))
    with pytest.raises(Refused, match="another migrate-store is at work on postgresql://127"):
        await move().run()
    await store.close()
    assert (await first).standing.head


@pytest.mark.parametrize(
    ("revision", "sentence"), [("0001", "agenthived migrate --store"), ("0999", "the version that")]
)
async def test_a_hive_of_another_version_is_refused(filled: Path, move: MakeMove, revision: str, sentence: str) -> None:
    with closing(sqlite3.connect(filled)) as db, db:
        db.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    with pytest.raises(Refused, match=sentence):
        await move().run()


def test_what_is_no_hive_is_told(path: Path, move: MakeMove) -> None:
    with pytest.raises(BadRequest, match="there is no database at"):
        asyncio.run(move().run())
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(DataLoss, match="the database is damaged"):
        asyncio.run(move().run())
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE other (id)")
    with pytest.raises(BadRequest, match="is not a database of Agent Hive"):
        asyncio.run(move().run())


async def test_a_row_that_postgresql_cannot_hold_is_named(filled: Path, move: MakeMove, clock: ManualClock) -> None:
    store = SqliteStore(filled, clock=clock)
    await store.open()
    await store.commit([changing(task("fine"), task("bad", type="a\x00b"))])
    await store.close()
    with pytest.raises(Refused, match=r"cannot hold the row \('default', 'bad'\) of task"):
        await move().run()


async def test_a_database_that_is_not_there_is_told_without_its_password(filled: Path, move: MakeMove) -> None:
    with pytest.raises(StoreUnusable, match="cannot be opened") as caught:
        await move(f"postgresql://me:secret@127.0.0.1:{free_port()}/hive").run()
    assert "secret" not in str(caught.value)


async def test_a_refusal_of_the_database_is_a_sentence(
    filled: Path, move: MakeMove, postgres: PostgresServer, admin: Connection
) -> None:
    await admin.execute(
        "CREATE SCHEMA closed; CREATE ROLE guest LOGIN PASSWORD 'secret'; GRANT USAGE ON SCHEMA closed TO guest"
    )
    with pytest.raises(StoreUnusable, match=r"permission denied for schema closed \(42501\)"):
        await move(f"postgresql://guest:secret@127.0.0.1:{postgres.port}/postgres?search_path=closed").run()
    await admin.execute("DROP SCHEMA closed; DROP ROLE guest")
