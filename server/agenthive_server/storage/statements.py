"""Every statement, named. Their texts are built from the schema (`building.py`).

Those asked for from the start are built beforehand (`compiled.py`, by `make gen`): a server that runs tasks, and is not
asked for pages of them by some condition, gets by without SQLAlchemy, which takes 11 MiB and a tenth of a second.

Placeholders are filled by position, in the order each docstring gives.
"""

from __future__ import annotations

from functools import cache, lru_cache

from agenthive_server.kernel.records import Kind

from .columns import SHAPES
from .compiled import TABLES, TEXTS


def create_all() -> list[str]:
    """Return the statements that make all tables and indexes."""
    return list(TABLES)


@cache
def insert_record(kind: Kind) -> str:
    """Insert: namespace, id, revision, the fixed and the changing columns, for a task its spec, body."""
    return TEXTS[f"insert_record {kind}"]


@cache
def insert_records(kind: Kind, count: int) -> str:
    """Insert so many records at once: the values of `insert_record`, one record after the other."""
    return _repeated(insert_record(kind), count)


@cache
def update_record(kind: Kind) -> str:
    """Update where the revision is the old one: revision, the changing columns, body; namespace, id, old revision."""
    return TEXTS[f"update_record {kind}"]


@cache
def update_records(kind: Kind, count: int) -> str:
    """Update so many records at once: the values of `update_record`, one record after the other."""
    if count == 1:
        return update_record(kind)
    table, names = kind.value, ("revision", *SHAPES[kind].changing, "body")
    places = (*names, "namespace", "id", "revision")
    # SQLite names the columns of VALUES so.
    values = [f"found.column{number}" for number in range(1, len(places) + 1)]
    changes = ", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=False))
    same = " AND ".join(f"{table}.{name} = {value}" for name, value in zip(places[-3:], values[-3:], strict=True))
    row = f"({', '.join('?' * len(places))})"
    rows = ", ".join([row] * count)
    return f"UPDATE {table} SET {changes} FROM (VALUES {rows}) AS found WHERE {same}"  # noqa: S608 - names of the schema


@cache
def delete_record(kind: Kind) -> str:
    """Delete where the revision is the old one: namespace, id, old revision."""
    return TEXTS[f"delete_record {kind}"]


@cache
def select_revision(kind: Kind) -> str:
    """Select a record's revision: namespace, id."""
    return TEXTS[f"select_revision {kind}"]


@cache
def select_records(kind: Kind, keys: int) -> str:
    """Select records by so many keys: namespace and id of each."""
    one, where, condition = TEXTS[f"select_records {kind}"].partition("WHERE ")
    return one + where + " OR ".join([condition] * keys)


@cache
def scan_records(kind: Kind, *, open_only: bool) -> str:
    """Select all records of a kind, with `open_only` those that are not over."""
    return TEXTS[f"scan_records {kind} {open_only}"]


@cache
def expired_records(kind: Kind) -> str:
    """Select what is past its time, the longest past first: time, limit."""
    return TEXTS[f"expired_records {kind}"]


@lru_cache(maxsize=256)
def query_records(
    kind: Kind, conditions: tuple[str, ...], *, states: int, open_only: bool, labels: int, prefix: bool, after: bool
) -> str:
    """Select a page: namespace, the value of each condition, states, labels (name, value), prefix, after, limit.

    A prefix is two values: the first id that begins with it, and the last.
    """
    if not (conditions or states or open_only or labels):
        return TEXTS[f"query_records {kind} {prefix} {after}"]
    from . import building

    return building.query_records(
        kind, conditions, states=states, open_only=open_only, labels=labels, prefix=prefix, after=after
    )


@cache
def insert_events(count: int) -> str:
    """Insert the events of so many change sets at once."""
    return _repeated(INSERT_EVENTS, count)


def _repeated(insert: str, count: int) -> str:
    _, _, values = insert.partition("VALUES ")
    return insert + f", {values}" * (count - 1)


INSERT_EVENTS = TEXTS["INSERT_EVENTS"]
"""Insert the events of a change set: last, first, time, body."""

EVENTS_AFTER = TEXTS["EVENTS_AFTER"]
"""Select change sets that end after a sequence, in order: after."""

OLDEST_EVENTS = TEXTS["OLDEST_EVENTS"]
"""Select first and last of the oldest change set kept."""

EVENTS_AT = TEXTS["EVENTS_AT"]
"""Select first, last and time of the change set an event is in: sequence."""

DELETE_EVENTS = TEXTS["DELETE_EVENTS"]
"""Delete change sets that end until a sequence: until."""

INSERT_META = TEXTS["INSERT_META"]
"""Insert the store's own row: id, log id, head, head time, group count."""

SELECT_META = TEXTS["SELECT_META"]
"""Select the store's own row."""

UPDATE_META = TEXTS["UPDATE_META"]
"""Move the store's own row on: head, head time, group count."""

INSERT_BLOB = TEXTS["INSERT_BLOB"]
"""Insert a blob: namespace, id, size, content type, time, upload id."""

SELECT_BLOB = TEXTS["SELECT_BLOB"]
"""Select a blob: namespace, id."""

RENEW_BLOB = TEXTS["RENEW_BLOB"]
"""Renew a blob's time: time, namespace, id."""

DELETE_BLOB = TEXTS["DELETE_BLOB"]
"""Delete a blob: namespace, id."""

OLD_BLOB = TEXTS["OLD_BLOB"]
"""Select the oldest blob before a time: before."""

INSERT_CHUNK = TEXTS["INSERT_CHUNK"]
"""Insert a chunk: upload id, number, content."""

SELECT_CHUNK = TEXTS["SELECT_CHUNK"]
"""Select a chunk: upload id, number."""

DELETE_CHUNKS = TEXTS["DELETE_CHUNKS"]
"""Delete chunks of an upload: upload id, number of the first that stays."""

DELETE_ORPHANS = TEXTS["DELETE_ORPHANS"]
"""Delete the chunks of uploads that never became a blob."""
