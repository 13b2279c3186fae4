"""A group as one statement: every row it names is compared with what is stored, and if all are as expected, everything
is written; else nothing is, and the rows that are not as expected are returned.

The statement is run in a transaction that holds the head of the log (`statements.BEGIN`). Its parts see one state of
the database, that after the lock was taken, so the comparison is exact. A group of any size is one round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.records import Kind, Ref
from agenthive_server.storage.codec import pack_events
from agenthive_server.storage.columns import SHAPES
from agenthive_server.storage.fold import Fold, Rows
from agenthive_server.storage.rows import insert_row, update_row
from agenthive_server.storage.schema import TABLES

from .dial import Row
from .statements import NOW, type_name

_KEY: Final = ("namespace", "id")
_KEY_TYPES: Final = ("TEXT", "TEXT")

Part = tuple[Kind, str]
"""What is done to a kind's table: `expect`, `insert`, `replace`, `update` or `delete`."""

Columns = list[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Bulk:
    """A statement with its arguments; `members` are those whose events it adds, in order."""

    text: str
    arguments: list[Any]
    members: list[ChangeSet]
    written: bool


@dataclass(frozen=True, slots=True)
class Written:
    """What the statement tells when it has written: the log as it was, the time of the group, the transaction's id."""

    log_id: str
    head: int
    group_count: int
    time: float
    transaction: str


def build(
    fold: Fold, members: Iterable[ChangeSet], *, fence: tuple[Ref, int] | None, channel: str, now: float | None
) -> Bulk:
    """Return the statement that writes what is folded together, with the events of its members.

    `fence` is one more row that must have this revision. Without a channel nobody is notified. Raises what the codec
    raises for what cannot be written.
    """
    by_kind = dict(fold.rows())
    if fence is not None:
        (kind, key), revision = fence
        by_kind.setdefault(kind, Rows()).checks.append((key, revision))
    parts: list[Part] = []
    columns: Columns = []
    for kind in sorted(by_kind):
        for deed, values in _deeds(kind, by_kind[kind]):
            parts.append((kind, deed))
            columns += values
    told = [changes for changes in members if changes.events]
    if told:
        columns += _events(told)
    written = bool(told) or not fold.empty
    arguments: list[Any] = [now, channel, sum(len(changes.events) for changes in told)]
    if not written:
        return Bulk(_reading(tuple(parts)), list(columns), told, written)
    text = _writing(tuple(parts), told=bool(told), ring=bool(told and channel))
    return Bulk(text, [*arguments, *columns], told, written)


def read(rows: Sequence[Row]) -> Written | dict[Ref, int]:
    """Return what was written, or the rows that are not as expected with the revisions they have."""
    if len(rows) == 1 and not rows[0][0]:
        _, log_id, transaction, head, group_count, time = rows[0]
        return Written(log_id, head, group_count, time, transaction)
    return {(Kind(kind), (namespace, name)): revision for kind, namespace, name, revision, *_ in rows}


def _deeds(kind: Kind, rows: Rows) -> Iterable[tuple[str, Columns]]:
    """Yield what is to be done to a table, each with its columns of values."""
    expected = [(*key, before) for key, before in (*rows.checks, *rows.deletes)]
    expected += [(*record.key, before) for record, before in rows.updates]
    gone = {key for key, _ in rows.deletes}
    back = [record for record in rows.inserts if record.key in gone]
    new = [record for record in rows.inserts if record.key not in gone] if back else rows.inserts
    expected += [(*record.key, 0) for record in new]
    yield "expect", list(zip(*expected, strict=True))
    if new:
        yield "insert", list(zip(*map(insert_row(kind), new), strict=True))
    if back:
        # Removed and made anew within the group: a row that keeps its place and nothing else.
        yield "replace", list(zip(*map(insert_row(kind), back), strict=True))
        gone.difference_update(record.key for record in back)
    if rows.updates:
        to_row = update_row(kind)
        # The revision before is compared already.
        yield "update", list(zip(*(to_row(record, before)[:-1] for record, before in rows.updates), strict=True))
    if gone:
        yield "delete", list(zip(*gone, strict=True))


def _events(members: Sequence[ChangeSet]) -> Columns:
    """Return the events of change sets with places counted from the head of the log, which the statement knows."""
    rows, last = [], 0
    for changes in members:
        first, last = last + 1, last + len(changes.events)
        rows.append((last, first, pack_events(changes.events)))
    return list(zip(*rows, strict=True))


# The text


class _Places:
    """Numbers placeholders in the order in which they are asked for."""

    def __init__(self, first: int) -> None:
        self._next = first

    def rows(self, names: Sequence[str], types: Sequence[str]) -> str:
        """Return lists of values as rows named `n`."""
        lists = []
        for of in types:
            lists.append(f"${self._next}::{of}[]")
            self._next += 1
        return f"unnest({', '.join(lists)}) AS n ({', '.join(names)})"


@lru_cache(maxsize=256)
def _reading(parts: tuple[Part, ...]) -> str:
    """Return the text of a statement that only compares."""
    places = _Places(1)
    return _all(_expectation(kind, places) for kind, _ in parts)


@lru_cache(maxsize=1_024)
def _writing(parts: tuple[Part, ...], *, told: bool, ring: bool) -> str:
    places = _Places(4)
    expectations: list[str] = []
    writes: list[str] = []
    for kind, deed in parts:
        if deed == "expect":
            expectations.append(_expectation(kind, places))
        else:
            writes.append(f"{kind.value}_{deed} AS ({_WRITERS[deed](kind, places)})")
    stale = f"stale AS MATERIALIZED ({_all(expectations)})"
    if told:
        rows = places.rows(("last", "first", "body"), ("BIGINT", "BIGINT", "BYTEA"))
        placed = "gate.head + n.last, gate.head + n.first, gate.time, n.body"
        writes.append(f"told AS (INSERT INTO event (last, first, time, body) SELECT {placed} FROM gate, {rows})")  # noqa: S608 - names of the schema
    rung = ", pg_notify($2::text, (gate.head + $3::bigint)::text)" if ring else " WHERE $2::text IS NOT NULL"
    return (
        f"WITH {', '.join((stale, _GATE, *writes, _MOVED))} SELECT '' AS kind, log_id, pg_current_xact_id()::text,"  # noqa: S608 - names of the schema
        f" head, group_count, time FROM gate{rung} UNION ALL SELECT *, NULL, NULL FROM stale"
    )


def _all(expectations: Iterable[str]) -> str:
    nothing = "SELECT '' AS kind, '' AS namespace, '' AS id, 0::bigint AS revision WHERE false"
    return " UNION ALL ".join(expectations) or nothing


_GATE: Final = (
    f"gate AS MATERIALIZED (SELECT log_id, head, group_count, greatest(head_time, {NOW}) AS time"  # noqa: S608 - no values
    " FROM meta WHERE id = 1 AND NOT EXISTS (SELECT FROM stale))"
)
"""One row if everything is as expected, else none: whatever is written is joined with it."""

_MOVED: Final = (
    "moved AS (UPDATE meta SET head = gate.head + $3::bigint, head_time = gate.time,"
    " group_count = gate.group_count + 1 FROM gate WHERE meta.id = 1)"
)


def _expectation(kind: Kind, places: _Places) -> str:
    rows = places.rows((*_KEY, "expected"), (*_KEY_TYPES, "BIGINT"))
    return (
        f"SELECT '{kind.value}' AS kind, n.namespace, n.id, coalesce(r.revision, 0) AS revision FROM {rows}"  # noqa: S608 - names of the schema
        f" LEFT JOIN {kind.value} AS r ON r.namespace = n.namespace AND r.id = n.id"
        " WHERE coalesce(r.revision, 0) <> n.expected"
    )


def _insert(kind: Kind, places: _Places) -> str:
    names = TABLES[kind].c.keys()
    return f"INSERT INTO {kind.value} ({', '.join(names)}) SELECT n.* FROM gate, {_rows(kind, names, places)}"  # noqa: S608 - names of the schema


def _replace(kind: Kind, places: _Places) -> str:
    names = TABLES[kind].c.keys()
    return _set(kind, names, [name for name in names if name not in _KEY], places)


def _update(kind: Kind, places: _Places) -> str:
    changing = ["revision", *SHAPES[kind].changing, "body"]
    return _set(kind, [*changing, *_KEY], changing, places)


def _set(kind: Kind, given: Sequence[str], changing: Sequence[str], places: _Places) -> str:
    changes = ", ".join(f"{name} = n.{name}" for name in changing)
    return (
        f"UPDATE {kind.value} AS r SET {changes} FROM gate, {_rows(kind, given, places)}"  # noqa: S608 - names of the schema
        " WHERE r.namespace = n.namespace AND r.id = n.id"
    )


def _delete(kind: Kind, places: _Places) -> str:
    rows = places.rows(_KEY, _KEY_TYPES)
    return f"DELETE FROM {kind.value} AS r USING gate, {rows} WHERE r.namespace = n.namespace AND r.id = n.id"  # noqa: S608 - names of the schema


def _rows(kind: Kind, names: Sequence[str], places: _Places) -> str:
    return places.rows(names, [type_name(TABLES[kind], name) for name in names])


_WRITERS: Final[Mapping[str, Any]] = {"insert": _insert, "replace": _replace, "update": _update, "delete": _delete}


# What is stored of the rows a group names


def revisions(refs: Iterable[Ref]) -> tuple[str, Columns]:
    """Return the statement that selects kind, namespace, id and revision of rows that are there, with its arguments."""
    by_kind: dict[Kind, list[tuple[str, str]]] = {}
    for kind, key in refs:
        by_kind.setdefault(kind, []).append(key)
    kinds = sorted(by_kind)
    columns: Columns = [column for kind in kinds for column in zip(*by_kind[kind], strict=True)]
    return _revisions(tuple(kinds)), columns


@lru_cache(maxsize=256)
def _revisions(kinds: tuple[Kind, ...]) -> str:
    places = _Places(1)
    return " UNION ALL ".join(
        f"SELECT '{kind.value}' AS kind, r.namespace, r.id, r.revision FROM {places.rows(_KEY, _KEY_TYPES)}"  # noqa: S608 - names of the schema
        f" JOIN {kind.value} AS r ON r.namespace = n.namespace AND r.id = n.id"
        for kind in kinds
    )
