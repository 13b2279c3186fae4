"""Records as rows for the statements of their kind. Raises TypeError or ValueError for what cannot be written."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import msgspec

from agenthive_server.kernel.records import Kind, Record
from agenthive_server.kernel.tasks import Task

from .codec import pack_body, pack_spec
from .columns import SHAPES, Values


def _json(values: Values) -> Values:
    return tuple([_labels(value) if type(value) is dict else value for value in values])


def _labels(labels: dict[str, str]) -> str | None:
    return msgspec.json.encode(labels).decode() if labels else None


def _plain(values: Values) -> Values:
    return values


@cache
def insert_row(kind: Kind) -> Callable[[Record], Values]:
    """Return what makes the values of `statements.insert_record` from a record."""
    shape = SHAPES[kind]
    fixed = _json if "labels" in shape.fixed else _plain
    changing = _json if "labels" in shape.changing else _plain

    def row(record: Record) -> Values:
        columns = (*fixed(shape.fixed_values(record)), *changing(shape.changing_values(record)))
        spec = (pack_spec(record),) if isinstance(record, Task) else ()
        return (record.namespace, record.id, record.revision, *columns, *spec, pack_body(record))

    return row


@cache
def update_row(kind: Kind) -> Callable[[Record, int], Values]:
    """Return what makes the values of `statements.update_record` from a record and the revision before."""
    shape = SHAPES[kind]
    changing = _json if "labels" in shape.changing else _plain

    def row(record: Record, before: int) -> Values:
        columns = changing(shape.changing_values(record))
        return (record.revision, *columns, pack_body(record), record.namespace, record.id, before)

    return row
