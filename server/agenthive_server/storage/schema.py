"""The tables, once, for SQLite and PostgreSQL: one for each kind of record, the event log, blobs, the store's own row.

A record's table has its key, its revision, the columns that can be asked for (`columns.py`) and the rest as `body`; a
task has its specification apart, because that is written once. Migrations only add, so that neighbouring versions share
the tables.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import JSON, BigInteger, Column, Double, Index, Integer, LargeBinary, MetaData, Table, Text
from sqlalchemy.types import TypeEngine

from agenthive_server.kernel.records import Kind

from . import columns
from .columns import SHAPES

REVISION = columns.REVISION
"""The migration the tables stand at."""


class _Jsonb(JSON):
    """PostgreSQL's JSONB by name; its dialect would cost 20 ms and 3 MiB where nobody uses it."""

    __visit_name__ = "JSONB"


# Ids sort by code point everywhere, as they do in Python.
_TEXT = Text().with_variant(Text(collation="C"), "postgresql")
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")
_TYPES: Mapping[str, TypeEngine[object]] = {
    "labels": JSON(none_as_null=True).with_variant(_Jsonb(none_as_null=True), "postgresql"),
    "create_time": Double(),
    "due_time": Double(),
}

metadata = MetaData()


def _records(kind: Kind) -> Table:
    shape = SHAPES[kind]
    named = [Column(name, _TYPES.get(name, _TEXT)) for name in (*shape.fixed, *shape.changing)]
    # Wide columns come last, so that a scan of the others does not read them.
    wide = [Column("spec", LargeBinary(), nullable=False)] if kind is Kind.TASK else []
    return Table(
        kind.value,
        metadata,
        Column("namespace", _TEXT, primary_key=True),
        Column("id", _TEXT, primary_key=True),
        Column("revision", BigInteger(), nullable=False),
        *named,
        *wide,
        Column("body", LargeBinary(), nullable=False),
        # Rows in the key's own tree, where they are narrow: one page less to write.
        sqlite_with_rowid=kind is Kind.TASK,
    )


TABLES: Mapping[Kind, Table] = {kind: _records(kind) for kind in Kind}
"""The table of each kind of record."""

TASK = TABLES[Kind.TASK].c
MESSAGE = TABLES[Kind.MESSAGE].c

# The migrations narrow these in PostgreSQL too; said here, it would load a dialect that nobody uses.
# Pages of tasks: all, the open ones (among them those an agent holds), those of a parent.
Index("task_by_time", TASK.namespace, TASK.create_time, TASK.id)
_OPEN = TASK.due_time.is_(None)
Index("task_open", TASK.namespace, TASK.create_time, TASK.id, sqlite_where=_OPEN)
_CHILD = TASK.parent_task_id.is_not(None)
Index(
    "task_by_parent",
    TASK.namespace,
    TASK.parent_task_id,
    TASK.create_time,
    TASK.id,
    sqlite_where=_CHILD,
)
Index("message_by_agent", MESSAGE.namespace, MESSAGE.agent_id, MESSAGE.create_time, MESSAGE.id)

# What is past its time.
for _kind in (Kind.TASK, Kind.MESSAGE, Kind.BROADCAST, Kind.REQUEST):
    _due = TABLES[_kind].c.due_time
    Index(f"{_kind.value}_due", _due, sqlite_where=_due.is_not(None))

# A row for each change set, not for each event: they are written and read together, and rows cost more than bytes.
EVENT = Table(
    "event",
    metadata,
    Column("last", _NUMBER, primary_key=True, autoincrement=False),
    Column("first", BigInteger(), nullable=False),
    Column("time", Double(), nullable=False),
    Column("body", LargeBinary(), nullable=False),
)

# What each group changed and told, for the memory of other replicas: in one place, so that they read it in one go.
# Written where a database has several servers, and kept for as long as one of them may be behind.
CHANGE = Table(
    "change",
    metadata,
    Column("group_count", _NUMBER, primary_key=True, autoincrement=False),
    Column("head", BigInteger(), nullable=False),
    Column("time", Double(), nullable=False),
    Column("touched", LargeBinary(), nullable=False),
)

# One row: the log's identity and head, and how many groups were committed, by which a doubtful commit is looked up.
META = Table(
    "meta",
    metadata,
    Column("id", Integer(), primary_key=True, autoincrement=False),
    Column("log_id", Text(), nullable=False),
    Column("head", BigInteger(), nullable=False),
    Column("head_time", Double(), nullable=False),
    Column("group_count", BigInteger(), nullable=False),
)

# A blob is there when its row is; chunks of an upload without a row are what a crash left behind.
BLOB = Table(
    "blob",
    metadata,
    Column("namespace", _TEXT, primary_key=True),
    Column("id", _TEXT, primary_key=True),
    Column("size", BigInteger(), nullable=False),
    Column("content_type", Text(), nullable=False),
    Column("create_time", Double(), nullable=False),
    Column("upload_id", _TEXT, nullable=False),
)
Index("blob_by_time", BLOB.c.create_time, BLOB.c.id)

BLOB_CHUNK = Table(
    "blob_chunk",
    metadata,
    Column("upload_id", _TEXT, primary_key=True),
    Column("number", Integer(), primary_key=True, autoincrement=False),
    Column("content", LargeBinary(), nullable=False),
)
