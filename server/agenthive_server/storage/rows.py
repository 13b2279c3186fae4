"""Records as rows for the statements of their kind. Raises TypeError or ValueError for what cannot be written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec

from agenthive_server.kernel.records import Kind, Record

from .codec import pack_body, pack_spec
from .columns import SHAPES

_KEY = ("namespace", "id", "revision")


def _labels(labels: dict[str, str]) -> str | None:
    return msgspec.json.encode(labels).decode() if labels else None


def _place(columns: Sequence[str]) -> int | None:
    """Return where the labels are, which go into the database as JSON."""
    return columns.index("labels") if "labels" in columns else None


@cache
def insert_row(kind: Kind) -> Callable[[Record], list[Any]]:
    """Return what makes the values of `statements.insert_record` from a record."""
    shape = SHAPES[kind]
    labels = _place((*_KEY, *shape.fixed, *shape.changing))
    fixed, changing = shape.fixed_values, shape.changing_values
    has_spec = kind is Kind.TASK

    def row(record: Any) -> list[Any]:
        values = [record.namespace, record.id, record.revision, *fixed(record), *changing(record)]
        if labels is not None:
            values[labels] = _labels(values[labels])
        if has_spec:
            values.append(pack_spec(record))
        values.append(pack_body(record))
        return values

    return row


@cache
def update_row(kind: Kind) -> Callable[[Record, int], list[Any]]:
    """Return what makes the values of `statements.update_record` from a record and the revision before."""
    shape = SHAPES[kind]
    labels = _place(("revision", *shape.changing))
    changing = shape.changing_values

    def row(record: Record, before: int) -> list[Any]:
        values = [record.revision, *changing(record), pack_body(record), record.namespace, record.id, before]
        if labels is not None:
            values[labels] = _labels(values[labels])
        return values

    return row
