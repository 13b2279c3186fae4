"""Every statement but those of groups (`bulk.py`), named: built from the schema and compiled once to PostgreSQL's text.

Placeholders are numbered in the order each docstring gives.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Double,
    Table,
    Text,
    all_,
    any_,
    bindparam,
    cast,
    column,
    delete,
    exists,
    func,
    insert,
    literal_column,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.sql import ClauseElement, ColumnElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.selectable import FromClause

from agenthive_server.kernel.records import Kind
from agenthive_server.storage.columns import SHAPES
from agenthive_server.storage.schema import BLOB, BLOB_CHUNK, CHANGE, EVENT, META, TABLES

_DIALECT: Final = PGDialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call] # SQLAlchemy has not typed it
_ONE: Final[ColumnElement[int]] = literal_column("1")


def compiled(statement: ClauseElement, *order: str) -> str:
    """Return the text; `order`, where given, is what the placeholders must stand for."""
    found = statement.compile(dialect=_DIALECT)
    if order and isinstance(found, SQLCompiler) and tuple(found.positiontup or ()) != order:
        raise AssertionError(f"placeholders are {found.positiontup}, not {order}")
    return str(found)


def type_name(table: Table, name: str) -> str:
    """Return the type of a column as PostgreSQL calls it, for casts."""
    return str(table.c[name].type.compile(dialect=_DIALECT)).partition(" COLLATE")[0]


# Records


def _stored(table: Table) -> list[ColumnElement[Any]]:
    columns = table.c
    stored: list[ColumnElement[Any]] = [columns.namespace, columns.id, columns.revision, columns.body]
    return [*stored, columns.spec] if "spec" in columns else stored


def _wanted() -> FromClause:
    """Return keys that come as two lists, as rows."""
    texts = ARRAY(Text)
    lists = (cast(bindparam("namespaces"), texts), cast(bindparam("ids"), texts))
    return func.unnest(*lists).table_valued(column("namespace"), column("id"), name="wanted").render_derived()


@cache
def select_records(kind: Kind) -> str:
    """Select records by keys: namespaces, ids."""
    table, wanted = TABLES[kind], _wanted()
    same = (table.c.namespace == wanted.c.namespace) & (table.c.id == wanted.c.id)
    return compiled(select(*_stored(table)).select_from(wanted.join(table, same)), "namespaces", "ids")


@cache
def scan_records(kind: Kind, *, open_only: bool) -> str:
    """Select all records of a kind by their keys, with `open_only` those that are not over."""
    columns = TABLES[kind].c
    statement = select(*_stored(TABLES[kind])).order_by(columns.namespace, columns.id)
    return compiled(statement.where(columns.due_time.is_(None)) if open_only else statement)


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
    )
    return compiled(statement, "before", "limit")


@lru_cache(maxsize=256)
def query_records(
    kind: Kind, conditions: tuple[str, ...], *, states: bool, open_only: bool, labels: bool, prefix: bool, after: bool
) -> str:
    """Select a page: namespace, the value of each condition, states, labels as JSON, prefix, after, limit.

    A prefix is two values: the first id that begins with it, and the last. After is a time and an id, or an id.
    """
    table = TABLES[kind]
    columns = table.c
    order = ["query_namespace", *(f"query_{name}" for name in conditions)]
    wanted = [columns.namespace == bindparam("query_namespace")]
    wanted += [columns[name] == bindparam(f"query_{name}") for name in conditions]
    if states:
        wanted.append(columns.state == any_(cast(bindparam("states"), ARRAY(Text))))
        order.append("states")
    if open_only:
        wanted.append(columns.due_time.is_(None))
    if labels:
        wanted.append(columns.labels.op("@>")(cast(bindparam("labels"), columns.labels.type)))
        order.append("labels")
    if prefix:
        wanted.append(columns.id.between(bindparam("prefix_first"), bindparam("prefix_last")))
        order += ["prefix_first", "prefix_last"]
    newest_first = SHAPES[kind].newest_first
    if after and newest_first:
        wanted.append(tuple_(columns.create_time, columns.id) < tuple_(bindparam("time"), bindparam("after")))
        order += ["time", "after"]
    elif after:
        wanted.append(columns.id > bindparam("after"))
        order.append("after")
    sorting = (columns.create_time.desc(), columns.id.desc()) if newest_first else (columns.id,)
    statement = select(*_stored(table)).where(*wanted).order_by(*sorting).limit(bindparam("limit"))
    return compiled(statement, *order, "limit")


# The event log


def _events_after() -> str:
    size = EVENT.c.last - EVENT.c.first + _ONE
    before = (func.sum(size).over(order_by=EVENT.c.last) - size).label("before")
    near = (
        select(*EVENT.c, before)
        .where(EVENT.c.last > bindparam("after", type_=BigInteger))
        .order_by(EVENT.c.last)
        .limit(bindparam("sets"))
        .subquery("near")
    )
    few = (
        select(near.c.last, near.c.first, near.c.time, near.c.body)
        .where(near.c.before < cast(bindparam("limit"), BigInteger))
        .lateral("few")
    )
    statement = select(META.c.head, *few.c).select_from(META.join(few, true(), isouter=True)).order_by(few.c.last)
    return compiled(statement, "after", "sets", "limit")


EVENTS_AFTER: Final = _events_after()
"""Select the head of the log, with each of the change sets after a sequence that begin within so many events:
after, limit, limit. Without any there is one row, of the head alone."""

OLDEST_EVENTS: Final = compiled(select(EVENT.c.first, EVENT.c.last).order_by(EVENT.c.last).limit(_ONE))
"""Select first and last of the oldest change set kept."""

EVENTS_AT: Final = compiled(
    select(EVENT.c.first, EVENT.c.last, EVENT.c.time)
    .where(EVENT.c.last >= bindparam("sequence"))
    .order_by(EVENT.c.last)
    .limit(_ONE)
)
"""Select first, last and time of the change set an event is in: sequence."""

DELETE_EVENTS: Final = compiled(delete(EVENT).where(EVENT.c.last <= bindparam("until")))
"""Delete change sets that end until a sequence: until."""

_OLDEST: Final = select(EVENT.c.first).order_by(EVENT.c.last).limit(_ONE).scalar_subquery()

BOUNDS: Final = compiled(
    select(META.c.log_id, META.c.head, func.coalesce(_OLDEST, META.c.head + _ONE), META.c.group_count)
)
"""Select the id of the log, its head, the oldest event kept (head + 1 for none), and the number of groups."""

SELECT_HEAD: Final = compiled(select(META.c.head))
"""Select the head of the log."""

MAKE_ROOM: Final = "SELECT pg_notification_queue_usage()"
"""Have the queue of notifications tidied up, which looking at it does; one that was full stays so otherwise."""

LOCK_HEAD: Final = compiled(select(META.c.id).where(META.c.id == _ONE).with_for_update())
"""Lock the head of the log until the end of the transaction."""

BEGIN: Final = f"BEGIN; {LOCK_HEAD}"
"""Begin a transaction that changes records: the head of the log is locked before anything is read."""

SELECT_OUTCOME: Final = """
SELECT pg_xact_status($1::text::xid8), log_id, group_count, (
  SELECT time = $3::double precision AND touched = $4::bytea FROM change WHERE change.group_count = $2::bigint)
FROM meta
"""
"""Select what became of a transaction (`committed`, `aborted`, `in progress`; nothing when it is long ago), with the id
of the log, the number of groups, and whether the group of a number is this one (nothing when it is not known any more):
the transaction's id, the group's number, its time, and what it changed."""

NOW: Final = "coalesce($1::double precision, extract(epoch FROM clock_timestamp())::double precision)"
"""The time, as an expression: $1 where a test says what time it is, else the database's clock."""

# What groups changed

_GROUP: Final = CHANGE.c.group_count

CHANGES_AFTER: Final = compiled(
    select(*CHANGE.c)
    .where(bindparam("after", type_=BigInteger) < _GROUP, all_(cast(bindparam("without"), ARRAY(BigInteger))) != _GROUP)
    .order_by(_GROUP)
    .limit(bindparam("limit")),
    "after",
    "without",
    "limit",
)
"""Select what groups changed: after, their numbers, limit."""

DELETE_CHANGES: Final = compiled(
    delete(CHANGE).where(select(META.c.group_count - bindparam("kept", type_=BigInteger)).scalar_subquery() > _GROUP),
    "kept",
)
"""Delete what all groups changed but for the last ones: how many."""

# Roles

SELECT_NOW: Final = f"SELECT {NOW}"
"""Select the time: the time or nothing."""

_ROLE: Final = TABLES[Kind.ROLE]
_THIS_ROLE: Final = (_ROLE.c.namespace == bindparam("key_namespace"), _ROLE.c.id == bindparam("key_id"))

LOCK_ROLE: Final = compiled(select(*_stored(_ROLE)).where(*_THIS_ROLE).with_for_update(), "key_namespace", "key_id")
"""Select a role and lock it: namespace, id."""

INSERT_ROLE: Final = compiled(insert(_ROLE), "namespace", "id", "revision", "body")
"""Insert a role: namespace, id, revision, body."""

UPDATE_ROLE: Final = compiled(
    update(_ROLE)
    .where(*_THIS_ROLE, _ROLE.c.revision == bindparam("old_revision"))
    .values(revision=bindparam("new_revision"), body=bindparam("new_body")),
    "new_revision",
    "new_body",
    "key_namespace",
    "key_id",
    "old_revision",
)
"""Update a role where the revision is the old one: revision, body; namespace, id, old revision."""

DELETE_ROLE: Final = compiled(
    delete(_ROLE).where(*_THIS_ROLE, _ROLE.c.revision == bindparam("old_revision")),
    "key_namespace",
    "key_id",
    "old_revision",
)
"""Delete a role where the revision is the old one: namespace, id, old revision."""

# Blobs

_THIS_BLOB: Final = (BLOB.c.namespace == bindparam("key_namespace"), BLOB.c.id == bindparam("key_id"))

SELECT_BLOB: Final = compiled(select(BLOB).where(*_THIS_BLOB), "key_namespace", "key_id")
"""Select a blob: namespace, id."""

RENEW_BLOB: Final = compiled(
    update(BLOB)
    .where(*_THIS_BLOB)
    .values(create_time=func.greatest(BLOB.c.create_time, bindparam("new_time", type_=Double)))
    .returning(*BLOB.c),
    "new_time",
    "key_namespace",
    "key_id",
)
"""Renew a blob's time, which never goes back, and return it: time, namespace, id."""

INSERT_BLOB: Final = (
    compiled(insert(BLOB), *BLOB.c.keys())
    + " ON CONFLICT (namespace, id) DO UPDATE SET create_time = greatest(blob.create_time, excluded.create_time)"
    + f" RETURNING {', '.join(f'blob.{name}' for name in BLOB.c.keys())}"  # noqa: SIM118 - a collection of columns
)
"""Insert a blob, or renew the one that is there, and return it: namespace, id, size, content type, time, upload id."""

EXPIRE_BLOB: Final = """
WITH old AS (
  DELETE FROM blob WHERE create_time < $1 AND (namespace, id) = (
    SELECT namespace, id FROM blob WHERE create_time < $1 ORDER BY create_time, id LIMIT 1)
  RETURNING upload_id
), gone AS (DELETE FROM blob_chunk USING old WHERE blob_chunk.upload_id = old.upload_id)
SELECT upload_id FROM old
"""
"""Delete the oldest blob before a time with its content, and return its upload's id: time."""

INSERT_CHUNK: Final = compiled(insert(BLOB_CHUNK), *BLOB_CHUNK.c.keys()) + " ON CONFLICT DO NOTHING"
"""Insert a chunk, once: upload id, number, content."""

SELECT_CHUNK: Final = compiled(
    select(BLOB_CHUNK.c.content).where(
        BLOB_CHUNK.c.upload_id == bindparam("key_upload_id"), BLOB_CHUNK.c.number == bindparam("key_number")
    ),
    "key_upload_id",
    "key_number",
)
"""Select a chunk: upload id, number."""

_NO_BLOB: Final = ~exists(select(_ONE).where(BLOB.c.upload_id == BLOB_CHUNK.c.upload_id))

DELETE_UPLOAD: Final = compiled(
    delete(BLOB_CHUNK).where(BLOB_CHUNK.c.upload_id == bindparam("key_upload_id"), _NO_BLOB)
)
"""Delete the chunks of an upload that is no blob: upload id."""

DELETE_DEAD_UPLOADS: Final = compiled(delete(BLOB_CHUNK).where(BLOB_CHUNK.c.upload_id < bindparam("before"), _NO_BLOB))
"""Delete the chunks of uploads that began before a time and never became a blob: the first upload id that stays."""
