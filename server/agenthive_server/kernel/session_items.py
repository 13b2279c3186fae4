"""What travels on a session, both ways, as the kernel sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .agents import Agent, AgentSpec
from .errors import KernelError
from .messages import Message, Urgency
from .records import Payload
from .sessions import RunnerCapacity
from .tasks import Question, Task, TaskError, Usage


@dataclass(frozen=True, slots=True)
class LeaseRef:
    """A lease, as a worker names it."""

    task_id: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedAgent:
    """An agent a worker speaks for; `spec` registers it if it does not exist."""

    agent_id: str
    spec: AgentSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """How a worker introduces itself. `replaces` names a session of its earlier life, which is over."""

    session_id: str = ""
    replaces: str = ""
    agents: tuple[HostedAgent, ...] = ()
    leases: tuple[LeaseRef, ...] = ()
    runner: RunnerCapacity | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    software: str = ""
    display_name: str = ""
    # Secrets, so not shown: what lets it join for the first time, and what it earned by that.
    join_token: str = field(default="", repr=False)
    credential: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The answer: the session in effect and which of the leases named are still valid. Times in seconds.

    `principal` is who the worker is; `credential`, a secret, is what it shows from now on, empty when nothing new.
    """

    session_id: str
    epoch: int
    resumed: bool
    valid_leases: tuple[LeaseRef, ...]
    heartbeat_interval: float
    reconnect_grace: float
    accept_timeout: float
    principal: str = ""
    credential: str = field(default="", repr=False)


# What a worker says --------------------------------------------------------------------------------------------------


# There are three of these a task, so they are not frozen: that would take three times as long.
@dataclass(slots=True)
class Accept:
    """The agent takes the task."""

    task_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Reject:
    """The agent does not take the task before `retry_after` seconds."""

    task_id: str
    epoch: int
    reason: str = ""
    retry_after: float = 5.0


@dataclass(frozen=True, slots=True)
class HandBack:
    """The agent gives a held task back, with its checkpoint."""

    task_id: str
    epoch: int
    checkpoint: bytes = b""
    reason: str = ""


@dataclass(slots=True)
class Result:
    """The end of an attempt: exactly one of `result`, `error` and `canceled` is set."""

    task_id: str
    epoch: int
    result: Payload | None = None
    error: TaskError | None = None
    canceled: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """The agent asks a human."""

    task_id: str
    epoch: int
    question: Question
    checkpoint: bytes = b""


@dataclass(frozen=True, slots=True)
class AgentReport:
    """What became of an agent: state is READY, STOPPED, SLEEPING or FAILED."""

    agent_id: str
    state: str
    reason: str = ""
    exit_code: int = 0
    spec: AgentSpec | None = None


@dataclass(frozen=True, slots=True)
class MessagesRead:
    """The agent has read messages."""

    agent_id: str
    message_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MessagesDelivered:
    """Messages were written to the session and acknowledged by it. Made by the edge, not by the worker."""

    agent_id: str
    message_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """An agent sends a message: to one agent, a task, a role, or (`all`) every agent."""

    request_id: str
    sender_agent_id: str
    agent_id: str = ""
    task_id: str = ""
    role: str = ""
    all: bool = False
    payload: Payload
    urgency: Urgency = Urgency.QUEUE


Item = Accept | Reject | HandBack | Result | Ask | AgentReport | MessagesRead | MessagesDelivered | Outgoing
"""One thing a worker says that changes records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A pulse for one held task; None means no news."""

    task_id: str
    epoch: int
    fraction: float | None = None
    text: str | None = None
    checkpoint: bytes | None = None
    usage: Usage | None = None
    context_usage: float | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An item that was not applied: its index in the frame and why."""

    index: int
    reason: str
    message: str
    task_id: str = ""


# What the server says ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Assign:
    """Do this task. `repeated`: the lease was granted before the session (re)opened."""

    task: Task
    checkpoint: bytes = b""
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop this attempt and report it canceled."""

    task_id: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Revoke:
    """The lease is gone."""

    task_id: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Hold this attempt, or (`resume`) let it go on."""

    task_id: str
    epoch: int
    resume: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the question of an attempt that kept its slot."""

    task_id: str
    epoch: int
    answer: Payload


@dataclass(frozen=True, slots=True)
class Start:
    """For runners: start this agent."""

    agent: Agent
    wake: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop this agent, or put it to sleep; held tasks may finish within `grace` seconds."""

    agent_id: str
    grace: float
    sleep: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Mail:
    """Messages for an agent of this session."""

    agent_id: str
    messages: Sequence[Message]


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Go on in another stream after `delay` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class Drained:
    """Nothing new will come."""

    reason: str


@dataclass(frozen=True, slots=True)
class Bye:
    """The session is over, as asked."""

    reason: str


Delivery = Assign | Cancel | Revoke | Pause | Answer | Start | Stop | Mail | Reconnect | Drained | Bye
"""One thing the server says on a session."""


class Link(Protocol):
    """The live stream of a session, as the kernel sees it. Both methods return at once and never raise."""

    def deliver(self, delivery: Delivery) -> None:
        """Queue one thing to say.

        What is lost with the stream is said again from the records when the session resumes.
        """

    def fence(self, error: KernelError) -> None:
        """End the stream with an error."""
