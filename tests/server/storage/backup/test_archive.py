"""The archive: from its first backup on, everything can be gone back to, over restarts, kills and full disks."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.health import Status
from agenthive_server.kernel.records import Payload
from agenthive_server.storage.backup.archive import Archive, Keeping
from agenthive_server.storage.backup.create import Making
from agenthive_server.storage.backup.journal import FOLDER, segments
from agenthive_server.storage.backup.place import list_backups
from agenthive_server.storage.backup.recorder import Recorder
from agenthive_server.storage.backup.restore import restore_backup
from agenthive_server.storage.backup.work import Token
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.testing.store_model import changing, task
from agenthive_server.testing.waiting import eventually


@asynccontextmanager
async def archiving(
    path: Path, place: Path, making: Making, keeping: Keeping | None = None
) -> AsyncIterator[tuple[SqliteStore, Archive]]:
    store = SqliteStore(path, clock=making.clock)
    await store.open()
    archive = Archive(store, place, making, keeping)
    await archive.open()
    running = asyncio.create_task(archive.run())
    try:
        yield store, archive
    finally:
        running.cancel()
        await archive.close()
        await store.close()


async def commit(store: SqliteStore, *names: str) -> None:
    for name in names:
        await store.commit([changing(task(name), events=1)])


async def backups(archive: Archive, count: int, clock: ManualClock) -> None:
    """Wait until so many were made since it was opened."""

    async def made() -> bool:
        await clock.advance(1.0)
        return archive.backups >= count

    await eventually(made)


def restored(place: Path, target: Path, clock: ManualClock, until: int | None = None) -> int:
    answer = restore_backup(place, target, Token(), clock, until=until)
    assert answer.missing == ""
    return answer.head


async def test_everything_since_the_first_backup_can_be_gone_back_to(
    path: Path, place: Path, making: Making, clock: ManualClock, tmp_path: Path
) -> None:
    async with archiving(path, place, making) as (store, archive):
        await commit(store, "a", "b")
        await backups(archive, 1, clock)
        first = list_backups(place)[0].manifest
        assert first is not None
        assert first.automatic
        await commit(store, "c", "d", "e")
    for event in range(first.head, 6):
        assert restored(place, tmp_path / f"to-{event}", clock, event) == event
    assert restored(place, tmp_path / "end", clock) == 5


async def test_a_restart_goes_on_without_another_backup(
    path: Path, place: Path, making: Making, clock: ManualClock, tmp_path: Path
) -> None:
    for number in range(3):
        async with archiving(path, place, making) as (store, archive):
            await commit(store, f"t{number}")
            if number == 0:
                await backups(archive, 1, clock)
            await clock.advance(5.0)
            assert archive.backups == (number == 0)
    assert restored(place, tmp_path / "new", clock) == 3


async def test_what_a_kill_kept_from_the_journal_is_made_good_by_a_backup(
    path: Path, place: Path, making: Making, clock: ManualClock, tmp_path: Path
) -> None:
    async with archiving(path, place, making) as (store, archive):
        await backups(archive, 1, clock)
        await commit(store, "told")
        store.recorder = None
        await commit(store, "not told")
    assert restored(place, tmp_path / "before", clock) == 1
    async with archiving(path, place, making) as (store, archive):
        await backups(archive, 1, clock)
        await commit(store, "later")
    assert restored(place, tmp_path / "after", clock) == 3


async def test_after_a_kill_a_backup_is_made_though_no_group_is_missing(
    path: Path, place: Path, making: Making, clock: ManualClock
) -> None:
    """A blob may be: nothing in the database tells whether it is in the journal."""
    async with archiving(path, place, making) as (store, archive):
        await backups(archive, 1, clock)
        await commit(store, "a")
        recorder = store.recorder
        assert isinstance(recorder, Recorder)
        await eventually(lambda: recorder.sequence == 1)
        # As a kill leaves it: without an end.
        recorder.on = False
    async with archiving(path, place, making) as (store, archive):
        await backups(archive, 1, clock)


async def test_backups_are_made_again_and_what_is_older_than_asked_for_goes(
    path: Path, place: Path, making: Making, clock: ManualClock, tmp_path: Path
) -> None:
    keeping = Keeping(backup_every=100.0, keep=250.0)
    async with archiving(path, place, making, keeping) as (store, archive):
        for number in range(1, 9):
            await backups(archive, number, clock)
            await commit(store, f"t{number}")
            clock.move(100.0)
        await backups(archive, 9, clock)
        now = clock.now()
    made = [found.manifest for found in list_backups(place) if found.manifest is not None]
    assert len(made) == 4
    assert made[0].create_time < now - 250.0 < made[1].create_time
    assert len(segments(place / FOLDER / made[0].log_id)) < 9
    assert restored(place, tmp_path / "oldest", clock, made[0].head) == made[0].head
    assert restored(place, tmp_path / "between", clock, made[0].head + 1) == made[0].head + 1
    assert restored(place, tmp_path / "newest", clock) == 8


async def test_a_long_journal_asks_for_a_backup(path: Path, place: Path, making: Making, clock: ManualClock) -> None:
    async with archiving(path, place, making, Keeping(journal_bytes=1)) as (store, archive):
        await backups(archive, 1, clock)
        recorder = store.recorder
        assert isinstance(recorder, Recorder)
        for number in range(20):
            await store.commit([changing(task("t", revision=number + 1, result=Payload(data=bytes(50_000))))])
        await eventually(lambda: recorder.size > store.size)
        await backups(archive, 2, clock)


def in_the_way(place: Path, *, gone: bool = False) -> None:
    place.unlink() if gone else place.write_text("in the way")


async def test_a_folder_that_cannot_be_used_is_told_and_tried_again(
    path: Path, place: Path, making: Making, clock: ManualClock, tmp_path: Path
) -> None:
    in_the_way(place)
    async with archiving(path, place, making) as (store, archive):
        await commit(store, "a")
        ((name, reading),) = archive.probe()
        assert (name, reading.status) == ("archive", Status.DEGRADED)
        assert str(place) in reading.reason
        in_the_way(place, gone=True)
        await backups(archive, 1, clock)
        await commit(store, "b")
        await clock.advance(1.0)
        assert archive.probe()[0][1].status is Status.OK
    assert restored(place, tmp_path / "new", clock) == 2


async def test_a_folder_that_is_taken_away_is_filled_again(
    path: Path, place: Path, making: Making, clock: ManualClock, tmp_path: Path
) -> None:
    async with archiving(path, place, making) as (store, archive):
        await backups(archive, 1, clock)
        await commit(store, "a")
    shutil.rmtree(place)
    async with archiving(path, place, making) as (store, archive):
        await backups(archive, 1, clock)
        await commit(store, "b")
    assert restored(place, tmp_path / "new", clock) == 2


async def test_a_folder_that_is_taken_away_from_a_running_server_is_filled_again(
    path: Path, place: Path, making: Making, clock: ManualClock, tmp_path: Path
) -> None:
    async with archiving(path, place, making) as (store, archive):
        await backups(archive, 1, clock)
        shutil.rmtree(place)
        await commit(store, "a")
        await backups(archive, 2, clock)
        await commit(store, "b")
    assert restored(place, tmp_path / "new", clock) == 2


def measured(archive: Archive) -> dict[str, float]:
    return {name: value for name, _, value in archive.metrics()}


async def test_it_tells_how_far_it_is(path: Path, place: Path, making: Making, clock: ManualClock) -> None:
    async with archiving(path, place, making) as (store, archive):
        await backups(archive, 1, clock)
        await commit(store, "a", "b")
        await eventually(lambda: measured(archive)["agenthive_archive_last_sequence"] == 2)
        found = measured(archive)
    assert found["agenthive_archive_recording"] == 1.0
    assert found["agenthive_archive_backups_total"] == 1
    assert found["agenthive_archive_journal_bytes"] > 0


@pytest.mark.parametrize("kept", [True, False])
async def test_the_log_before_a_restore_is_kept_as_long_as_asked_for(
    path: Path, place: Path, making: Making, clock: ManualClock, tmp_path: Path, kept: bool
) -> None:
    async with archiving(path, place, making) as (store, archive):
        await commit(store, "a")
        await backups(archive, 1, clock)
        old = store.position[0]
    target = tmp_path / "new"
    restored(place, target, clock)
    for segment in segments(place / FOLDER / old):
        os.utime(segment, (clock.now(), clock.now()))
    clock.move(50.0 if kept else 500.0)
    async with archiving(target / "hive.db", place, making, Keeping(keep=100.0)) as (store, archive):
        await backups(archive, 1, clock)
        new = store.position[0]
        await eventually(lambda: kept or not (place / FOLDER / old).exists())
    logs = {found.manifest.log_id for found in list_backups(place) if found.manifest is not None}
    assert logs == ({old, new} if kept else {new})
