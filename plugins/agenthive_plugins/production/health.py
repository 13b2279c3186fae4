"""How the hive is as a whole: the mean of four scores, each worked out of what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from .metrics import value_of
from .series import SeriesSet

WINDOW = 300.0


class SystemHealth(IntEnum):
    """How the hive is; numbers as in the protos."""

    HEALTHY = 1
    DEGRADED = 2
    UNHEALTHY = 3
    CRITICAL = 4


@dataclass(frozen=True, slots=True)
class Scores:
    """The parts, 0 to 1; None where nothing was measured."""

    cpu: float | None
    memory: float | None
    application: float | None
    response_time: float | None

    @property
    def mean(self) -> float | None:
        """The mean of the parts that are known; None of none."""
        known = [part for part in (self.cpu, self.memory, self.application, self.response_time) if part is not None]
        return sum(known) / len(known) if known else None

    @property
    def health(self) -> SystemHealth | None:
        """What the mean says; None when nothing was measured."""
        mean = self.mean
        if mean is None:
            return None
        if mean < 0.3:
            return SystemHealth.CRITICAL
        if mean < 0.6:
            return SystemHealth.UNHEALTHY
        return SystemHealth.DEGRADED if mean < 0.9 else SystemHealth.HEALTHY


def scores_of(series: SeriesSet, now: float) -> Scores:
    """Return the scores of the last five minutes."""

    def value(metric: str) -> float | None:
        return value_of(series, metric, now - WINDOW, now, now)

    # Where no call was answered, none was slow.
    return Scores(
        cpu=_limits(value("cpu_usage_percent"), 95, 80),
        memory=_limits(value("memory_usage_percent"), 95, 85),
        application=_application(value("active_agents"), value("error_rate_percent")),
        response_time=_limits(value("response_time_p95_ms") or 0.0, 5_000, 2_000),
    )


def _limits(value: float | None, worst: float, bad: float) -> float | None:
    if value is None:
        return None
    if value > worst:
        return 0.0
    return 0.5 if value > bad else 1.0


def _application(agents: float | None, errors: float | None) -> float | None:
    if agents is None:
        return None
    if agents < 1:
        return 0.0
    if errors is not None and errors > 10:
        return 0.2
    return 0.6 if errors is not None and errors > 5 else 1.0
