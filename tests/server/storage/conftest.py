"""A SQLite database whose failures are arranged."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.storage.sqlite import SqliteStore


def io_error(text: str = "disk I/O error", code: int = sqlite3.SQLITE_IOERR) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode, error.sqlite_errorname = code, "SQLITE_IOERR"
    return error


class Disk:
    """Makes connections that fail: `commits` holds what the next COMMITs do, `unreachable` refuses to open."""

    def __init__(self) -> None:
        self.commits: list[str] = []
        self.unreachable = False

    def connect(self, *arguments: Any, **options: Any) -> sqlite3.Connection:
        if self.unreachable:
            raise io_error("unable to open database file", sqlite3.SQLITE_CANTOPEN)
        connection = sqlite3.connect(*arguments, factory=_Connection, **options)
        connection.disk = self
        return connection


class _Connection(sqlite3.Connection):
    disk: Disk

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        if sql == "COMMIT" and self.in_transaction and self.total_changes and self.disk.commits:
            match self.disk.commits.pop(0):
                case "lost":
                    raise io_error()
                case "written":
                    super().execute(sql)
                    raise io_error()
                case "full":
                    raise io_error("database or disk is full", sqlite3.SQLITE_FULL)
        return super().execute(sql, *arguments)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "hive.db"


@pytest.fixture
async def store(path: Path, clock: ManualClock, disk: Disk) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, clock=clock, connect=disk.connect)
    await store.open()
    yield store
    await store.close()
