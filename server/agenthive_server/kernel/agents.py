"""Agents: the record, its states and the pure transitions between them.

    STARTING ──► READY ──► DRAINING ──► STOPPED
        │         │ │ └──► SLEEPING ──► WAKING ──► READY
        ▼         ▼ ▼
      FAILED   FAILED LOST          (the restart policy or RestartAgent leads back to STARTING)

Stored is READY; callers see it as IDLE, BUSY or SUSPECT, which follow from the open leases and the session.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from .records import Kind, Record


class AgentState(StrEnum):
    """Stored states of an agent."""

    STARTING = "STARTING"
    READY = "READY"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"
    SLEEPING = "SLEEPING"
    WAKING = "WAKING"
    LOST = "LOST"
    FAILED = "FAILED"


OVER = frozenset({AgentState.STOPPED, AgentState.LOST, AgentState.FAILED})
"""States in which no process is expected."""


class RestartMode(StrEnum):
    """When an agent that ended by itself is started again."""

    NEVER = "NEVER"
    ON_FAILURE = "ON_FAILURE"
    ALWAYS = "ALWAYS"


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """How often and how soon an agent is started again; times in seconds."""

    mode: RestartMode = RestartMode.ON_FAILURE
    initial_interval: float = 1.0
    backoff_coefficient: float = 2.0
    maximum_interval: float = 300.0
    maximum_restarts: int = 5
    window: float = 600.0


REMOTE = "remote"
"""The driver that starts nothing: a worker connects by itself."""


@dataclass(frozen=True, kw_only=True)
class AgentSpec:
    """What an agent should be. `driver_config` is opaque to the kernel; times in seconds."""

    display_name: str = ""
    role: str = ""
    capabilities: tuple[str, ...] = ()
    slots: int = 1
    labels: dict[str, str] = field(default_factory=dict)
    weight: float = 1.0
    restart: RestartPolicy = RestartPolicy()
    stop_grace: float = 10.0
    start_timeout: float = 30.0
    runner_labels: dict[str, str] = field(default_factory=dict)
    driver: str = REMOTE
    driver_config: bytes = b""


class Wanted(StrEnum):
    """What the supervisor drives an agent to."""

    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    ASLEEP = "ASLEEP"


@dataclass(frozen=True, kw_only=True)
class Agent(Record):
    """An agent. Times are seconds since 1970; zero or empty means not set."""

    kind: ClassVar[Kind] = Kind.AGENT

    spec: AgentSpec
    state: AgentState = AgentState.STARTING
    reason: str = ""
    wanted: Wanted = Wanted.RUNNING
    # The session it is in contact through, and the runner's that was told to start it.
    session_id: str = ""
    runner_session_id: str = ""
    # Grows with every start; a runner does not repeat one it has seen.
    start_epoch: int = 0
    start_deadline: float = 0.0
    # Times of the restarts within the policy's window, and when the next is due.
    restarts: tuple[float, ...] = ()
    next_start_time: float = 0.0
    # While DRAINING or going to sleep: when held tasks are handed back.
    stop_deadline: float = 0.0
    # RestartAgent: start again once stopped.
    start_again: bool = False
    # Assignments in a row that were not answered.
    unanswered: int = 0
    create_time: float = 0.0
    update_time: float = 0.0
