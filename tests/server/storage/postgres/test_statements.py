"""Statements are compiled once, with their placeholders in the order that is promised."""

from __future__ import annotations

import pytest
from agenthive_server.kernel.records import Kind
from agenthive_server.storage.postgres import statements
from agenthive_server.storage.schema import TABLES
from sqlalchemy import bindparam, select


def test_a_placeholder_out_of_order_is_found_at_once() -> None:
    columns = TABLES[Kind.TASK].c
    statement = select(columns.id).where(columns.namespace == bindparam("a"), columns.id == bindparam("b"))
    assert statements.compiled(statement, "a", "b").endswith("task.namespace = $1 AND task.id = $2")
    with pytest.raises(AssertionError):
        statements.compiled(statement, "b", "a")


def test_types_are_named_as_postgresql_casts_to_them() -> None:
    named = {name: statements.type_name(TABLES[Kind.TASK], name) for name in ("id", "labels", "create_time", "spec")}
    assert named == {"id": "TEXT", "labels": "JSONB", "create_time": "DOUBLE PRECISION", "spec": "BYTEA"}


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_has_its_statements(kind: Kind) -> None:
    assert "unnest" in statements.select_records(kind)
    assert statements.scan_records(kind, open_only=False).endswith(f"ORDER BY {kind.value}.namespace, {kind.value}.id")
