"""A backup of a store in use is of one moment, private, and there only when it is complete."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from agenthive_server.kernel.clock import ManualClock, SystemClock
from agenthive_server.kernel.errors import BadRequest, DataLoss, Overloaded, Refused
from agenthive_server.kernel.records import CursorRecord, Kind
from agenthive_server.storage.backup import create
from agenthive_server.storage.backup.create import Making, create_backup
from agenthive_server.storage.backup.manifest import DATABASE, PARTIAL, read_manifest
from agenthive_server.storage.backup.place import list_backups
from agenthive_server.storage.backup.verify import verify_backup
from agenthive_server.storage.backup.work import GivenUp, Token, run
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.testing.store_model import changing, task
from agenthive_server.testing.waiting import eventually


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_a_backup_says_what_it_holds(filled: SqliteStore, back_up: Callable[[], Path]) -> None:
    log_id, group_count = filled.position
    manifest = read_manifest(back_up())
    assert (manifest.log_id, manifest.group_count) == (log_id, group_count)
    assert (manifest.oldest, manifest.head, manifest.events) == (1, len(Kind), len(Kind))
    assert (manifest.records, manifest.blobs) == (len(Kind), 1)
    assert manifest.create_time == 1_000.0
    assert manifest.software == "1.2.3"
    assert [file.name for file in manifest.files] == [DATABASE]


async def test_only_its_owner_may_read_it(filled: SqliteStore, back_up: Callable[[], Path]) -> None:
    backup = back_up()
    assert [oct(path.stat().st_mode & 0o777) for path in (backup, *sorted(backup.iterdir()))] == [
        "0o700",
        "0o600",
        "0o600",
    ]


async def test_what_is_written_meanwhile_is_in_it_whole_or_not_at_all(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "hive.db", clock=SystemClock(), synchronous="NORMAL")
    await store.open()
    filler = [changing(task(f"filler-{number}", title="x" * 20_000)) for number in range(500)]
    await store.commit(filler)
    making = Making(clock=SystemClock(), software="", minimum_free=0)
    backup = tmp_path / "backup"
    done = 0

    async def commit() -> None:
        nonlocal done
        done += 1
        counter = CursorRecord(namespace="n", id="groups", revision=done, sequence=done)
        await store.commit([changing(task(f"{done}-{part}"), events=2) for part in range(2)] + [changing(counter)])

    await commit()
    copying = asyncio.create_task(run(lambda token: create_backup(store.path, backup, making, token), making.clock))
    while not copying.done():
        await commit()
    manifest = await copying
    await store.close()
    assert 4 <= manifest.head < 4 * done, "nothing was written while it was copied"
    with closing(create.open_copy(backup / DATABASE)) as db:
        (groups,) = db.execute("SELECT revision FROM cursor").fetchone()
        (tasks,) = db.execute("SELECT count(*) FROM task WHERE id NOT LIKE 'filler%'").fetchone()
    assert (tasks, manifest.head, manifest.group_count) == (2 * groups, 4 * groups, groups + 1)
    assert verify_backup(backup, Token(), making.clock).whole


async def test_a_database_that_nobody_has_open_is_backed_up_too(
    path: Path, place: Path, making: Making, filled: SqliteStore
) -> None:
    await filled.close()
    assert create_backup(path, place / "one", making, Token()).head == len(Kind)
    assert verify_backup(place / "one", Token(), making.clock).whole


async def test_nothing_is_left_of_one_that_was_given_up(
    filled: SqliteStore, path: Path, place: Path, making: Making
) -> None:
    token = Token()
    token.give_up()
    with pytest.raises(GivenUp):
        create_backup(path, place / "one", making, token)
    assert names(place) == []


async def test_a_commit_that_has_to_be_looked_up_ends_a_backup_that_reads_the_file(
    store: SqliteStore, disk: object
) -> None:
    await store.commit([changing(events=1)])
    reading = Token()
    with store.visitors.present(reading):
        disk.commits.append("written")  # type: ignore[attr-defined]  # the fixture's own
        await store.commit([changing(events=1)])
    assert reading.given_up
    assert (await store.bounds()).head == 2


async def test_a_lookup_waits_for_a_program_that_reads_the_file(
    store: SqliteStore, path: Path, disk: object, clock: ManualClock
) -> None:
    await store.commit([changing(events=1)])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM meta").fetchone()
        disk.commits.append("written")  # type: ignore[attr-defined]  # the fixture's own
        commit = asyncio.create_task(store.commit([changing(events=1)]))
        await eventually(lambda: "another program" in store.writable)
        assert not commit.done()
        other.execute("COMMIT")

    def found_out() -> bool:
        clock.move(0.1)
        return commit.done()

    await eventually(found_out)
    await commit
    assert (await store.bounds()).head == 2


# What does not work


async def test_too_little_room_is_said_before_anything_is_written(
    filled: SqliteStore, path: Path, place: Path, making: Making
) -> None:
    greedy = Making(clock=making.clock, software="", minimum_free=2**60)
    with pytest.raises(Overloaded, match="not enough room") as refused:
        create_backup(path, place / "one", greedy, Token())
    assert refused.value.reason == "DISK_LOW"
    assert names(place) == []


async def test_an_existing_folder_is_left_alone(filled: SqliteStore, place: Path, back_up: Callable[[], Path]) -> None:
    backup = back_up()
    before = (backup / DATABASE).stat().st_mtime_ns
    with pytest.raises(Refused, match="exists already"):
        back_up()
    assert (backup / DATABASE).stat().st_mtime_ns == before
    assert names(place) == [backup.name]


def test_what_is_no_database_of_ours_is_named(tmp_path: Path, making: Making) -> None:
    with pytest.raises(BadRequest, match="there is no database at"):
        create_backup(tmp_path / "none.db", tmp_path / "b", making, Token())
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE t (x)")
    with pytest.raises(BadRequest, match="not a database of Agent Hive"):
        create_backup(tmp_path / "other.db", tmp_path / "b", making, Token())
    (tmp_path / "garbage.db").write_bytes(os.urandom(8192))
    with pytest.raises(DataLoss, match="damaged"):
        create_backup(tmp_path / "garbage.db", tmp_path / "b", making, Token())
    assert not (tmp_path / "b").exists()


# Killed

_VICTIM = """
import sys
from pathlib import Path
from agenthive_server.kernel.clock import ManualClock, SystemClock
from agenthive_server.storage.backup import create
from agenthive_server.storage.backup.work import Token

class Slow(Token):
    def step(self):
        print("step", flush=True)
        sys.stdin.readline()

making = create.Making(clock=SystemClock(), software="", minimum_free=0)
create.create_backup(Path(sys.argv[1]), Path(sys.argv[2]), making, Slow())
"""


def kill_while_copying(database: Path, folder: Path, steps: int) -> None:
    command = [sys.executable, "-c", _VICTIM, str(database), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as victim:
        assert victim.stdin is not None
        assert victim.stdout is not None
        for _ in range(steps):
            assert victim.stdout.readline() == b"step\n"
            victim.stdin.write(b"\n")
            victim.stdin.flush()
        assert victim.stdout.readline() == b"step\n"
        victim.kill()


@pytest.mark.crash
@pytest.mark.parametrize("steps", range(4))
async def test_a_killed_backup_is_never_taken_for_a_good_one(
    filled: SqliteStore, path: Path, place: Path, making: Making, steps: int
) -> None:
    kill_while_copying(path, place / "killed", steps)
    assert [name.startswith(PARTIAL) for name in names(place)] == [True]
    assert list_backups(place) == []
    create_backup(path, place / "next", making, Token())
    assert names(place) == ["next"]
