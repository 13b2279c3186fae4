"""Sessions: the record of one worker's contact.

OPEN ⇄ SUSPECT (the stream broke; leases go on for the grace) → ended, which removes the record. `epoch` grows each
time a stream
takes the session over; every write of a stream is checked against the record, so an older stream changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from .records import Kind, Record


class SessionState(StrEnum):
    """Stored states of a session; one that has ended has no record."""

    OPEN = "OPEN"
    SUSPECT = "SUSPECT"


@dataclass(frozen=True, kw_only=True)
class RunnerCapacity:
    """What a runner can do."""

    drivers: tuple[str, ...] = ()
    maximum_agents: int = 0
    cpu_cores: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Session(Record):
    """A session. Times are seconds since 1970; zero means not set."""

    kind: ClassVar[Kind] = Kind.SESSION

    state: SessionState = SessionState.OPEN
    epoch: int = 1
    runner: RunnerCapacity | None = None
    labels: dict[str, str] = field(default_factory=dict)
    software: str = ""
    display_name: str = ""
    principal: str = ""
    draining: bool = False
    open_time: float = 0.0
    suspect_time: float = 0.0
    # The replica that has its stream; empty where there is only one server.
    replica: str = ""
