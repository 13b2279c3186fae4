"""The SQLite store does what every store does, and what only a file can."""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.ports import Store
from agenthive_server.storage.database import Database, Synchronous
from agenthive_server.storage.sqlite import LOOK_EVERY, SqliteStore
from agenthive_server.testing.store_model import changing
from agenthive_server.testing.store_suite import Place, StoreSuite


def place_in(folder: Path, synchronous: Synchronous) -> Place:
    count = itertools.count()

    def make(clock: ManualClock) -> Callable[[], Store]:
        path = folder / f"{next(count)}" / "hive.db"
        return lambda: SqliteStore(path, clock=clock, synchronous=synchronous)

    return make


class TestSqliteStore(StoreSuite):
    examples = 30

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return place_in(tmp_path, "FULL")


class TestSqliteStoreWithNormalSync(StoreSuite):
    examples = 30

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return place_in(tmp_path, "NORMAL")


def locks_on(path: Path) -> list[str]:
    """Return the locks this process has on a file."""
    mine, inode = str(os.getpid()), str(path.stat().st_ino)
    lines = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    return [words[3] for words in lines if words[4] == mine and words[5].rpartition(":")[2] == inode]


async def test_the_store_keeps_its_locks_on_the_index_of_the_write_ahead_log(path: Path, clock: ManualClock) -> None:
    """A process that closes a file gives up all its locks on it (POSIX), those of SQLite too.

    Another program, a backup for example, would then take itself to be alone, and make the index anew below this one.
    """
    store = SqliteStore(path, clock=clock)
    await store.open()
    index = path.with_name(f"{path.name}-shm")
    for _ in range(3 * LOOK_EVERY):
        await store.commit([changing(events=1)])
        assert locks_on(index)
    await store.close()
    assert not index.exists()


async def test_the_length_of_the_log_is_known_after_it_was_made_anew(path: Path, clock: ManualClock) -> None:
    database = Database(path, "NORMAL", sqlite3.connect)
    database.claim()
    for _ in range(2):
        with closing(database.connect(writing=True)) as db:
            db.execute("CREATE TABLE IF NOT EXISTS filler (x)")
            assert not database.wal_is_long()
            db.execute("INSERT INTO filler VALUES (zeroblob(9000000))")
            assert database.wal_is_long()
    database.release()
