"""Answers questions. Each is one statement, and so sees one state of the database without a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from agenthive_server.kernel.events import Event
from agenthive_server.kernel.ports import LogBounds, Query
from agenthive_server.kernel.records import LAST_CODE_POINT, Key, Kind, Record
from agenthive_server.kernel.tasks import TERMINAL
from agenthive_server.storage.codec import unpack, unpack_events
from agenthive_server.storage.columns import SHAPES, conditions
from agenthive_server.storage.memory import cursor_compacted

from . import statements
from .dial import Connection, Row

_SCANNED_AT_ONCE: Final = 1_000


def storable(*texts: str) -> bool:
    """Whether PostgreSQL can hold these texts; what it cannot hold is in none of its rows."""
    return all("\x00" not in text and (text.isascii() or _is_unicode(text)) for text in texts)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


async def get(db: Connection, kind: Kind, keys: Sequence[Key]) -> list[Record | None]:
    """Return the records of these keys, None where there is none."""
    asked = [key for key in dict.fromkeys(keys) if storable(*key)]
    if not asked:
        return [None] * len(keys)
    rows = await db.fetch(statements.select_records(kind), *zip(*asked, strict=True))
    found = {record.key: record for record in _records(kind, rows)}
    return [found.get(key) for key in keys]


async def scan(db: Connection, kind: Kind, open_only: bool) -> list[Record]:
    """Return all records of a kind, with `open_only` only tasks that are not over."""
    text = statements.scan_records(kind, open_only=open_only and kind is Kind.TASK)
    async with db.transaction(isolation="repeatable_read", readonly=True):
        # Many rows may take their time, and others wait for none of them.
        await db.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'; SET LOCAL statement_timeout = '60s'")
        return [unpack(kind, *row) async for row in db.cursor(text, prefetch=_SCANNED_AT_ONCE)]


async def cut(db: Connection, kinds: Sequence[Kind]) -> tuple[int, list[list[Record]]]:
    """Return where the log stands and all records of some kinds as of then; of tasks those that are not over."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        await db.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'; SET LOCAL statement_timeout = '60s'")
        _, head, _, _ = await position(db)
        found = []
        for kind in kinds:
            text = statements.scan_records(kind, open_only=kind is Kind.TASK)
            found.append([unpack(kind, *row) async for row in db.cursor(text, prefetch=_SCANNED_AT_ONCE)])
        return head, found


async def expired(db: Connection, kind: Kind, before: float, limit: int) -> list[Record]:
    """Return records past their time, the longest past first."""
    shape = SHAPES[kind]
    if "due_time" not in (*shape.fixed, *shape.changing):
        return []
    return _records(kind, await db.fetch(statements.expired_records(kind), before, limit))


async def query(db: Connection, kind: Kind, asked: Query) -> list[Record]:
    """Return a page."""
    shape = SHAPES[kind]
    columns = {*shape.fixed, *shape.changing}
    equal = conditions(asked)
    if not columns.issuperset(equal) or (asked.states and "state" not in columns):
        return []
    if asked.labels and "labels" not in columns:
        return []
    after = asked.after[1] if asked.after is not None else ""
    given = (asked.namespace, *equal.values(), *asked.states, asked.prefix, after)
    if not storable(*given, *asked.labels, *asked.labels.values()):
        return []
    text = statements.query_records(
        kind,
        tuple(equal),
        states=bool(asked.states),
        # So that open tasks are found among any number of those that are over.
        open_only=kind is Kind.TASK and _only_open(asked),
        labels=bool(asked.labels),
        prefix=bool(asked.prefix),
        after=asked.after is not None,
    )
    values: list[Any] = [asked.namespace, *equal.values()]
    if asked.states:
        values.append(list(map(str, asked.states)))
    if asked.labels:
        values.append(msgspec.json.encode(asked.labels).decode())
    if asked.prefix:
        # Ids sort by code point, and this is the last of them: no character, so in no id.
        values += asked.prefix, f"{asked.prefix}{LAST_CODE_POINT}"
    if asked.after is not None:
        values += asked.after if shape.newest_first else asked.after[1:]
    return _records(kind, await db.fetch(text, *values, asked.limit))


def _only_open(asked: Query) -> bool:
    return bool(asked.agent_id) or (bool(asked.states) and asked.states.isdisjoint(TERMINAL))


def _records(kind: Kind, rows: Sequence[Row]) -> list[Record]:
    return [unpack(kind, *row) for row in rows]


async def read_events(db: Connection, after: int, limit: int) -> list[Event]:
    """Return events after a sequence, whole change sets; raises `CursorCompacted`."""
    rows = await db.fetch(statements.EVENTS_AFTER, after, max(limit, 1), max(limit, 1))
    head, _, first, *_ = rows[0]
    if after >= head:
        return []
    if first is None or first > after + 1:
        raise cursor_compacted((await bounds(db)).oldest)
    found: list[Event] = []
    for row in rows:
        found += unpack_events(*row[1:])
    # A reader may stand inside a change set, though none is ever left there.
    return found if found[0].sequence == after + 1 else [event for event in found if event.sequence > after]


async def sequence_at(db: Connection, time: float) -> int:
    """Return the sequence before the first kept event at or after a time, by halving: times never go back."""
    ends = await bounds(db)
    low, high = ends.oldest, ends.head + 1
    while low < high:
        row = await db.fetchrow(statements.EVENTS_AT, (low + high) // 2)
        if row is None:
            # Compacted meanwhile, all of it.
            return ends.head
        first, last, then = row
        if then < time:
            low = last + 1
        else:
            high = first
    return low - 1


async def bounds(db: Connection) -> LogBounds:
    """Return the ends of the event log."""
    log_id, head, oldest, _ = await position(db)
    return LogBounds(oldest=oldest, head=head, log_id=log_id)


async def position(db: Connection) -> tuple[str, int, int, int]:
    """Return the id of the log, its head, its oldest event (head + 1 for none) and the number of groups."""
    row = await db.fetchrow(statements.BOUNDS)
    log_id, head, oldest, group_count = row if row is not None else ("", 0, 1, 0)
    return log_id, head, oldest, group_count


async def compact(db: Connection, before: int, limit: int) -> int:
    """Remove whole change sets that end below `before`; returns the oldest sequence left."""
    row = await db.fetchrow(statements.OLDEST_EVENTS)
    if row is not None and row[1] < before:
        first, last = row
        await db.execute(statements.DELETE_EVENTS, min(before - 1, max(last, first + limit - 1)))
    return (await bounds(db)).oldest
