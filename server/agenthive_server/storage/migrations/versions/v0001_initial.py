"""The first tables."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_LABELS = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def _records(name: str, *columns: sa.Column[Any]) -> None:
    op.create_table(
        name,
        sa.Column("namespace", _TEXT, primary_key=True),
        sa.Column("id", _TEXT, primary_key=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        *columns,
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sqlite_with_rowid=name == "task",
    )


def _text(name: str) -> sa.Column[Any]:
    return sa.Column(name, _TEXT)


def _time(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Double())


def _labels() -> sa.Column[Any]:
    return sa.Column("labels", _LABELS)


def _index(name: str, table: str, columns: list[str], where: str | None = None) -> None:
    condition = sa.text(where) if where else None
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)


def upgrade() -> None:
    """Make the tables and the store's own row."""
    _make_records()
    _make_log()
    _make_blobs()


def _make_records() -> None:
    _records("agent", _text("state"), _text("role"), _labels())
    _records(
        "task",
        _text("type"),
        _text("role"),
        _text("parent_task_id"),
        _labels(),
        _time("create_time"),
        _text("state"),
        _text("agent_id"),
        _time("due_time"),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
    )
    _records("progress")
    _records("session", _text("state"), _labels())
    _records("message", _text("agent_id"), _time("create_time"), _text("state"), _time("due_time"))
    _records("broadcast", _text("role"), _time("create_time"), _time("due_time"))
    _records("request", _time("create_time"), _time("due_time"))
    _records("cursor")
    _records("role")
    by_time = ["create_time", "id"]
    _index("task_by_time", "task", ["namespace", *by_time])
    _index("task_open", "task", ["namespace", *by_time], "due_time IS NULL")
    _index("task_by_parent", "task", ["namespace", "parent_task_id", *by_time], "parent_task_id IS NOT NULL")
    _index("message_by_agent", "message", ["namespace", "agent_id", *by_time])
    for kind in ("task", "message", "broadcast", "request"):
        _index(f"{kind}_due", kind, ["due_time"], "due_time IS NOT NULL")


def _make_log() -> None:
    op.create_table(
        "event",
        sa.Column("last", _NUMBER, primary_key=True, autoincrement=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
    )
    meta = op.create_table(
        "meta",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("log_id", sa.Text(), nullable=False),
        sa.Column("head", sa.BigInteger(), nullable=False),
        sa.Column("head_time", sa.Double(), nullable=False),
        sa.Column("group_count", sa.BigInteger(), nullable=False),
    )
    op.bulk_insert(meta, [{"id": 1, "log_id": uuid4().hex, "head": 0, "head_time": 0.0, "group_count": 0}])


def _make_blobs() -> None:
    op.create_table(
        "blob",
        sa.Column("namespace", _TEXT, primary_key=True),
        sa.Column("id", _TEXT, primary_key=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("create_time", sa.Double(), nullable=False),
        sa.Column("upload_id", _TEXT, nullable=False),
    )
    _index("blob_by_time", "blob", ["create_time", "id"])
    op.create_table(
        "blob_chunk",
        sa.Column("upload_id", _TEXT, primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
    )
