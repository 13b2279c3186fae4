"""Records and events as bytes: MessagePack maps by field name, without what has its default value.

Neighbouring versions read each other: an unknown field is skipped, a missing one has its default. So a default value
never changes its meaning, and a field never its type. Key and revision are not in the bytes but columns of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypedDict, get_type_hints

import msgspec

from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.records import Kind, Record, made
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
        self._factories: dict[str, Callable[[], Any]] = {
            field.name: field.default_factory for field in chosen if field.default_factory is not MISSING
        }
        # What is not written, by field: what stands for a value that is missing.
        self._defaults = {field.name: _REQUIRED if field.default is MISSING else field.default for field in chosen}
        self._defaults |= {name: make() for name, make in self._factories.items()}
        # A map of which every entry is optional: what is missing stays missing, what is unknown is skipped.
        shape: Any = TypedDict(of.__name__, {field.name: types[field.name] for field in chosen}, total=False)  # type: ignore[misc] # built from the record
        self._unpack: Callable[[bytes], Any] = msgspec.msgpack.Decoder(shape).decode

    def pack(self, record: Any) -> bytes:
        """Return the fields that differ from their defaults; raises TypeError or ValueError when one cannot be."""
        defaults = self._defaults
        # None is itself and nothing else; to ask a dataclass costs more than to write it.
        return _pack(
            {
                name: value
                for name, value in record.__dict__.items()
                if name in defaults
                and value is not (default := defaults[name])
                and (default is None or value != default)
            }
        )

    def unpack(self, packed: bytes, **others: Any) -> Any:
        """Return a new object with these fields and `others`; raises `Unreadable`."""
        values = self._unpack(packed)
        for name, make in self._factories.items():
            if name not in values:
                values[name] = make()
        values.update(others)
        return made(self._of, values)


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


def unpack_task(namespace: str, id: str, revision: int, body: bytes, spec: TaskSpec) -> Record:  # noqa: A002 - the column's name
    """Return a task of which the specification is known already; raises `Unreadable`."""
    record: Record = _BODIES[Kind.TASK].unpack(body, namespace=namespace, id=id, revision=revision, spec=spec)
    return record


def unpack(kind: Kind, namespace: str, id: str, revision: int, body: bytes, spec: bytes | None = None) -> Record:  # noqa: A002 - the column's name
    """Return the record of a row; raises `Unreadable`."""
    others: dict[str, Any] = {"namespace": namespace, "id": id, "revision": revision}
    if spec is not None:
        others["spec"] = _SPEC.unpack(spec)
    record: Record = _BODIES[kind].unpack(body, **others)
    return record


class _Said(msgspec.Struct, array_like=True):
    """What one event of a change set says; later versions add fields at the end."""

    type: int
    namespace: str
    task_id: str
    agent_id: str
    session_id: str
    role: str
    labels: dict[str, str] | None
    ancestors: tuple[str, ...] | None
    data: dict[str, Any]
    # Kept apart from `data`, because within it nothing says of what type a map was.
    errors: dict[str, TaskError] | None = None


_unpack_events = msgspec.msgpack.Decoder(list[_Said]).decode


def _said(event: Event) -> tuple[object, ...]:
    """Return the fields of `_Said`, which are written as the same array at less cost."""
    data, errors = event.data, None
    if type(error := data.get("error")) is TaskError:
        errors = {"error": error}
        data = {name: value for name, value in data.items() if name != "error"}
    return (
        event.type,
        event.namespace,
        event.task_id,
        event.agent_id,
        event.session_id,
        event.role,
        event.labels or None,
        event.ancestors or None,
        data,
        errors,
    )


def pack_events(events: Sequence[Event]) -> bytes:
    """Return what the events of a change set say; raises TypeError or ValueError when that cannot be written."""
    return _pack([_said(event) for event in events])


def unpack_events(last: int, first: int, time: float, body: bytes) -> list[Event]:
    """Return the events of a row; tuples within `data` come back as lists. Raises `Unreadable`."""
    return [_event(said, first + offset, last, time) for offset, said in enumerate(_unpack_events(body))]


def _event(said: _Said, sequence: int, last: int, time: float) -> Event:
    kind = _EVENT_TYPES.get(said.type)
    if kind is None:
        raise Unreadable(f"an event of the unknown type {said.type}")
    # By position, which takes half of the time.
    return Event(
        kind,
        said.namespace,
        said.task_id,
        said.agent_id,
        said.session_id,
        said.role,
        said.labels or {},
        said.ancestors or (),
        {**said.data, **said.errors} if said.errors else said.data,
        sequence,
        last,
        time,
    )


_EVENT_TYPES = {kind.value: kind for kind in EventType}
