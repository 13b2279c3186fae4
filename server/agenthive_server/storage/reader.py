"""Answers questions on a SQLite connection. Runs in a reading lane."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from agenthive_server.kernel.events import Event
from agenthive_server.kernel.ports import LogBounds, Query
from agenthive_server.kernel.records import LAST_CODE_POINT, Key, Kind, Record
from agenthive_server.kernel.tasks import TERMINAL

from . import statements
from .codec import unpack, unpack_events
from .columns import SHAPES, conditions
from .memory import cursor_compacted

_KEYS_AT_ONCE = (64, 8, 1)


@contextmanager
def snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """Let several statements see one state of the database."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("COMMIT")


def get(db: sqlite3.Connection, kind: Kind, keys: Sequence[Key]) -> list[Record | None]:
    """Return the records of these keys, None where there is none."""
    found: dict[Key, Record] = {}
    with snapshot(db):
        start = 0
        for size in _KEYS_AT_ONCE:
            while len(keys) - start >= size:
                values = [part for key in keys[start : start + size] for part in key]
                for record in _records(kind, db.execute(statements.select_records(kind, size), values)):
                    found[record.key] = record
                start += size
    return [found.get(key) for key in keys]


def scan(db: sqlite3.Connection, kind: Kind, open_only: bool) -> list[Record]:
    """Return all records of a kind, with `open_only` only tasks that are not over."""
    return _records(kind, db.execute(statements.scan_records(kind, open_only=open_only and kind is Kind.TASK)))


def expired(db: sqlite3.Connection, kind: Kind, before: float, limit: int) -> list[Record]:
    """Return records past their time, the longest past first."""
    shape = SHAPES[kind]
    if "due_time" not in (*shape.fixed, *shape.changing):
        return []
    return _records(kind, db.execute(statements.expired_records(kind), (before, limit)))


def query(db: sqlite3.Connection, kind: Kind, asked: Query) -> list[Record]:
    """Return a page."""
    shape = SHAPES[kind]
    columns = {*shape.fixed, *shape.changing}
    equal = conditions(asked)
    if not columns.issuperset(equal) or (asked.states and "state" not in columns):
        return []
    if asked.labels and "labels" not in columns:
        return []
    text = statements.query_records(
        kind,
        tuple(equal),
        states=len(asked.states),
        # So that open tasks are found among any number of those that are over.
        open_only=kind is Kind.TASK and _only_open(asked),
        labels=len(asked.labels),
        prefix=bool(asked.prefix),
        after=asked.after is not None,
    )
    values: list[Any] = [asked.namespace, *equal.values(), *map(str, asked.states)]
    for label in asked.labels.items():
        values += label
    if asked.prefix:
        # Ids sort by code point, and this is the last of them: no character, so in no id.
        values += asked.prefix, f"{asked.prefix}{LAST_CODE_POINT}"
    if asked.after is not None:
        values += asked.after if shape.newest_first else asked.after[1:]
    return _records(kind, db.execute(text, [*values, asked.limit]))


def _only_open(asked: Query) -> bool:
    return bool(asked.agent_id) or (bool(asked.states) and asked.states.isdisjoint(TERMINAL))


def _records(kind: Kind, rows: sqlite3.Cursor) -> list[Record]:
    return [unpack(kind, *row) for row in rows.fetchall()]


def read_events(db: sqlite3.Connection, after: int, limit: int) -> list[Event]:
    """Return events after a sequence, whole change sets; raises `CursorCompacted`."""
    found: list[Event] = []
    with snapshot(db):
        if after >= _head(db):
            return []
        for row in db.execute(statements.EVENTS_AFTER, (after,)):
            if not found and row[1] > after + 1:
                break
            found += unpack_events(*row)
            if len(found) >= limit:
                break
        if not found:
            raise cursor_compacted(_oldest(db))
    # A reader may stand inside a change set, though none is ever left there.
    return found if found[0].sequence == after + 1 else [event for event in found if event.sequence > after]


def sequence_at(db: sqlite3.Connection, time: float) -> int:
    """Return the sequence before the first kept event at or after a time, by halving: times never go back."""
    with snapshot(db):
        low, high = _oldest(db), _head(db) + 1
        while low < high:
            first, last, then = db.execute(statements.EVENTS_AT, ((low + high) // 2,)).fetchone()
            if then < time:
                low = last + 1
            else:
                high = first
    return low - 1


def bounds(db: sqlite3.Connection) -> LogBounds:
    """Return the ends of the event log."""
    with snapshot(db):
        log_id, head, _, _ = db.execute(statements.SELECT_META).fetchone()
        return LogBounds(oldest=_oldest(db), head=head, log_id=log_id)


def _head(db: sqlite3.Connection) -> int:
    head: int = db.execute(statements.SELECT_META).fetchone()[1]
    return head


def _oldest(db: sqlite3.Connection) -> int:
    row = db.execute(statements.OLDEST_EVENTS).fetchone()
    oldest: int = row[0] if row else _head(db) + 1
    return oldest
