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

from .journal import AnyEntry, Begin, Blob, Changes, Chunk, Group, Put, first_segment, number_of, read_segment, segments
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


class _Hole(Exception):
    """The journal does not go on where the database stands."""


class _Enough(Exception):
    """What follows is beyond the event that was asked for."""


class Replay:
    """Brings a database, which nobody else uses, forward."""

    def __init__(self, db: sqlite3.Connection, until: int | None) -> None:
        self._db = db
        self._until = until
        self.log_id, self.head, self._time, self.group_count = db.execute(statements.SELECT_META).fetchone()
        self._began = self.group_count
        # Whether a segment was read before: one that follows has to begin where that one ended.
        self._following = False

    def run(self, folder: Path, time: float, token: Token) -> Replayed:
        """Apply the segments in the folder of this log to a backup made at a time.

        Raises `DataLoss` when they do not fit, and `GivenUp`.
        """
        reached, broken = False, ""
        try:
            for number, entry in enumerate(self._entries(folder, time), 1):
                self._apply(entry)
                if number % _GROUPS_AT_ONCE == 0:
                    self._commit()
                    token.step()
        except _Enough:
            reached = True
        except _Hole as hole:
            broken = str(hole)
        self._commit()
        return Replayed(head=self.head, groups=self.group_count - self._began, reached=reached, broken=broken)

    def _entries(self, folder: Path, time: float) -> Iterator[AnyEntry]:
        try:
            first = first_segment(folder, self.group_count, time)
            for path in segments(folder):
                if 0 < first <= number_of(path):
                    yield from read_segment(path)
        except DataLoss as error:
            raise _Hole(error.message) from error

    def _commit(self) -> None:
        if self._db.in_transaction:
            self._db.execute(statements.UPDATE_META, (self.head, self._time, self.group_count))
            self._db.execute("COMMIT")

    def _apply(self, entry: AnyEntry) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        match entry:
            case Begin():
                self._require_same(entry)
            case Group():
                self._apply_group(entry)
            case Chunk(upload_id, number, content):
                self._db.execute(_PUT_CHUNK, (upload_id, number, content))
            case Blob() if entry.upload_id:
                row = (entry.namespace, entry.id, entry.size, entry.content_type, entry.create_time, entry.upload_id)
                self._db.execute(_PUT_BLOB, row)
            case Blob():
                self._db.execute(_RENEW_BLOB, (entry.create_time, entry.namespace, entry.id))

    def _require_same(self, begin: Begin) -> None:
        (schema,) = self._db.execute("SELECT version_num FROM alembic_version").fetchone()
        if begin.schema != schema:
            raise _Hole(f"the journal goes on with tables of version {begin.schema}; there is a backup of that time")
        if begin.log_id != self.log_id:
            raise _Hole("the journal goes on with another log")
        if self._following and begin.group_count != self.group_count:
            raise _Hole(f"the journal ends with group {self.group_count} and goes on after {begin.group_count}")
        self._following = True

    def _apply_group(self, group: Group) -> None:
        if group.group_count <= self.group_count:
            return
        if group.group_count != self.group_count + 1:
            raise _Hole(f"the journal has a hole: group {group.group_count} follows group {self.group_count}")
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
