"""Tasks: the records of a task, its attempts and its leases. The transitions: `transitions.py`, `attempts.py`.

BLOCKED ──► QUEUED ──► ASSIGNED ──► RUNNING ──► REPORTED ──► SUCCEEDED
             ▲ ▲           │           │  │
             │ └─ requeued ┴───────────┤  ├──► INPUT_REQUIRED ──► RUNNING or QUEUED
             └──── RETRY_WAIT ◄────────┘  └──► CANCEL_REQUESTED ──► CANCELED
any open state ──► PAUSED ──► back;  CANCELED, EXPIRED;  FAILED and QUARANTINED after attempts
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from .records import Kind, Payload, Record, made


class TaskState(StrEnum):
    """Stored states of a task."""

    BLOCKED = "BLOCKED"
    QUEUED = "QUEUED"
    ASSIGNED = "ASSIGNED"
    RUNNING = "RUNNING"
    REPORTED = "REPORTED"
    RETRY_WAIT = "RETRY_WAIT"
    INPUT_REQUIRED = "INPUT_REQUIRED"
    PAUSED = "PAUSED"
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    EXPIRED = "EXPIRED"
    QUARANTINED = "QUARANTINED"


TERMINAL = frozenset(
    {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED, TaskState.EXPIRED, TaskState.QUARANTINED}
)
"""States that only RetryTask leaves."""


class DependencyPolicy(StrEnum):
    """What becomes of a task when one it depends on ends without success."""

    FAIL = "FAIL"
    RELEASE = "RELEASE"


class ChildrenPolicy(StrEnum):
    """What becomes of a task's children when it is canceled or ends."""

    CANCEL = "CANCEL"
    ABANDON = "ABANDON"
    WAIT = "WAIT"


class Strategy(StrEnum):
    """How an agent is chosen among those that are eligible."""

    CAPABILITY_FIRST = "CAPABILITY_FIRST"
    LOAD_BALANCED = "LOAD_BALANCED"
    ROUND_ROBIN = "ROUND_ROBIN"
    WEIGHTED = "WEIGHTED"
    PRIORITY_AWARE = "PRIORITY_AWARE"


class ErrorClass(StrEnum):
    """What kind of error ended an attempt."""

    INFRA = "INFRA"
    RATE_LIMITED = "RATE_LIMITED"
    QUOTA = "QUOTA"
    CONTEXT_FULL = "CONTEXT_FULL"
    TOOL = "TOOL"
    TIMEOUT = "TIMEOUT"
    INVALID = "INVALID"
    POLICY = "POLICY"


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Temporal's five fields; times in seconds."""

    initial_interval: float = 1.0
    backoff_coefficient: float = 2.0
    maximum_interval: float = 60.0
    maximum_attempts: int = 3
    non_retryable_reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """The clocks of a task, in seconds; zero switches an optional one off."""

    schedule_to_start: float = 86_400.0
    start_to_close: float = 3_600.0
    schedule_to_close: float = 604_800.0
    heartbeat: float = 60.0
    progress: float = 0.0
    input: float = 0.0


DEFAULT_RETRY = RetryPolicy()
DEFAULT_TIMEOUTS = Timeouts()


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What should be done; never changes."""

    type: str
    input: Payload | None = None
    title: str = ""
    priority: int = 3
    fairness_key: str = ""
    fairness_weight: float = 1.0
    required_capabilities: tuple[str, ...] = ()
    role: str = ""
    agent_id: str = ""
    affinity_key: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    dependency_policy: DependencyPolicy = DependencyPolicy.FAIL
    parent_task_id: str = ""
    children_policy: ChildrenPolicy = ChildrenPolicy.CANCEL
    retry: RetryPolicy = DEFAULT_RETRY
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    exclusive: bool = False
    requires_review: bool = False
    strategy: Strategy | None = None


_NO_LABELS: dict[str, str] = {}


def make_spec(**fields: Any) -> TaskSpec:
    """Return a specification, as its constructor does, at less cost.

    `labels` must not be changed afterwards.
    """
    fields.setdefault("labels", _NO_LABELS)
    return made(TaskSpec, fields)


@dataclass(frozen=True, kw_only=True)
class TaskError:
    """Why an attempt did not succeed."""

    error_class: ErrorClass
    reason: str = ""
    message: str = ""
    next_retry_delay: float | None = None


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right of one agent to work on one attempt. `start_time` is zero until it was accepted."""

    agent_id: str
    session_id: str
    epoch: int
    assign_time: float
    start_time: float = 0.0
    # When the attempt has to end, once it has started.
    close_deadline: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try at a task that has ended."""

    number: int
    agent_id: str
    epoch: int
    assign_time: float
    start_time: float
    end_time: float
    error: TaskError | None = None
    counted: bool = True


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question of an agent to a human. `schema` is JSON text."""

    question: str
    schema: str = ""
    default: Payload | None = None
    release_slot: bool = False
    # When the default applies; zero: never.
    deadline: float = 0.0


MAX_ATTEMPTS_KEPT = 16
MAX_ANSWERS_KEPT = 16
MAX_DEPTH = 32


@dataclass(frozen=True, kw_only=True)
class Task(Record):
    """A task. Times are seconds since 1970; zero or empty means not set."""

    kind: ClassVar[Kind] = Kind.TASK

    spec: TaskSpec
    state: TaskState
    reason: str = ""
    # Parents up to the root, nearest last.
    ancestors: tuple[str, ...] = ()
    waiting_on: tuple[str, ...] = ()
    attempt: int = 0
    counted_attempts: int = 0
    # Leases lost in a row without progress.
    lost_leases: int = 0
    lease_epoch: int = 0
    # The last lease epoch whose end its worker reported itself; that report repeated is acknowledged again.
    reported_epoch: int = 0
    lease: Lease | None = None
    attempts: tuple[Attempt, ...] = ()
    # Agents it is not offered to before a time.
    avoid: tuple[tuple[str, float], ...] = ()
    result: Payload | None = None
    error: TaskError | None = None
    question: Question | None = None
    # Answers to questions and comments of reviewers, for the next attempts.
    answers: tuple[Payload, ...] = ()
    # What PAUSED goes back to, when nobody holds it.
    paused_from: TaskState | None = None
    pause_time: float = 0.0
    output_blob_id: str = ""
    create_time: float = 0.0
    update_time: float = 0.0
    queue_time: float = 0.0
    retry_time: float = 0.0
    close_deadline: float = 0.0
    end_time: float = 0.0

    @property
    def terminal(self) -> bool:
        """Whether only RetryTask leads on."""
        return self.state in TERMINAL


def make_lease(**fields: Any) -> Lease:
    """Return a lease, as its constructor does, at less cost."""
    return made(Lease, fields)


def make_task(**fields: Any) -> Task:
    """Return a task, as its constructor does, at less cost."""
    return made(Task, fields)


def make_attempt(**fields: Any) -> Attempt:
    """Return an attempt, as its constructor does, at less cost."""
    return made(Attempt, fields)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Consumption of an attempt."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress(Record):
    """How far an attempt is; a record apart, because it changes more often than its task. `id` is the task's."""

    kind: ClassVar[Kind] = Kind.PROGRESS

    attempt: int
    fraction: float = 0.0
    text: str = ""
    checkpoint: bytes = b""
    usage: Usage | None = None
    context_usage: float = 0.0
    update_time: float = 0.0
