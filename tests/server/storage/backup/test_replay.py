"""A backup and the journal lead to every event after it: to the very records there were then."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
from agenthive_server.kernel.changes import COMMITTED, ChangeSet
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import DataLoss
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.ports import BlobInfo
from agenthive_server.kernel.records import Kind, Record, Ref
from agenthive_server.storage import reader
from agenthive_server.storage.backup.create import Making, create_backup, open_copy
from agenthive_server.storage.backup.journal import Begin, segments
from agenthive_server.storage.backup.manifest import DATABASE, FORMAT, read_manifest
from agenthive_server.storage.backup.recorder import Recorder
from agenthive_server.storage.backup.replay import Replay, Replayed
from agenthive_server.storage.backup.work import Token
from agenthive_server.storage.codec import unpack
from agenthive_server.storage.database import Database
from agenthive_server.storage.schema import REVISION
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.storage.statements import scan_records
from agenthive_server.testing.store_model import Model, changing, task
from agenthive_server.testing.store_script import Step, _change_sets, groups
from hypothesis import given, settings
from hypothesis import strategies as st

Records = dict[Ref, Record]


def begin(store: SqliteStore, number: int, time: float = 0.0) -> Begin:
    log_id, group_count = store.position
    return Begin(FORMAT, "1", REVISION, log_id, number, group_count, time)


def replayed(folder: Path, until: int | None) -> tuple[Replayed, Records, list[Event]]:
    """Replay the journal in `folder` over a copy of the backup in it; returns how far, and what is there then."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder / "backup", work)
    time = read_manifest(folder / "backup").create_time
    with closing(Database(work / DATABASE, "NORMAL", sqlite3.connect).connect(writing=True)) as db:
        answer = Replay(db, until).run(folder / "journal", time, Token())
        found = [unpack(kind, *row) for kind in Kind for row in db.execute(scan_records(kind, open_only=False))]
        events = reader.read_events(db, 0, 10_000)
    return answer, {record.ref: record for record in found}, events


async def play(folder: Path, script: list[Step], backup_at: int) -> tuple[Model, dict[int, Records]]:
    """Play a history with a journal, and a backup in the middle; returns the records at each event from there on."""
    clock, model, then = ManualClock(), Model(), dict[int, Records]()
    store = SqliteStore(folder / "hive.db", clock=clock, synchronous="NORMAL")
    await store.open()
    recorder = store.recorder = Recorder(folder / "journal", clock)
    recorder.start(store.position[1])
    for number, step in enumerate(script):
        if number == backup_at % len(script):
            await recorder.turn(begin(store, number + 1))
            create_backup(store.path, folder / "backup", Making(clock=clock, software="1", minimum_free=0), Token())
            then = {model.head: dict(model.records)}
        made = []
        for deeds in step.group:
            made += _change_sets(model, Step(group=(deeds,)))
            then[model.head] = dict(model.records)
        assert await store.commit([changes for changes, _ in made]) == [outcome for _, outcome in made]
    await recorder.stop()
    await store.close()
    return model, then


@settings(max_examples=40, deadline=None)
@given(script=groups(), backup_at=st.integers(0, 7))
def test_every_event_after_a_backup_can_be_gone_back_to(script: list[Step], backup_at: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, then = asyncio.run(play(folder, script, backup_at))
        told = [event for events in model.sets for event in events]
        for head, records in then.items():
            answer, found, events = replayed(folder, head)
            assert (answer.head, answer.broken) == (head, "")
            assert found == records
            assert events == told[:head]
        assert replayed(folder, None)[1] == model.records


@pytest.fixture
async def journaled(store: SqliteStore, tmp_path: Path, clock: ManualClock) -> SqliteStore:
    """A store with a backup at event 1 and a journal of what comes after."""
    await store.commit([changing(task("before"), events=1)])
    recorder = store.recorder = Recorder(tmp_path / "journal", clock)
    recorder.start(store.position[1])
    await recorder.turn(begin(store, 1))
    create_backup(store.path, tmp_path / "backup", Making(clock=clock, software="1", minimum_free=0), Token())
    return store


async def stop(store: SqliteStore) -> None:
    recorder = store.recorder
    assert isinstance(recorder, Recorder)
    await recorder.stop()


async def test_a_change_set_is_replayed_whole_or_not_at_all_even_within_its_group(
    journaled: SqliteStore, tmp_path: Path
) -> None:
    group = [changing(task(name), events=3) for name in ("a", "b", "c")]
    assert await journaled.commit(group) == [COMMITTED] * 3
    await stop(journaled)
    heads = {until: replayed(tmp_path, until)[0].head for until in range(1, 11)}
    assert heads == {1: 1, 2: 1, 3: 1, 4: 4, 5: 4, 6: 4, 7: 7, 8: 7, 9: 7, 10: 10}
    answer, found, _ = replayed(tmp_path, 8)
    assert answer.reached
    assert {key for _, (_, key) in found} == {"before", "a", "b"}


async def test_an_event_beyond_the_end_is_not_reached(journaled: SqliteStore, tmp_path: Path) -> None:
    await journaled.commit([changing(events=2)])
    await stop(journaled)
    answer = replayed(tmp_path, 4)[0]
    assert (answer.head, answer.reached) == (3, False)


async def test_a_segment_that_was_cut_off_ends_with_its_last_whole_entry(
    journaled: SqliteStore, tmp_path: Path
) -> None:
    for number in range(4):
        await journaled.commit([changing(task(f"t{number}"), events=1)])
    await stop(journaled)
    (segment,) = segments(tmp_path / "journal")
    content = segment.read_bytes()
    heads = []
    for length in range(len(content), 0, -7):
        segment.write_bytes(content[:length])
        answer = replayed(tmp_path, None)[0]
        assert answer.broken == ""
        heads.append(answer.head)
    assert sorted(set(heads)) == [1, 2, 3, 4, 5]
    assert heads == sorted(heads, reverse=True)


async def test_what_comes_after_damage_is_not_taken_for_the_end(journaled: SqliteStore, tmp_path: Path) -> None:
    for number in range(4):
        await journaled.commit([changing(task(f"t{number}"), events=1)])
    await stop(journaled)
    (segment,) = segments(tmp_path / "journal")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    answer = replayed(tmp_path, None)[0]
    assert 1 <= answer.head < 5
    assert "is damaged at byte" in answer.broken


async def test_it_goes_on_over_segments_but_not_over_a_hole(journaled: SqliteStore, tmp_path: Path) -> None:
    recorder = journaled.recorder
    assert isinstance(recorder, Recorder)
    for number in range(2, 6):
        await journaled.commit([changing(task(f"t{number}"), events=1)])
        await recorder.turn(begin(journaled, number))
    await stop(journaled)
    assert replayed(tmp_path, None)[0].head == 5
    segments(tmp_path / "journal")[2].unlink()
    answer = replayed(tmp_path, None)[0]
    assert (answer.head, answer.broken) == (3, "the journal ends with group 3 and goes on after 4")


async def test_a_log_that_went_back_with_the_power_is_followed_to_where_it_did(
    journaled: SqliteStore, tmp_path: Path, clock: ManualClock
) -> None:
    recorder = journaled.recorder
    assert isinstance(recorder, Recorder)
    for number in range(3):
        await journaled.commit([changing(task(f"t{number}"), events=1)])
    # What the database forgot of these is not forgotten here.
    clock.move(60)
    log_id, group_count = journaled.position
    await recorder.turn(Begin(FORMAT, "1", REVISION, log_id, 2, group_count - 2, clock.now()))
    await stop(journaled)
    answer = replayed(tmp_path, None)[0]
    assert answer.head == 4
    assert "goes on after" in answer.broken


async def test_tables_of_another_version_and_other_logs_are_not_replayed(
    journaled: SqliteStore, tmp_path: Path
) -> None:
    recorder = journaled.recorder
    assert isinstance(recorder, Recorder)
    log_id, group_count = journaled.position
    for number, (schema, log, told) in enumerate(
        [("9999", log_id, "tables of version 9999"), (REVISION, "other", "another log")], 2
    ):
        await recorder.turn(Begin(FORMAT, "1", schema, log, number, group_count, 0.0))
        broken = replayed(tmp_path, None)[0].broken
        assert told in broken or "tables of version" in broken


async def test_a_journal_of_other_records_is_refused(journaled: SqliteStore, tmp_path: Path) -> None:
    await journaled.commit([changing(task("before", revision=2), events=1)])
    await stop(journaled)
    with closing(sqlite3.connect(tmp_path / "backup" / DATABASE)) as db:
        db.execute("UPDATE task SET revision = 5")
        db.commit()
    with pytest.raises(DataLoss, match="does not fit the backup at group 2"):
        replayed(tmp_path, None)


async def test_blobs_come_with_the_journal(
    journaled: SqliteStore, tmp_path: Path, upload: Callable[..., Awaitable[BlobInfo]]
) -> None:
    info = await upload(journaled, b"a" * 2_500_000)
    again = await upload(journaled, b"a" * 2_500_000, time=500.0)
    assert again.id == info.id
    await stop(journaled)
    replayed(tmp_path, None)
    with closing(open_copy(tmp_path / "work" / DATABASE)) as db:
        assert db.execute("SELECT id, size, create_time FROM blob").fetchall() == [(info.id, 2_500_000, 500.0)]
        chunks = [content for (content,) in db.execute("SELECT content FROM blob_chunk ORDER BY number")]
    assert b"".join(chunks) == b"a" * 2_500_000


async def test_nothing_is_kept_of_what_was_refused(journaled: SqliteStore, tmp_path: Path) -> None:
    stale = changing(task("before", revision=9), events=1)
    assert (await journaled.commit([stale, changing(task("new"), events=1)]))[1] == COMMITTED
    assert await journaled.commit([stale]) != [COMMITTED]
    await journaled.commit([ChangeSet()])
    await stop(journaled)
    answer, found, _ = replayed(tmp_path, None)
    assert (answer.head, answer.groups, answer.broken) == (2, 1, "")
    assert {key for _, (_, key) in found} == {"before", "new"}
