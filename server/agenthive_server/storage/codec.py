"""Records and events as bytes: MessagePack maps by field name, without what has its default value.

Neighbouring versions read each other: an unknown field is skipped, a missing one has its default. So a default value
never changes its meaning, and a field never its type. Key and revision are not in the bytes but columns of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from operator import attrgetter
from typing import Any, TypedDict, get_type_hints

import msgspec

from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.records import Kind, Record
from agenthive_server.kernel.tasks import Task, TaskError, TaskSpec

from .columns import SHAPES

Unreadable = msgspec.MsgspecError
"""Raised when bytes are not what this version understands: damaged, or made by a version that is too far away."""

_pack = msgspec.msgpack.Encoder().encode
_REQUIRED = object()
_IN_COLUMNS = frozenset({"namespace", "id", "revision"})


class Fields:
    """Some fields of a dataclass, to and from bytes."""

    def __init__(self, of: type[Any], *, without: frozenset[str] = frozenset()) -> None:
        chosen = [field for field in fields(of) if field.name not in without]
        types = get_type_hints(of)
        self._of = of
        self._defaults = {field.name: field.default for field in chosen if field.default is not MISSING}
        self._factories: dict[str, Callable[[], Any]] = {
            field.name: field.default_factory for field in chosen if field.default_factory is not MISSING
        }
        omitted = self._defaults | {name: make() for name, make in self._factories.items()}
        self._omitted = tuple((field.name, omitted.get(field.name, _REQUIRED)) for field in chosen)
        # A map of which every entry is optional: what is missing stays missing, what is unknown is skipped.
        shape: Any = TypedDict(of.__name__, {field.name: types[field.name] for field in chosen}, total=False)  # type: ignore[misc] # built from the record
        self._unpack: Callable[[bytes], Any] = msgspec.msgpack.Decoder(shape).decode

    def pack(self, record: Any) -> bytes:
        """Return the fields that differ from their defaults; raises TypeError or ValueError when one cannot be."""
        values = record.__dict__
        return _pack(
            {
                name: value
                for name, default in self._omitted
                if (value := values[name]) is not default and value != default
            }
        )

    def unpack(self, packed: bytes, **others: Any) -> Any:
        """Return a new object with these fields and `others`; raises `Unreadable`."""
        record = object.__new__(self._of)
        values = record.__dict__
        values.update(self._defaults)
        for name, make in self._factories.items():
            values[name] = make()
        values.update(self._unpack(packed))
        values.update(others)
        return record


_BODIES = {
    kind: Fields(shape.record, without=_IN_COLUMNS | {"spec"} if kind is Kind.TASK else _IN_COLUMNS)
    for kind, shape in SHAPES.items()
}
_SPEC = Fields(TaskSpec)


def pack_body(record: Record) -> bytes:
    """Return what changes of a record; raises TypeError or ValueError when a field cannot be written."""
    return _BODIES[record.kind].pack(record)


def pack_spec(task: Task) -> bytes:
    """Return what never changes of a task; raises TypeError or ValueError when a field cannot be written."""
    return _SPEC.pack(task.spec)


def unpack(kind: Kind, namespace: str, id: str, revision: int, body: bytes, spec: bytes | None = None) -> Record:  # noqa: A002 - the column's name
    """Return the record of a row; raises `Unreadable`."""
    others: dict[str, Any] = {"namespace": namespace, "id": id, "revision": revision}
    if spec is not None:
        others["spec"] = _SPEC.unpack(spec)
    record: Record = _BODIES[kind].unpack(body, **others)
    return record


class _EventBody(TypedDict, total=False):
    task_id: str
    agent_id: str
    session_id: str
    role: str
    labels: dict[str, str]
    ancestors: tuple[str, ...]
    data: dict[str, Any]
    errors: dict[str, TaskError]


_EVENT_FIELDS = ("task_id", "agent_id", "session_id", "role", "labels", "ancestors", "data")
_event_values = attrgetter(*_EVENT_FIELDS)
_unpack_event = msgspec.msgpack.Decoder(_EventBody).decode


def pack_event(event: Event) -> bytes:
    """Return what an event says beside its columns; raises TypeError or ValueError when that cannot be written."""
    body = {name: value for name, value in zip(_EVENT_FIELDS, _event_values(event), strict=True) if value}
    # Errors are kept apart, because within `data` nothing says of what type a map was.
    if errors := {name: value for name, value in event.data.items() if type(value) is TaskError}:
        body["errors"] = errors
        body["data"] = {name: value for name, value in event.data.items() if name not in errors}
    return _pack(body)


def unpack_event(sequence: int, last: int, time: float, type: int, namespace: str, body: bytes) -> Event:  # noqa: A002 - the column's name
    """Return the event of a row; tuples within `data` come back as lists. Raises `Unreadable`."""
    values: dict[str, Any] = _unpack_event(body)  # type: ignore[assignment] # a TypedDict is a dict
    if errors := values.pop("errors", None):
        values["data"] = {**values.get("data", {}), **errors}
    return Event(type=_event_type(type), namespace=namespace, sequence=sequence, last=last, time=time, **values)


def _event_type(number: int) -> EventType:
    try:
        return EventType(number)
    except ValueError:
        raise Unreadable(f"an event of the unknown type {number}") from None
