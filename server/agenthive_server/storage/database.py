"""The database file: claimed by one process, checked, made or migrated, and connected to."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from uuid import uuid4

from agenthive_server.kernel.ports import StoreUnusable

from . import statements
from .columns import REVISION
from .transaction import finish, sentence

Synchronous = Literal["FULL", "NORMAL"]
Connect = Callable[..., sqlite3.Connection]

MOVED = "moved"
"""The table that is there when the hive was moved elsewhere (`move/`), and must not be served here any more."""

WAL_LONG = 8 * 1024 * 1024
"""From this length on the write-ahead log is written back, and starts anew."""

# The file of the log keeps its size then, within reason: to sync what lies in the middle of a file takes half as long
# as to sync what makes it grow.
_WAL_KEPT = 4 * WAL_LONG
_FRAME = 24 + 4096
# Where the log's index says how many frames are in use: https://www.sqlite.org/walformat.html, section 2.1.
_MX_FRAME = 16

_UNUSABLE = {
    sqlite3.SQLITE_NOTADB: "is not a SQLite database",
    sqlite3.SQLITE_CORRUPT: "is damaged; restore it from a backup",
    sqlite3.SQLITE_BUSY: "is locked by another program",
    sqlite3.SQLITE_FULL: "cannot be opened: there is no space left",
    sqlite3.SQLITE_READONLY: "cannot be opened: it is read-only",
}


class Database:
    """A file and the right to use it. Everything here blocks; it is called in a lane."""

    def __init__(self, path: Path, synchronous: Synchronous, connect: Connect) -> None:
        self.path = path
        self._synchronous = synchronous
        self._sqlite = connect
        self._lock: int | None = None
        self._index: int | None = None

    def claim(self) -> None:
        """Lock the file for this process, make it if need be, and bring it to this version's tables.

        Raises `StoreUnusable` with a sentence for the operator.
        """
        try:
            self.lock()
            self._prepare()
        except OSError as error:
            raise StoreUnusable(f"{error.filename or self.path}: {error.strerror}") from error
        except sqlite3.Error as error:
            known = _UNUSABLE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
            raise StoreUnusable(f"{self.path} {known or f'cannot be opened: {sentence(error)}'}") from error

    def release(self) -> None:
        """Let another process have the file. No connection may be open any more."""
        self._close_index()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def connect(self, *, writing: bool = False) -> sqlite3.Connection:
        """Return a new connection."""
        connection = self._sqlite(self.path, timeout=2.0, isolation_level=None, cached_statements=256)
        try:
            connection.execute(f"PRAGMA synchronous={self._synchronous}")
            connection.execute("PRAGMA temp_store=MEMORY")
            # Written back by `SqliteStore` beside the commits, not in the middle of one.
            connection.execute("PRAGMA wal_autocheckpoint=0")
            connection.execute(f"PRAGMA journal_size_limit={_WAL_KEPT}")
            connection.execute(f"PRAGMA cache_size={-16_000 if writing else -4_000}")
            if not writing:
                connection.execute("PRAGMA query_only=ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def wal_is_long(self) -> bool:
        """Return whether the write-ahead log should be written back."""
        try:
            frames = int.from_bytes(os.pread(self._open_index(), 4, _MX_FRAME), sys.byteorder)
        except OSError:
            return False
        return frames * _FRAME > WAL_LONG

    def _open_index(self) -> int:
        """Return a descriptor of the log's index, kept open: closing one of a file gives up all locks of this process
        on it (POSIX), those by which SQLite tells other programs that it is there too.
        """
        if self._index is not None and os.fstat(self._index).st_nlink == 0:
            # The last connection took the file away; whatever has its name now is another.
            self._close_index()
        if self._index is None:
            self._index = os.open(f"{self.path}-shm", os.O_RDONLY)
        return self._index

    def _close_index(self) -> None:
        if self._index is not None:
            os.close(self._index)
            self._index = None

    def lock(self) -> None:
        """Keep other processes out until `release`; raises `StoreUnusable` when one is in."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise StoreUnusable(f"{self.path} is in use by another process") from error
        self._lock = lock

    def _prepare(self) -> None:
        # Before SQLite does: the files it makes beside it get the same mode.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        if self.path.stat().st_mode & 0o077:
            self.path.chmod(0o600)
        revision = self._revision()
        if revision == "":
            self._create()
        elif revision != REVISION:
            from .migrations import migrate

            migrate(f"sqlite:///{self.path}")
        connection = self.connect(writing=True)
        try:
            connection.execute(statements.DELETE_ORPHANS)
        finally:
            connection.close()

    def _revision(self) -> str:
        """Return at which migration the tables stand; empty when there are none."""
        connection = self.connect(writing=True)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not names:
                return ""
            if "alembic_version" not in names or "meta" not in names:
                raise StoreUnusable(f"{self.path} is a database of another program")
            if MOVED in names:
                (target,) = connection.execute(f"SELECT target FROM {MOVED}").fetchone()  # noqa: S608 - a constant
                raise StoreUnusable(
                    f"{self.path} was moved to {target}: serve that. To go back to how it was before the move:"
                    f" agenthived migrate-store --undo --from sqlite:///{self.path}"
                )
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return row[0] if row else "unknown"
        finally:
            connection.close()

    def _create(self) -> None:
        connection = self.connect(writing=True)
        try:
            connection.execute("BEGIN IMMEDIATE")
            for statement in statements.create_all():
                connection.execute(statement)
            connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
            connection.execute("INSERT INTO alembic_version VALUES (?)", (REVISION,))
            connection.execute(statements.INSERT_META, (1, uuid4().hex, 0, 0.0, 0))
            finish(connection)
        finally:
            connection.close()
