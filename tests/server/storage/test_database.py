"""What the store does with a path: make, claim, check, migrate, and say in one sentence why not."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from agenthive_server.kernel.changes import COMMITTED
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.ports import BlobInfo, StoreUnusable
from agenthive_server.kernel.records import Kind, StateRecord
from agenthive_server.storage.migrations import migrate
from agenthive_server.storage.schema import REVISION, TABLES
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.storage.statements import create_all
from agenthive_server.testing.store_model import changing, task
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.schema import CreateTable


async def opened(path: Path) -> SqliteStore:
    store = SqliteStore(path, clock=ManualClock())
    await store.open()
    return store


async def refusal(path: Path) -> str:
    with pytest.raises(StoreUnusable) as caught:
        await opened(path)
    return str(caught.value)


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)


def read(path: Path) -> bytes:
    return path.read_bytes()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_the_file_is_its_owners_alone(path: Path) -> None:
    store = await opened(path)
    await store.commit([changing(task("a"))])
    assert mode(path.parent) == 0o700
    assert {file.name: mode(file) for file in path.parent.iterdir()} == dict.fromkeys(
        ("hive.db", "hive.db-wal", "hive.db-shm", "hive.db.lock"), 0o600
    )
    await store.close()


async def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    await (await opened(tmp_path / "hive.db")).close()
    assert mode(tmp_path) == 0o755


async def test_the_log_is_written_back_when_it_is_closed(path: Path) -> None:
    store = await opened(path)
    await store.commit([changing(task("a"))])
    await store.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["hive.db", "hive.db.lock"]


async def test_a_second_store_on_the_file_is_refused(path: Path) -> None:
    store = await opened(path)
    assert await refusal(path) == f"{path} is in use by another process"
    await store.close()
    await (await opened(path)).close()


async def test_before_and_after_it_is_open_it_is_unavailable(path: Path) -> None:
    store = SqliteStore(path, clock=ManualClock())
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.ping()
    await store.close()
    store = await opened(path)
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.commit([changing(task("a"))])


async def test_what_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    notes = b"These are my notes. " * 100
    write(path, notes)
    assert await refusal(path) == f"{path} is not a SQLite database"
    assert read(path) == notes
    assert await refusal(path) == f"{path} is not a SQLite database"


async def test_a_damaged_database_is_refused(path: Path) -> None:
    await (await opened(path)).close()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3_000)
    assert await refusal(path) == f"{path} is damaged; restore it from a backup"


async def test_the_database_of_another_program_is_refused(path: Path) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE notes (text)")
    other.close()
    assert await refusal(path) == f"{path} is a database of another program"


async def test_a_newer_database_is_refused(path: Path) -> None:
    await (await opened(path)).close()
    newer = sqlite3.connect(path)
    newer.execute("UPDATE alembic_version SET version_num = '9999'")
    newer.commit()
    newer.close()
    assert "was used by a newer version of Agent Hive" in await refusal(path)


async def test_a_path_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in await refusal(tmp_path / "file" / "hive.db")
    (tmp_path / "folder").mkdir()
    assert "Is a directory" in await refusal(tmp_path / "folder")


def schema(path: Path) -> set[tuple[str, str]]:
    """Return names and definitions, as far as they mean something."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {(name, " ".join(sql.split()).replace("( ", "(").replace(" )", ")")) for name, sql in rows}


async def test_the_migrations_make_the_same_tables_as_a_new_database(tmp_path: Path) -> None:
    fresh, migrated = tmp_path / "fresh.db", tmp_path / "migrated.db"
    await (await opened(fresh)).close()
    migrate(f"sqlite:///{migrated}")

    def bare(path: Path) -> set[tuple[str, str]]:
        return {entry for entry in schema(path) if entry[0] != "alembic_version"}

    assert bare(fresh) == bare(migrated)
    assert len(bare(fresh)) >= len(create_all())
    migrate(f"sqlite:///{migrated}")
    store = await opened(migrated)
    assert await store.commit([changing(task("a"), events=1)]) == [COMMITTED]
    await store.close()
    connection = sqlite3.connect(migrated)
    assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(REVISION,)]
    connection.close()


async def test_a_database_of_the_first_version_gets_the_tables_it_lacks_and_keeps_what_it_has(path: Path) -> None:
    store = await opened(path)
    await store.commit([changing(task("a"), events=1)])
    await store.close()
    connection = sqlite3.connect(path)
    connection.executescript("DROP TABLE state; DROP TABLE change; UPDATE alembic_version SET version_num = '0001'")
    connection.close()
    store = await opened(path)
    kept = StateRecord(namespace="plugin", id="key", revision=1, value=b"value")
    assert await store.commit([changing(kept)]) == [COMMITTED]
    assert await store.get(Kind.STATE, [kept.key]) == [kept]
    assert await store.get(Kind.TASK, [("default", "a")]) == [task("a")]
    assert (await store.bounds()).head == 1
    await store.close()


def test_the_tables_can_be_made_in_postgresql() -> None:
    made = str(CreateTable(TABLES[Kind.TASK]).compile(dialect=PGDialect()))  # type: ignore[no-untyped-call] # SQLAlchemy has not typed it
    assert "labels JSONB" in made
    assert 'id TEXT COLLATE "C" NOT NULL' in made


def test_opening_what_is_up_to_date_does_not_import_alembic(path: Path) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.storage.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]), clock=SystemClock())
    await store.open()
    await store.close()

asyncio.run(main())
asyncio.run(main())
assert not {"alembic", "sqlalchemy.orm", "sqlalchemy.ext.asyncio", "sqlalchemy.dialects.postgresql"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60)


async def test_what_dead_uploads_left_is_removed(path: Path) -> None:
    store = await opened(path)
    info = BlobInfo(namespace="n", id="sha256:1", size=0, content_type="", create_time=1.0)

    async def content() -> Any:
        yield b"kept"

    await store.put_blob(info, content())
    await store.close()
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO blob_chunk VALUES ('dead', 0, x'00')")
    connection.commit()
    connection.close()
    store = await opened(path)
    assert [piece async for piece in store.read_blob("n", "sha256:1")] == [b"kept"]
    await store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM blob_chunk").fetchone() == (1,)
    connection.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    made = (
        mount
        and os.geteuid() == 0
        and not subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=False, capture_output=True
        ).returncode
    )
    if not made:
        pytest.skip("a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def fill(store: SqliteStore) -> int:
    """Commit until the disk is full; returns how often that went well."""
    for number in itertools.count():
        try:
            await store.commit([changing(task(f"t{number}", title="x" * 20_000), events=1)])
        except StoreUnavailable:
            return number
    raise AssertionError


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)


async def test_a_disk_that_fills_up_costs_no_acknowledged_commit(small_disk: Path) -> None:
    store = await opened(small_disk / "hive.db")
    committed = await fill(store)
    assert committed > 10
    assert store.writable
    with pytest.raises(StoreUnavailable):
        await store.commit([changing(task("more", title="x" * 20_000))])
    assert len(await store.scan(Kind.TASK)) == committed
    enlarge(small_disk)
    assert await store.commit([changing(task("more", title="x" * 20_000), events=1)]) == [COMMITTED]
    assert store.writable == ""
    assert (await store.bounds()).head == committed + 1
    await store.close()
    store = await opened(small_disk / "hive.db")
    assert len(await store.scan(Kind.TASK)) == committed + 1
    await store.close()
