"""The facts: event types, the event record, and the cursor of a reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from .tasks import Task


class EventType(IntEnum):
    """Kinds of events; the numbers are those of `EventType` in the protos and of the stored log."""

    AGENT_SPAWNED = 1
    AGENT_PLACED = 2
    AGENT_READY = 3
    AGENT_UPDATED = 4
    AGENT_DRAINING = 5
    AGENT_STOPPED = 6
    AGENT_FAILED = 7
    AGENT_LOST = 8
    AGENT_RESTARTING = 9
    AGENT_SLEEPING = 10
    AGENT_WAKING = 11
    SESSION_OPENED = 20
    SESSION_SUSPECT = 21
    SESSION_RESUMED = 22
    SESSION_ENDED = 23
    TASK_DELEGATED = 40
    TASK_RELEASED = 41
    TASK_ASSIGNED = 42
    TASK_STARTED = 43
    TASK_REQUEUED = 44
    TASK_RETRY_SCHEDULED = 45
    TASK_REPORTED = 46
    TASK_SUCCEEDED = 47
    TASK_FAILED = 48
    TASK_CANCEL_REQUESTED = 49
    TASK_CANCELED = 50
    TASK_EXPIRED = 51
    TASK_QUARANTINED = 52
    TASK_PAUSED = 53
    TASK_RESUMED = 54
    TASK_INPUT_REQUESTED = 55
    TASK_INPUT_RECEIVED = 56
    TASK_SENT_BACK = 57
    TASK_RETRIED = 58
    MESSAGE_SENT = 70
    MESSAGE_DELIVERED = 71
    MESSAGE_READ = 72
    MESSAGE_EXPIRED = 73
    PLUGIN_ENABLED = 80
    PLUGIN_DISABLED = 81
    PLUGIN_CONFIGURED = 82
    PLUGIN_FAILED = 83
    PLUGIN_REPORTED = 84
    TASK_OUTPUT = 90
    TASK_PROGRESSED = 91
    OUTPUT_GAP = 92
    AGENT_SNAPSHOT = 100
    TASK_SNAPSHOT = 101
    SNAPSHOT_END = 102


class Severity(IntEnum):
    """How urgent a fact is for operators; numbers as in the protos."""

    INFO = 1
    WARNING = 2
    ERROR = 3


TERMINAL_EVENTS = frozenset(
    {
        EventType.TASK_SUCCEEDED,
        EventType.TASK_FAILED,
        EventType.TASK_CANCELED,
        EventType.TASK_EXPIRED,
        EventType.TASK_QUARANTINED,
    }
)
"""Events after which a task is terminal."""

_SEVERE: dict[EventType, Severity] = {
    EventType.AGENT_FAILED: Severity.ERROR,
    EventType.AGENT_LOST: Severity.ERROR,
    EventType.AGENT_RESTARTING: Severity.WARNING,
    EventType.SESSION_SUSPECT: Severity.WARNING,
    EventType.TASK_FAILED: Severity.ERROR,
    EventType.TASK_EXPIRED: Severity.ERROR,
    EventType.TASK_QUARANTINED: Severity.ERROR,
    EventType.TASK_RETRY_SCHEDULED: Severity.WARNING,
    EventType.TASK_REQUEUED: Severity.WARNING,
    EventType.MESSAGE_EXPIRED: Severity.WARNING,
    EventType.PLUGIN_FAILED: Severity.ERROR,
}

_NO_LABELS: Mapping[str, str] = {}


@dataclass(slots=True)
class Event:
    """A fact.

    `sequence`, `last` and `time` are set once, by the store inside the committing transaction: `last` is the sequence
    of
    the last event of the same change set, so that readers never split one. `data` holds the fields of the fact's
    message
    in the protos by name (times as seconds since 1970, enums by name, errors as `TaskError`). `wire` caches the
    encoded form for all readers.
    """

    type: EventType
    namespace: str
    task_id: str = ""
    agent_id: str = ""
    session_id: str = ""
    role: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS)
    ancestors: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    sequence: int = 0
    last: int = 0
    time: float = 0.0
    wire: bytes | None = field(default=None, compare=False, repr=False)

    @property
    def severity(self) -> Severity:
        """How urgent it is for operators."""
        if self.type is EventType.PLUGIN_REPORTED:
            return Severity[self.data.get("severity", "INFO")]
        return _SEVERE.get(self.type, Severity.INFO)


def task_event(kind: EventType, task: Task, **data: Any) -> Event:
    """Return a fact about a task, told with who holds it."""
    return new_task_event(kind, task, data)


def new_task_event(kind: EventType, task: Task, data: dict[str, Any]) -> Event:
    """Return a fact about a task, told with who holds it; `data` belongs to the event then."""
    spec = task.spec
    lease = task.lease
    if lease is None:
        return Event(kind, task.namespace, task.id, "", "", spec.role, spec.labels, task.ancestors, data)
    return Event(
        kind, task.namespace, task.id, lease.agent_id, lease.session_id, spec.role, spec.labels, task.ancestors, data
    )
