"""Builds every statement from the schema: the text the driver runs. What they mean stands in `statements.py`.

`python -m agenthive_server.storage.building` prints `compiled.py`, the texts of all that a server asks for from the
start; it is part of `make gen`.
"""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

from sqlalchemy import (
    Table,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal_column,
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


def insert_record(kind: Kind) -> str:
    """Insert: namespace, id, revision, the fixed and the changing columns, for a task its spec, body."""
    return _text(insert(TABLES[kind]), *TABLES[kind].c.keys())


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


def delete_record(kind: Kind) -> str:
    """Delete where the revision is the old one: namespace, id, old revision."""
    table = TABLES[kind]
    statement = delete(table).where(*_key(table), table.c.revision == bindparam("old_revision"))
    return _text(statement, "key_namespace", "key_id", "old_revision")


def select_revision(kind: Kind) -> str:
    """Select a record's revision: namespace, id."""
    table = TABLES[kind]
    return _text(select(table.c.revision).where(*_key(table)), "key_namespace", "key_id")


def select_record(kind: Kind) -> str:
    """Select a record by its key: namespace, id."""
    table = TABLES[kind]
    return _text(select(*_stored(table)).where(*_key(table)), "key_namespace", "key_id")


def scan_records(kind: Kind, *, open_only: bool) -> str:
    """Select all records of a kind, with `open_only` those that are not over."""
    statement = select(*_stored(TABLES[kind]))
    return _text(statement.where(TABLES[kind].c.due_time.is_(None)) if open_only else statement)


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


# The texts that are kept


def texts() -> dict[str, str]:
    """Return the texts `compiled.py` has, by the name and the arguments of what builds them."""
    made = {name: value for name, value in globals().items() if name.isupper() and isinstance(value, str)}
    for kind in Kind:
        for build in (insert_record, update_record, delete_record, select_revision):
            made[f"{build.__name__} {kind}"] = build(kind)
        made[f"select_records {kind}"] = select_record(kind)
        for open_only in (False, True):
            if not open_only or "due_time" in TABLES[kind].c:
                made[f"scan_records {kind} {open_only}"] = scan_records(kind, open_only=open_only)
        if "due_time" in TABLES[kind].c:
            made[f"expired_records {kind}"] = expired_records(kind)
        for prefix, after in product((False, True), repeat=2):
            made[f"query_records {kind} {prefix} {after}"] = query_records(
                kind, (), states=0, open_only=False, labels=0, prefix=prefix, after=after
            )
    return made


def main() -> None:
    """Print the module of the texts."""
    lines = [f"    {name!r}: {text!r}," for name, text in sorted(texts().items())]
    head = '"""The texts of statements, built from the schema by `building.py`; do not edit: `make gen`."""'
    made = ["TABLES: list[str] = [", *(f"    {text!r}," for text in create_all()), "]"]
    out = [head, "", *made, "TEXTS: dict[str, str] = {", *lines, "}", ""]
    sys.stdout.write("\n".join(out))


if __name__ == "__main__":
    main()
