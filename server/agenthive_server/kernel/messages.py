"""Messages to agents and tasks, their receipts, and broadcasts before they are fanned out.

QUEUED → DELIVERED → READ; QUEUED → EXPIRED.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from .records import Kind, Payload, Record


class MessageState(StrEnum):
    """Stored states of a message."""

    QUEUED = "QUEUED"
    DELIVERED = "DELIVERED"
    READ = "READ"
    EXPIRED = "EXPIRED"


class Urgency(StrEnum):
    """When an agent should look at a message."""

    NOW = "NOW"
    NEXT_BOUNDARY = "NEXT_BOUNDARY"
    QUEUE = "QUEUE"


@dataclass(frozen=True, kw_only=True)
class Message(Record):
    """A message for one agent or for whoever holds a task. Times are seconds since 1970."""

    kind: ClassVar[Kind] = Kind.MESSAGE

    agent_id: str = ""
    task_id: str = ""
    sender_agent_id: str = ""
    payload: Payload
    urgency: Urgency = Urgency.QUEUE
    state: MessageState = MessageState.QUEUED
    create_time: float
    expire_time: float


@dataclass(frozen=True, kw_only=True)
class Broadcast(Record):
    """A message for a role (or all, when empty) that is being fanned out in agent order; removed when that is done."""

    kind: ClassVar[Kind] = Kind.BROADCAST

    role: str = ""
    sender_agent_id: str = ""
    payload: Payload
    urgency: Urgency = Urgency.QUEUE
    create_time: float
    expire_time: float
    # Agents up to this id have their message.
    done_until: str = ""
