"""Events to bytes: each is encoded once, for all readers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from agenthive.v1 import event_pb2 as pb
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from agenthive_server.kernel.events import Event, EventType, Severity

from . import agents, attempts, tasks
from .values import set_time

_log = logging.getLogger(__name__)

Write = Callable[[Any, Any], None]
"""Writes a value into the message of a fact."""


def event_bytes(event: Event) -> bytes:
    """Return the wire form of an event: an `agenthive.v1.Event`.

    The fact's fields are taken from `event.data` by name. A name the contract does not know is left out and logged: one
    wrong event must not end every stream.
    """
    return event_to_proto(event).SerializeToString()


def event_to_proto(event: Event) -> pb.Event:
    """Return an event as a message."""
    kind = event.type
    message = pb.Event(namespace=event.namespace, severity=_SEVERITIES[event.severity])
    if event.sequence:
        message.sequence = event.sequence
    if event.time:
        set_time(message.time, event.time)
    if event.task_id:
        message.task_id = event.task_id
    if event.agent_id:
        message.agent_id = event.agent_id
    if event.session_id:
        message.session_id = event.session_id
    if event.role:
        message.role = event.role
    name, writes = _FACTS[kind]
    fact = getattr(message, name)
    fact.SetInParent()
    for key, value in event.data.items():
        write = writes.get(key)
        if write is None:
            _log.error("event %s has no field %s", kind.name, key)
        elif value is not None:
            write(fact, value)
    return message


def _plain(name: str) -> Write:
    return lambda fact, value: setattr(fact, name, value)


def _enum(name: str, enum: EnumDescriptor) -> Write:
    values = enum.values
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    numbers = {value.name.removeprefix(prefix): value.number for value in values}
    return lambda fact, value: setattr(fact, name, numbers.get(str(value), 0))


def _time(name: str) -> Write:
    return lambda fact, value: set_time(getattr(fact, name), value) if value else None


def _agent(fact: Any, value: Any) -> None:
    agent, shown = value
    agents.fill_agent(fact.agent, agent, shown)


_MESSAGES: Final[dict[str, Callable[[str], Write]]] = {
    "google.protobuf.Timestamp": _time,
    "agenthive.v1.TaskError": lambda name: lambda fact, value: attempts.fill_error(getattr(fact, name), value),
    "agenthive.v1.Task": lambda name: lambda fact, value: tasks.fill_task(getattr(fact, name), value, brief=True),
    # The record and what is shown of it, as a pair.
    "agenthive.v1.Agent": lambda name: _agent,
}


def _map(name: str) -> Write:
    return lambda fact, value: getattr(fact, name).update(value)


def _write(field: FieldDescriptor) -> Write:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map(field.name)
    if field.message_type is not None:
        return _MESSAGES[field.message_type.full_name](field.name)
    return _enum(field.name, field.enum_type) if field.enum_type is not None else _plain(field.name)


def _fact(kind: EventType) -> tuple[str, dict[str, Write]]:
    name = kind.name.lower()
    fact = pb.Event.DESCRIPTOR.fields_by_name[name].message_type
    return name, {field.name: _write(field) for field in fact.fields} if fact is not None else {}


_FACTS: Final = {kind: _fact(kind) for kind in EventType}
_SEVERITIES: Final = {severity: pb.Severity.Value(f"SEVERITY_{severity.name}") for severity in Severity}
