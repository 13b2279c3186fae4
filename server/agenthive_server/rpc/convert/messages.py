"""Messages between agents."""

from __future__ import annotations

from typing import Final

from agenthive.v1 import message_pb2 as pb

from agenthive_server.kernel.messages import Message, MessageState, Urgency

from .values import EnumTable, fill_payload, set_time

URGENCIES: Final = EnumTable(pb.MessageUrgency.DESCRIPTOR, "MESSAGE_URGENCY_", Urgency)
_STATES: Final = EnumTable(pb.MessageState.DESCRIPTOR, "MESSAGE_STATE_", MessageState)


def urgency_from(number: int, field: str) -> Urgency:
    """Return an urgency; zero means QUEUE."""
    urgency: Urgency = URGENCIES.read(number, field, Urgency.QUEUE)
    return urgency


def fill_message(message: pb.Message, record: Message) -> None:
    """Write a message."""
    message.message_id = record.id
    message.namespace = record.namespace
    message.agent_id = record.agent_id
    message.task_id = record.task_id
    message.sender_agent_id = record.sender_agent_id
    fill_payload(message.payload, record.payload)
    message.urgency = URGENCIES.numbers[record.urgency]  # type: ignore[assignment]  # the stubs want the enum's own type
    message.state = _STATES.numbers[record.state]  # type: ignore[assignment]  # as above
    set_time(message.create_time, record.create_time)
    set_time(message.expire_time, record.expire_time)
