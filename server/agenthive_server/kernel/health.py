"""Component reports → one health status."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from .clock import Clock


class Status(IntEnum):
    """How well something works; numbers as in the protos."""

    OK = 1
    DEGRADED = 2
    DOWN = 3


@dataclass(frozen=True, slots=True)
class Reading:
    """What a component says of itself now: status, why, and its latency in seconds where it has one."""

    status: Status = Status.OK
    reason: str = ""
    latency: float | None = None


@dataclass(frozen=True, slots=True)
class ComponentReport:
    """A reading with its name and since when the status holds (seconds since 1970)."""

    name: str
    status: Status
    reason: str
    since: float
    latency: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """The whole server: the worst status of the components that matter for serving."""

    status: Status
    components: tuple[ComponentReport, ...]


Probe = Callable[[], Sequence[tuple[str, Reading]]]
"""Returns readings by component name; called for each report, so it answers from memory."""


class Health:
    """Asks the probes and remembers since when each component is as it is.

    A component that is DOWN makes the server DOWN only if it is one of `vital`; otherwise DEGRADED.
    """

    def __init__(self, clock: Clock, vital: frozenset[str] = frozenset({"store"})) -> None:
        self._clock = clock
        self._vital = vital
        self._probes: list[Probe] = []
        self._since: dict[str, tuple[Status, float]] = {}

    def add(self, probe: Probe) -> None:
        """Add a source of readings."""
        self._probes.append(probe)

    def report(self, but: str = "") -> Report:
        """Return how everything is now; what is told leaves out the component `but`."""
        worst = Status.OK
        found: list[ComponentReport] = []
        for probe in self._probes:
            for name, reading in probe():
                status, since = self._since.get(name, (None, 0.0))
                if status is not reading.status:
                    since = self._clock.now()
                    self._since[name] = (reading.status, since)
                if name == but:
                    continue
                found.append(ComponentReport(name, reading.status, reading.reason, since, reading.latency))
                weight = reading.status
                if weight is Status.DOWN and name not in self._vital:
                    weight = Status.DEGRADED
                worst = max(worst, weight)
        return Report(worst, tuple(found))
