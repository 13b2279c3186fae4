"""Makes a backup of a database that may be in use.

SQLite's backup copies page by page within one read transaction, so that the copy is of one moment whatever is written
meanwhile; writers do not wait for a reader. What is written stays in the write-ahead log until the copy is made, so
the disk must have room for that. What is copied is synced in small portions, so that no commit waits for a large one.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.records import Kind
from agenthive_server.storage import statements

from .manifest import DATABASE, File, Manifest, write_manifest
from .place import Room, failures, new_folder, require_database, sha256_of
from .work import Token

_PAGES = 128
"""Copied in one step: half a MiB, about a millisecond."""

_SYNC_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Making:
    """How backups are made: the version that says it made them, and the bytes that must stay free on every disk."""

    clock: Clock
    software: str
    minimum_free: int = 64 * 2**20


def create_backup(database: Path, folder: Path, making: Making, token: Token, *, automatic: bool = False) -> Manifest:
    """Write a backup of a database, in use or not, into a new folder, and return what it holds.

    Blocks. The folder is there when the backup is complete and on disk; a backup that fails or is killed never is.
    Raises `BadRequest` when there is no database of Agent Hive, `Refused` when the folder exists, `Overloaded` with
    DISK_LOW, `DataLoss` when the database is damaged, `StoreUnavailable` when a disk fails, and `GivenUp`.
    """
    began = making.clock.monotonic()
    require_database(database)
    with failures(f"backup of {database}"), new_folder(folder) as partial:
        copy = partial / DATABASE
        _copy(database, copy, Room((partial, database.parent), making.minimum_free), token)
        file = File(name=DATABASE, size=copy.stat().st_size, sha256=sha256_of(copy, token))
        manifest = _describe(copy, file, making, began, automatic)
        write_manifest(partial, manifest)
    return manifest


def _copy(database: Path, copy: Path, room: Room, token: Token) -> None:
    source = sqlite3.connect(f"file:{quote(str(database))}?mode=rw", uri=True, timeout=5.0, isolation_level=None)
    with closing(source):
        source.execute("PRAGMA query_only=ON")
        # From here to the end one state of the database is seen.
        source.execute("BEGIN")
        _require_ours(source, database)
        (pages,), (size,) = (source.execute(f"PRAGMA page_{what}").fetchone() for what in ("count", "size"))
        room.require(copy.parent, pages * size)
        _copy_pages(source, copy, room, token)
        source.execute("COMMIT")


def _require_ours(source: sqlite3.Connection, database: Path) -> None:
    names = tables(source)
    if not {"meta", "alembic_version"} <= names:
        raise BadRequest(f"{database} is not a database of Agent Hive")


def _copy_pages(source: sqlite3.Connection, copy: Path, room: Room, token: Token) -> None:
    # Before SQLite does, so that nobody else may read it.
    handle = os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    target = sqlite3.connect(copy, isolation_level=None)
    steps = 0

    def progress(status: int, remaining: int, total: int) -> None:
        nonlocal steps
        steps += 1
        if steps % _SYNC_STEPS == 0:
            os.fdatasync(handle)
            room.check()
        token.step()

    try:
        target.execute("PRAGMA journal_mode=OFF")
        target.execute("PRAGMA synchronous=OFF")
        source.backup(target, pages=_PAGES, progress=progress)
        target.close()
        os.fsync(handle)
    finally:
        target.close()
        os.close(handle)


def tables(db: sqlite3.Connection) -> set[str]:
    """Return the names of the tables of a database."""
    return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def open_copy(path: Path) -> sqlite3.Connection:
    """Connect to a database nobody writes; nothing is made beside it."""
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True, isolation_level=None)


def _describe(copy: Path, file: File, making: Making, began: float, automatic: bool) -> Manifest:
    with closing(open_copy(copy)) as db:
        log_id, head, head_time, group_count = db.execute(statements.SELECT_META).fetchone()
        (schema,) = db.execute("SELECT version_num FROM alembic_version").fetchone()
        events, oldest = db.execute("SELECT sum(last - first + 1), min(first) FROM event").fetchone()
        (blobs,) = db.execute("SELECT count(*) FROM blob").fetchone()
        return Manifest(
            software=making.software,
            schema=schema,
            create_time=making.clock.now(),
            seconds=making.clock.monotonic() - began,
            log_id=log_id,
            oldest=oldest if oldest is not None else head + 1,
            head=head,
            head_time=head_time,
            group_count=group_count,
            records=sum(_count(db, kind) for kind in Kind if kind.value in tables(db)),
            events=events or 0,
            blobs=blobs,
            files=(file,),
            automatic=automatic,
        ).sealed()


def _count(db: sqlite3.Connection, kind: Kind) -> int:
    count: int = db.execute(f"SELECT count(*) FROM {kind.value}").fetchone()[0]  # noqa: S608 - the kind's own word
    return count
