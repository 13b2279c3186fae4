"""The texts of statements of groups. What they do is told in `bulk.py`; here, which values they take in which order.

A part is what is done to the rows of one kind. Its values are columns of these rows:

    check, delete   namespace, id, the revision that must be there
    insert          the columns of the table
    replace         the columns of the table, the revision that must be there
    update          revision, the changing columns, body, namespace, id, the revision that must be there

Those of a statement that writes come after four others: the time or nothing, the channel, the number of events, what
other replicas should know of it. Last come the events: last and first counted from the head of the log, body.

Bytes and times are sent as a list for each column, all other columns together as the text of one JSON array, which
comes before them: the driver looks at every member of a list several times, and took a tenth of a task for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from agenthive_server.kernel.records import Kind
from agenthive_server.storage.columns import SHAPES
from agenthive_server.storage.schema import TABLES

from .statements import NOW, type_name

Part = tuple[Kind, str]

_LISTED: Final = frozenset({"BYTEA", "DOUBLE PRECISION"})
"""Types that JSON does not hold, or not all values of."""

_KEY: Final = ("namespace", "id")
_EXPECTED: Final = "expected"
KEYS: Final = dict.fromkeys(_KEY, "TEXT")
EVENTS: Final = {"last": "BIGINT", "first": "BIGINT", "body": "BYTEA"}
_SAME: Final = "r.namespace = n.namespace AND r.id = n.id"


@lru_cache(maxsize=256)
def comparing(parts: tuple[Part, ...]) -> str:
    """Return a statement that only compares, and returns what is not as expected."""
    places = _Places(1)
    return _all(_part(part, places)[0] for part in parts)


@lru_cache(maxsize=1_024)
def writing(parts: tuple[Part, ...], *, told: bool, ring: bool) -> str:
    """Return a statement that writes, with events if something is told of, and notifies if it is to ring."""
    places = _Places(5)
    made = [_part(part, places) for part in parts]
    stale = f"stale AS MATERIALIZED ({_all(expectation for expectation, _ in made)})"
    writes = [
        f"{kind.value}_{deed} AS ({write})" for (kind, deed), (_, write) in zip(parts, made, strict=True) if write
    ]
    if told:
        events = places.take(EVENTS)
        placed = "gate.head + n.last, gate.head + n.first, gate.time, n.body"
        writes.append(
            f"told AS (INSERT INTO event (last, first, time, body) SELECT {placed} FROM gate, {_rows(events)})"  # noqa: S608 - names of the schema
        )
    rung = ", pg_notify($2::text, (gate.head + $3::bigint)::text)" if ring else " WHERE $2::text IS NOT NULL"
    return (
        f"WITH {', '.join((stale, _GATE, *writes, _NOTED, _MOVED))} SELECT '' AS kind, log_id,"  # noqa: S608 - names of the schema
        f" pg_current_xact_id()::text, head, group_count, time FROM gate{rung}"
        " UNION ALL SELECT *, NULL, NULL FROM stale"
    )


@lru_cache(maxsize=256)
def revisions(kinds: tuple[Kind, ...]) -> str:
    """Return a statement that selects kind, namespace, id and revision: namespaces and ids of each kind."""
    places = _Places(1)
    return " UNION ALL ".join(_there(kind, places.take(KEYS)) for kind in kinds)


def arguments(types: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> list[Any]:
    """Return what stands for rows with columns of these types; raises TypeError or ValueError for what JSON lacks."""
    told: list[Sequence[Any]] = []
    listed: list[Sequence[Any]] = []
    for of, column in zip(types.values(), zip(*rows, strict=True), strict=True):
        (listed if of in _LISTED else told).append(column)
    return [msgspec.json.encode(told).decode(), *listed]


@cache
def columns(kind: Kind, deed: str) -> Mapping[str, str]:
    """Return the types of the columns of a part by their names, in order."""
    table = TABLES[kind]
    of: Mapping[str, Sequence[str]] = {
        "check": _KEY,
        "delete": _KEY,
        "insert": table.c.keys(),
        "replace": table.c.keys(),
        "update": ("revision", *SHAPES[kind].changing, "body", *_KEY),
    }
    named = {name: type_name(table, name) for name in of[deed]}
    return named if deed == "insert" else {**named, _EXPECTED: "BIGINT"}


_GATE: Final = (
    f"gate AS MATERIALIZED (SELECT log_id, head, group_count, greatest(head_time, {NOW}) AS time"  # noqa: S608 - no values
    " FROM meta WHERE id = 1 AND NOT EXISTS (SELECT FROM stale))"
)
"""One row if everything is as expected, else none: whatever is written is joined with it."""

_MOVED: Final = (
    "moved AS (UPDATE meta SET head = gate.head + $3::bigint, head_time = gate.time,"
    " group_count = gate.group_count + 1 FROM gate WHERE meta.id = 1)"
)


_NOTED: Final = (
    "noted AS (INSERT INTO change (group_count, head, time, touched)"
    " SELECT gate.group_count + 1, gate.head + $3::bigint, gate.time, $4::bytea FROM gate)"
)


class _Column(NamedTuple):
    """What yields the values of a column, one after the other, and what they are cast to."""

    values: str
    of: str


class _Places:
    """Numbers placeholders in the order in which they are taken."""

    def __init__(self, first: int) -> None:
        self._next = first

    def take(self, types: Mapping[str, str]) -> dict[str, _Column]:
        """Return columns of these types by their names; see `arguments`."""
        told, taken = f"${self._place()}::jsonb", dict[str, _Column]()
        number = 0
        for name, of in types.items():
            if of in _LISTED:
                taken[name] = _Column(f"unnest(${self._place()}::{of}[])", of)
            else:
                taken[name] = _Column(f"jsonb_array_elements_text({told} -> {number})", of)
                number += 1
        return taken

    def _place(self) -> int:
        self._next += 1
        return self._next - 1


def _rows(columns: Mapping[str, _Column]) -> str:
    """Return columns as rows named `n`."""
    cast = ", ".join(f"v.{name}::{column.of} AS {name}" for name, column in columns.items())
    values = ", ".join(column.values for column in columns.values())
    return f"(SELECT {cast} FROM ROWS FROM ({values}) AS v ({', '.join(columns)})) AS n"  # noqa: S608 - names of the schema


def _all(selects: Iterable[str]) -> str:
    nothing = "SELECT '' AS kind, '' AS namespace, '' AS id, 0::bigint AS revision WHERE false"
    return " UNION ALL ".join(selects) or nothing


def _part(part: Part, places: _Places) -> tuple[str, str]:
    """Return the text that compares the rows of a part, and the one that writes them, if it does."""
    kind, deed = part
    lists = places.take(columns(kind, deed))
    if deed == "insert":
        names = ", ".join(lists)
        return _there(kind, lists), f"INSERT INTO {kind.value} ({names}) SELECT n.* FROM gate, {_rows(lists)}"  # noqa: S608 - names of the schema
    given = {name: place for name, place in lists.items() if name != _EXPECTED}
    if deed == "delete":
        return _changed(kind, lists), f"DELETE FROM {kind.value} AS r USING gate, {_rows(given)} WHERE {_SAME}"  # noqa: S608 - names of the schema
    changes = ", ".join(f"{name} = n.{name}" for name in given if name not in _KEY)
    update = f"UPDATE {kind.value} AS r SET {changes} FROM gate, {_rows(given)} WHERE {_SAME}"  # noqa: S608 - names of the schema
    return _changed(kind, lists), update if changes else ""


def _there(kind: Kind, lists: Mapping[str, _Column]) -> str:
    """Return what selects the rows that are there."""
    rows = _rows({name: lists[name] for name in _KEY})
    table = kind.value
    return f"SELECT '{table}' AS kind, r.namespace, r.id, r.revision FROM {rows} JOIN {table} AS r ON {_SAME}"  # noqa: S608 - names of the schema


def _changed(kind: Kind, lists: Mapping[str, _Column]) -> str:
    """Return what selects the rows whose revision is another one, 0 for a row that is not there."""
    rows = _rows({name: lists[name] for name in (*_KEY, _EXPECTED)})
    return (
        f"SELECT '{kind.value}' AS kind, n.namespace, n.id, coalesce(r.revision, 0) AS revision FROM {rows}"  # noqa: S608 - names of the schema
        f" LEFT JOIN {kind.value} AS r ON {_SAME} WHERE coalesce(r.revision, 0) <> n.expected"
    )
