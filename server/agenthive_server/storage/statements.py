"""Every statement, named. Each is built from the schema and compiled once to the text the driver runs.

Placeholders are filled by position, in the order each docstring gives.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from sqlalchemy import (
    Table,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql import ClauseElement, ColumnElement
from sqlalchemy.sql.compiler import SQLCompiler

from agenthive_server.kernel.records import Kind

from .columns import SHAPES
from .schema import BLOB, BLOB_CHUNK, EVENT, META, TABLES, metadata

# Left to itself the dialect makes placeholders of these.
_NOTHING: ColumnElement[int] = literal_column("0")
_ONE: ColumnElement[int] = literal_column("1")

_DIALECT = SQLiteDialect_pysqlite(paramstyle="qmark")


def _text(statement: ClauseElement, *order: str) -> str:
    """Compile; `order`, where given, is what the placeholders must stand for."""
    compiled = statement.compile(dialect=_DIALECT)
    if order and isinstance(compiled, SQLCompiler) and tuple(compiled.positiontup or ()) != order:
        raise AssertionError(f"placeholders are {compiled.positiontup}, not {order}")
    return str(compiled)


def create_all() -> list[str]:
    """Return the statements that make all tables and indexes."""
    tables = [_text(CreateTable(table)) for table in metadata.sorted_tables]
    indexes = [index for table in metadata.sorted_tables for index in table.indexes]
    return tables + [_text(CreateIndex(index)) for index in sorted(indexes, key=lambda index: str(index.name))]


# Records


def _key(table: Table) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.namespace == bindparam("key_namespace"), table.c.id == bindparam("key_id")


def _stored(table: Table) -> list[ColumnElement[Any]]:
    columns = table.c
    stored: list[ColumnElement[Any]] = [columns.namespace, columns.id, columns.revision, columns.body]
    return [*stored, columns.spec] if "spec" in columns else stored


@cache
def insert_record(kind: Kind) -> str:
    """Insert: namespace, id, revision, the fixed and the changing columns, for a task its spec, body."""
    return _text(insert(TABLES[kind]), *TABLES[kind].c.keys())


@cache
def insert_records(kind: Kind, count: int) -> str:
    """Insert so many records at once: the values of `insert_record`, one record after the other."""
    one = insert_record(kind)
    _, _, values = one.partition("VALUES ")
    return one + f", {values}" * (count - 1)


@cache
def update_record(kind: Kind) -> str:
    """Update where the revision is the old one: revision, the changing columns, body; namespace, id, old revision."""
    table = TABLES[kind]
    names = ("revision", *SHAPES[kind].changing, "body")
    statement = (
        update(table)
        .where(*_key(table), table.c.revision == bindparam("old_revision"))
        .values({name: bindparam(name) for name in names})
    )
    return _text(statement, *names, "key_namespace", "key_id", "old_revision")


@cache
def update_records(kind: Kind, count: int) -> str:
    """Update so many records at once: the values of `update_record`, one record after the other."""
    if count == 1:
        return update_record(kind)
    table = TABLES[kind]
    names = ("revision", *SHAPES[kind].changing, "body")
    places = (*names, "namespace", "id", "revision")
    # SQLite names the columns of VALUES so.
    values = [f"found.column{number}" for number in range(1, len(places) + 1)]
    changes = ", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=False))
    same = " AND ".join(f"{table.name}.{name} = {value}" for name, value in zip(places[-3:], values[-3:], strict=True))
    row = f"({', '.join('?' * len(places))})"
    rows = ", ".join([row] * count)
    return f"UPDATE {table.name} SET {changes} FROM (VALUES {rows}) AS found WHERE {same}"  # noqa: S608 - names of the schema


@cache
def delete_record(kind: Kind) -> str:
    """Delete where the revision is the old one: namespace, id, old revision."""
    table = TABLES[kind]
    statement = delete(table).where(*_key(table), table.c.revision == bindparam("old_revision"))
    return _text(statement, "key_namespace", "key_id", "old_revision")


@cache
def select_revision(kind: Kind) -> str:
    """Select a record's revision: namespace, id."""
    table = TABLES[kind]
    return _text(select(table.c.revision).where(*_key(table)), "key_namespace", "key_id")


@cache
def select_records(kind: Kind, keys: int) -> str:
    """Select records by so many keys: namespace and id of each."""
    table = TABLES[kind]
    # Not as `IN` of pairs: SQLite would scan the table for that.
    chosen = [
        and_(table.c.namespace == bindparam(f"namespace_{number}"), table.c.id == bindparam(f"id_{number}"))
        for number in range(keys)
    ]
    return _text(select(*_stored(table)).where(or_(*chosen)))


@cache
def scan_records(kind: Kind, *, open_only: bool) -> str:
    """Select all records of a kind, with `open_only` those that are not over."""
    statement = select(*_stored(TABLES[kind]))
    return _text(statement.where(TABLES[kind].c.due_time.is_(None)) if open_only else statement)


@cache
def expired_records(kind: Kind) -> str:
    """Select what is past its time, the longest past first: time, limit."""
    table = TABLES[kind]
    due = table.c.due_time
    statement = (
        select(*_stored(table))
        .where(due.is_not(None), due < bindparam("before"))
        .order_by(due, table.c.namespace, table.c.id)
        .limit(bindparam("limit"))
        .offset(_NOTHING)
    )
    return _text(statement, "before", "limit")


@lru_cache(maxsize=256)
def query_records(
    kind: Kind, conditions: tuple[str, ...], *, states: int, open_only: bool, labels: int, prefix: bool, after: bool
) -> str:
    """Select a page: namespace, the value of each condition, states, labels (name, value), prefix, after, limit.

    A prefix is two values: the first id that begins with it, and the last.
    """
    table = TABLES[kind]
    columns = table.c
    wanted = [columns.namespace == bindparam("query_namespace")]
    wanted += [columns[name] == bindparam(f"query_{name}") for name in conditions]
    if states:
        wanted.append(columns.state.in_([bindparam(f"state_{number}") for number in range(states)]))
    if open_only:
        wanted.append(columns.due_time.is_(None))
    wanted += [_has_label(table, number) for number in range(labels)]
    if prefix:
        wanted.append(columns.id.between(bindparam("prefix_first"), bindparam("prefix_last")))
    newest_first = SHAPES[kind].newest_first
    if after and newest_first:
        wanted.append(tuple_(columns.create_time, columns.id) < tuple_(bindparam("time"), bindparam("after")))
    elif after:
        wanted.append(columns.id > bindparam("after"))
    order = (columns.create_time.desc(), columns.id.desc()) if newest_first else (columns.id,)
    return _text(select(*_stored(table)).where(*wanted).order_by(*order).limit(bindparam("limit")).offset(_NOTHING))


def _has_label(table: Table, number: int) -> ColumnElement[bool]:
    entry = func.json_each(table.c.labels).table_valued("key", "value", name=f"label_{number}")
    return exists(
        select(text("1"))
        .select_from(entry)
        .where(entry.c.key == bindparam(f"label_{number}_name"), entry.c.value == bindparam(f"label_{number}_value"))
    )


# The event log

INSERT_EVENTS = _text(insert(EVENT), *EVENT.c.keys())
"""Insert the events of a change set: last, first, time, body."""


@cache
def insert_events(count: int) -> str:
    """Insert the events of so many change sets at once."""
    _, _, values = INSERT_EVENTS.partition("VALUES ")
    return INSERT_EVENTS + f", {values}" * (count - 1)


EVENTS_AFTER = _text(select(EVENT).where(EVENT.c.last > bindparam("after")).order_by(EVENT.c.last), "after")
"""Select change sets that end after a sequence, in order: after."""

OLDEST_EVENTS = _text(select(EVENT.c.first, EVENT.c.last).order_by(EVENT.c.last).limit(_ONE).offset(_NOTHING))
"""Select first and last of the oldest change set kept."""

EVENTS_AT = _text(
    select(EVENT.c.first, EVENT.c.last, EVENT.c.time)
    .where(EVENT.c.last >= bindparam("sequence"))
    .order_by(EVENT.c.last)
    .limit(_ONE)
    .offset(_NOTHING)
)
"""Select first, last and time of the change set an event is in: sequence."""

DELETE_EVENTS = _text(delete(EVENT).where(EVENT.c.last <= bindparam("until")))
"""Delete change sets that end until a sequence: until."""

INSERT_META = _text(insert(META), *META.c.keys())
"""Insert the store's own row: id, log id, head, head time, group count."""

SELECT_META = _text(select(META.c.log_id, META.c.head, META.c.head_time, META.c.group_count))
"""Select the store's own row."""

UPDATE_META = _text(
    update(META).values(head=bindparam("head"), head_time=bindparam("head_time"), group_count=bindparam("group_count")),
    "head",
    "head_time",
    "group_count",
)
"""Move the store's own row on: head, head time, group count."""

# Blobs

_THIS_BLOB = (BLOB.c.namespace == bindparam("key_namespace"), BLOB.c.id == bindparam("key_id"))

INSERT_BLOB = _text(insert(BLOB), *BLOB.c.keys())
"""Insert a blob: namespace, id, size, content type, time, upload id."""

SELECT_BLOB = _text(select(BLOB).where(*_THIS_BLOB))
"""Select a blob: namespace, id."""

RENEW_BLOB = _text(
    update(BLOB).where(*_THIS_BLOB).values(create_time=bindparam("create_time")),
    "create_time",
    "key_namespace",
    "key_id",
)
"""Renew a blob's time: time, namespace, id."""

DELETE_BLOB = _text(delete(BLOB).where(*_THIS_BLOB))
"""Delete a blob: namespace, id."""

OLD_BLOB = _text(
    select(BLOB)
    .where(BLOB.c.create_time < bindparam("before"))
    .order_by(BLOB.c.create_time, BLOB.c.id)
    .limit(_ONE)
    .offset(_NOTHING)
)
"""Select the oldest blob before a time: before."""

INSERT_CHUNK = _text(insert(BLOB_CHUNK), *BLOB_CHUNK.c.keys())
"""Insert a chunk: upload id, number, content."""

SELECT_CHUNK = _text(
    select(BLOB_CHUNK.c.content).where(
        BLOB_CHUNK.c.upload_id == bindparam("key_upload_id"), BLOB_CHUNK.c.number == bindparam("key_number")
    )
)
"""Select a chunk: upload id, number."""

DELETE_CHUNKS = _text(
    delete(BLOB_CHUNK).where(
        BLOB_CHUNK.c.upload_id == bindparam("key_upload_id"), BLOB_CHUNK.c.number < bindparam("below")
    ),
    "key_upload_id",
    "below",
)
"""Delete chunks of an upload: upload id, number of the first that stays."""

DELETE_ORPHANS = _text(delete(BLOB_CHUNK).where(BLOB_CHUNK.c.upload_id.not_in(select(BLOB.c.upload_id))))
"""Delete the chunks of uploads that never became a blob."""
