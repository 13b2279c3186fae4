"""Applies the journal to a copy of a backup, change set by change set, up to an event."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agenthive_server.kernel.errors import DataLoss
from agenthive_server.kernel.records import Kind
from agenthive_server.storage import statements
from agenthive_server.storage.codec import Unreadable, unpack
from agenthive_server.storage.rows import insert_row, update_row
from agenthive_server.storage.transaction import undo

from .journal import Begin, Blob, Changes, Chunk, End, Group, Put, first_segment, number_of, read_segment, segments
from .work import Token

_GROUPS_AT_ONCE = 256

_PUT_CHUNK = "INSERT OR REPLACE INTO blob_chunk (upload_id, number, content) VALUES (?, ?, ?)"
_PUT_BLOB = (
    "INSERT INTO blob (namespace, id, size, content_type, create_time, upload_id) VALUES (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET create_time = max(create_time, excluded.create_time)"
)
_RENEW_BLOB = "UPDATE blob SET create_time = max(create_time, ?) WHERE namespace = ? AND id = ?"


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """How far the journal led."""

    head: int
    groups: int
    reached: bool
    """Whether it went on beyond the event that was asked for."""
    broken: str = ""
    """Why nothing after `head` could be read, unless the journal just ends there."""


class Broken(Exception):
    """The journal does not go on where it ended; says why."""


class _Enough(Exception):
    """What follows is beyond the event that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a database stands: its log, its tables, the number of its last group, and when that was known."""

    log_id: str
    schema: str
    group_count: int
    time: float


def follow(folder: Path, standing: Standing) -> Iterator[Group | Chunk | Blob]:
    """Yield what the journal in the folder of a log tells from there on. Raises `Broken`; OSError."""
    try:
        yield from _follow(folder, standing)
    except DataLoss as error:
        raise Broken(error.message) from error


def _follow(folder: Path, standing: Standing) -> Iterator[Group | Chunk | Blob]:
    group_count, following = standing.group_count, False
    first = first_segment(folder, group_count, standing.time)
    for path in segments(folder):
        if not 0 < first <= number_of(path):
            continue
        for entry in read_segment(path):
            if isinstance(entry, Begin):
                _require_next(entry, standing, group_count if following else None)
                following = True
            elif isinstance(entry, Chunk | Blob):
                yield entry
            elif isinstance(entry, End):
                continue
            elif entry.group_count == group_count + 1:
                group_count += 1
                yield entry
            elif entry.group_count > group_count:
                raise Broken(f"the journal has a hole: group {entry.group_count} follows group {group_count}")


def _require_next(begin: Begin, standing: Standing, group_count: int | None) -> None:
    """Raise `Broken` unless a segment goes on where the one before ended (None: it is the first)."""
    if begin.schema != standing.schema:
        raise Broken(f"the journal goes on with tables of version {begin.schema}; there is a backup of that time")
    if begin.log_id != standing.log_id:
        raise Broken("the journal goes on with another log")
    if group_count is not None and begin.group_count != group_count:
        raise Broken(f"the journal ends with group {group_count} and goes on after {begin.group_count}")


class Replay:
    """Brings a database, which nobody else uses, forward."""

    def __init__(self, db: sqlite3.Connection, until: int | None) -> None:
        self._db = db
        self._until = until
        self.log_id, self.head, self._time, self.group_count = db.execute(statements.SELECT_META).fetchone()
        (self._schema,) = db.execute("SELECT version_num FROM alembic_version").fetchone()
        self._began = self.group_count

    def run(self, folder: Path, time: float, token: Token) -> Replayed:
        """Apply the segments in the folder of this log to a backup made at a time.

        Raises `DataLoss` when they do not fit, and `GivenUp`.
        """
        standing = Standing(log_id=self.log_id, schema=self._schema, group_count=self.group_count, time=time)
        reached, broken = False, ""
        try:
            for number, entry in enumerate(follow(folder, standing), 1):
                self._apply(entry)
                if number % _GROUPS_AT_ONCE == 0:
                    self._commit()
                    token.step()
        except _Enough:
            reached = True
        except Broken as error:
            broken = str(error)
        self._commit()
        return Replayed(head=self.head, groups=self.group_count - self._began, reached=reached, broken=broken)

    def _commit(self) -> None:
        if self._db.in_transaction:
            self._db.execute(statements.UPDATE_META, (self.head, self._time, self.group_count))
            self._db.execute("COMMIT")

    def _apply(self, entry: Group | Chunk | Blob) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        match entry:
            case Group():
                self._apply_group(entry)
            case Chunk(upload_id, number, content):
                self._db.execute(_PUT_CHUNK, (upload_id, number, content))
            case Blob() if entry.upload_id:
                row = (entry.namespace, entry.id, entry.size, entry.content_type, entry.create_time, entry.upload_id)
                self._db.execute(_PUT_BLOB, row)
            case Blob():
                self._db.execute(_RENEW_BLOB, (entry.create_time, entry.namespace, entry.id))

    def _apply_group(self, group: Group) -> None:
        for member in group.members:
            if self._until is not None and member.last > self._until:
                raise _Enough
            try:
                self._apply_changes(member, group.time)
            except (sqlite3.IntegrityError, Unreadable, ValueError) as error:
                undo(self._db)
                raise DataLoss(f"the journal does not fit the backup at group {group.group_count}: {error}") from error
            self._time = max(self._time, group.time)
        self.group_count = group.group_count

    def _apply_changes(self, changes: Changes, time: float) -> None:
        if changes.last and changes.first != self.head + 1:
            raise ValueError(f"event {changes.first} follows event {self.head}")
        for removed in changes.removed:
            key = (removed.namespace, removed.id, removed.revision)
            _require_one(self._db.execute(statements.delete_record(Kind(removed.kind)), key), key)
        for put in changes.puts:
            self._put(put)
        if changes.last:
            row = (changes.last, changes.first, time, changes.events)
            self._db.execute(statements.INSERT_EVENTS, row)
            self.head = changes.last

    def _put(self, put: Put) -> None:
        kind = Kind(put.kind)
        record = unpack(kind, put.namespace, put.id, put.revision, put.body, put.spec)
        if put.revision == 1:
            self._db.execute(statements.insert_record(kind), insert_row(kind)(record))
        else:
            row = update_row(kind)(record, put.revision - 1)
            _require_one(self._db.execute(statements.update_record(kind), row), (put.namespace, put.id))


def _require_one(cursor: sqlite3.Cursor, key: tuple[object, ...]) -> None:
    if cursor.rowcount != 1:
        raise ValueError(f"there is no such record: {key}")
