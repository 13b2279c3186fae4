"""Writes groups of change sets on a SQLite connection, and knows the head of the log. Runs in the writer's lane."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from agenthive_server.kernel.changes import COMMITTED, ChangeSet, Conflicted, Outcome, Rejected
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.records import Key, Kind, Ref
from agenthive_server.telemetry import Histogram

from . import statements
from .codec import pack_events
from .fold import Fold, Rows, expectations
from .rows import insert_row, update_row
from .transaction import InDoubt, environment, finish, transaction, undo

_REFUSED = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.NotSupportedError,
    TypeError,
    ValueError,
    OverflowError,
)
"""What the driver, the codec or the database raise when the fault lies with the data."""


class _Stale(Exception):
    """A row is not as the group takes it to be."""


@dataclass(slots=True)
class Draft:
    """What a transaction is about to add to the log, and what will be answered."""

    head: int
    time: float
    outcomes: list[Outcome] = field(default_factory=list)
    # The events of each change set, and the sequence of the first.
    events: list[tuple[Sequence[Event], int]] = field(default_factory=list)
    written: bool = False
    # Revisions known before, and those found or written in this transaction, of rows that are checked often.
    known: Mapping[Ref, int] = field(default_factory=dict)
    found: dict[Ref, int] = field(default_factory=dict)

    def stamp(self) -> None:
        """Set what the events got in the transaction, now that it is committed."""
        for events, first in self.events:
            last = first + len(events) - 1
            for sequence, event in enumerate(events, first):
                event.sequence, event.last, event.time = sequence, last, self.time


class GroupInDoubt(InDoubt):
    """COMMIT failed; the group is there if the group count stands at `group_count` once the database is open again."""

    def __init__(self, message: str, draft: Draft, group_count: int) -> None:
        super().__init__(message)
        self.draft = draft
        self.group_count = group_count


TOGETHER = (128, 32, 8, 1)
"""Rows written by one statement: a statement costs a turn of the interpreter's lock, a row then costs half."""

CHECKED = frozenset({Kind.AGENT, Kind.SESSION})
"""Kinds whose rows are checked with almost every change of another; their revisions are remembered."""

MOST_REMEMBERED = 50_000


class Writer:
    """Writes groups. `load` is called with every new connection before anything else.

    Nobody else writes to the file, so the revisions this writer committed or found are still those of the rows.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[Ref, int] = {}
        self.log_id = ""
        self.head = 0
        self.head_time = 0.0
        self.group_count = 0
        # How long COMMIT takes: all but a little of it is the sync of the disk.
        self.syncs = Histogram()

    def load(self, db: sqlite3.Connection) -> None:
        """Read the head of the log."""
        self._known.clear()
        self.log_id, self.head, self.head_time, self.group_count = db.execute(statements.SELECT_META).fetchone()

    def commit(self, db: sqlite3.Connection, group: Sequence[ChangeSet]) -> list[Outcome]:
        """Write a group and return its outcomes.

        Raises `StoreUnavailable` when nothing was written, `GroupInDoubt` when that is not known.
        """
        with environment(db):
            draft = self._write(db, group)
            if not draft.written:
                undo(db)
                return draft.outcomes
            db.execute(statements.UPDATE_META, (draft.head, draft.time, self.group_count + 1))
        began = self._clock.monotonic()
        try:
            finish(db)
        except InDoubt as error:
            raise GroupInDoubt(error.message, draft, self.group_count + 1) from error
        self.syncs.observe(self._clock.monotonic() - began)
        self.head, self.head_time, self.group_count = draft.head, draft.time, self.group_count + 1
        self._remember(draft)
        draft.stamp()
        return draft.outcomes

    def _write(self, db: sqlite3.Connection, group: Sequence[ChangeSet]) -> Draft:
        for write in (_write_together, _write_validated):
            draft = self._begin(db)
            try:
                write(db, group, draft)
            except (_Stale, *_REFUSED):
                undo(db)
            else:
                return draft
        draft = self._begin(db)
        _write_one_by_one(db, group, draft)
        return draft

    def _begin(self, db: sqlite3.Connection) -> Draft:
        db.execute("BEGIN IMMEDIATE")
        return Draft(self.head, max(self.head_time, self._clock.now()), known=self._known)

    def _remember(self, draft: Draft) -> None:
        if len(self._known) > MOST_REMEMBERED:
            self._known.clear()
        self._known.update(draft.found)


def _write_together(db: sqlite3.Connection, group: Sequence[ChangeSet], draft: Draft) -> None:
    """Write a group as if every row were as expected; raises `_Stale` when one is not."""
    fold = Fold()
    for changes in group:
        if fold.add(changes):
            raise _Stale
    _put(db, fold, draft)
    draft.outcomes.extend([COMMITTED] * len(group))
    _finish_draft(db, draft, fold, group)


def _write_validated(db: sqlite3.Connection, group: Sequence[ChangeSet], draft: Draft) -> None:
    """Judge every change set by the rows as they are, then write those that stand."""
    fold = Fold(_revisions(db, group))
    stand: list[ChangeSet] = []
    for changes in group:
        stale = fold.add(changes)
        draft.outcomes.append(Conflicted(stale) if stale else COMMITTED)
        if not stale:
            stand.append(changes)
    _put(db, fold, draft)
    _finish_draft(db, draft, fold, stand)


def _write_one_by_one(db: sqlite3.Connection, group: Sequence[ChangeSet], draft: Draft) -> None:
    """Write change sets one after the other, so that only the one is refused whose data the database refuses."""
    for changes in group:
        db.execute("SAVEPOINT member")
        alone = Draft(draft.head, draft.time)
        try:
            _write_validated(db, [changes], alone)
        except _REFUSED as error:
            db.execute("ROLLBACK TO member")
            changes.void = True
            draft.outcomes.append(Rejected(f"{type(error).__name__}: {error}"))
        else:
            draft.head = alone.head
            draft.outcomes += alone.outcomes
            draft.events += alone.events
            draft.written |= alone.written
        db.execute("RELEASE member")


def _revisions(db: sqlite3.Connection, group: Sequence[ChangeSet]) -> dict[Ref, int]:
    found: dict[Ref, int] = {}
    for changes in group:
        for ref, _ in expectations(changes):
            if ref not in found:
                row = db.execute(statements.select_revision(ref[0]), ref[1]).fetchone()
                found[ref] = row[0] if row else 0
    return found


def _put(db: sqlite3.Connection, fold: Fold, draft: Draft) -> None:
    for kind, rows in fold.rows().items():
        for key, revision in rows.checks:
            _check(db, kind, key, revision, draft)
        _put_rows(db, kind, rows)
        if kind in CHECKED:
            draft.found.update(((kind, key), 0) for key, _ in rows.deletes)
            draft.found.update((record.ref, record.revision) for record, _ in rows.updates)
            draft.found.update((record.ref, record.revision) for record in rows.inserts)


def _check(db: sqlite3.Connection, kind: Kind, key: Key, revision: int, draft: Draft) -> None:
    known = draft.known.get((kind, key))
    if known is None:
        row = db.execute(statements.select_revision(kind), key).fetchone()
        known = row[0] if row else 0
        if kind in CHECKED:
            draft.found[kind, key] = known
    if known != revision:
        raise _Stale


def _put_rows(db: sqlite3.Connection, kind: Kind, rows: Rows) -> None:
    if rows.deletes:
        keys = [(*key, revision) for key, revision in rows.deletes]
        _require(db.executemany(statements.delete_record(kind), keys), len(keys))
    if rows.updates:
        to_row = update_row(kind)
        updates = [to_row(record, before) for record, before in rows.updates]
        _write_rows(db, partial(statements.update_records, kind), updates)
    if rows.inserts:
        to_new_row = insert_row(kind)
        _write_rows(db, partial(statements.insert_records, kind), [to_new_row(record) for record in rows.inserts])


def _write_rows(db: sqlite3.Connection, statement: Callable[[int], str], rows: Sequence[Sequence[Any]]) -> None:
    """Insert or update rows, few statements for many of them; raises `_Stale` when one is not there to be updated."""
    start = 0
    for count in TOGETHER:
        while len(rows) - start >= count:
            values = list(chain.from_iterable(rows[start : start + count]))
            _require(db.execute(statement(count), values), count)
            start += count


def _require(cursor: sqlite3.Cursor, rows: int) -> None:
    if cursor.rowcount != rows:
        raise _Stale


def _finish_draft(db: sqlite3.Connection, draft: Draft, fold: Fold, members: Sequence[ChangeSet]) -> None:
    rows: list[Sequence[Any]] = []
    for changes in members:
        if not changes.events:
            continue
        first, last = draft.head + 1, draft.head + len(changes.events)
        draft.events.append((changes.events, first))
        draft.head = last
        rows.append((last, first, draft.time, pack_events(changes.events)))
    _write_rows(db, statements.insert_events, rows)
    draft.written = bool(rows) or not fold.empty


def compact(db: sqlite3.Connection, before: int, limit: int) -> int:
    """Remove whole change sets that end below `before`; returns the oldest sequence left."""
    head: int = db.execute(statements.SELECT_META).fetchone()[1]
    oldest = db.execute(statements.OLDEST_EVENTS).fetchone()
    if oldest is None:
        return head + 1
    first, last = oldest
    if last >= before:
        return int(first)
    with transaction(db):
        db.execute(statements.DELETE_EVENTS, (min(before - 1, max(last, first + limit - 1)),))
    left = db.execute(statements.OLDEST_EVENTS).fetchone()
    return int(left[0]) if left else head + 1
