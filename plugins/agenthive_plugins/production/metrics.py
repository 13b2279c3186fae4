"""Everything that is measured, by name: the series that are kept, and the metrics that are worked out of them.

The names of metrics are those the callers know from the orchestrators this one replaces. What those made up is measured
here; what only they had (a cache server's memory, say) has no name here, and so no rule can be made for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from .series import MINUTES, SeriesSet, Step

HOUR: Final = 3_600.0


class Kind(Enum):
    """What the values of a series are, and so what its value over a window is."""

    GAUGE = "gauge"
    """Readings; the mean."""
    LEVEL = "level"
    """Readings of which only the newest counts."""
    COUNT = "count"
    """How often something happened; the sum."""
    TIME = "time"
    """Milliseconds, with a histogram; the mean."""


SERIES: Final[Mapping[str, Kind]] = {
    # The machine, read from the kernel's own counters.
    "cpu_usage_percent": Kind.GAUGE,
    "memory_usage_percent": Kind.GAUGE,
    "disk_usage_percent": Kind.GAUGE,
    "network_throughput_mbps": Kind.GAUGE,
    # The server.
    "server_cpu_percent": Kind.GAUGE,
    "server_memory_mb": Kind.GAUGE,
    "event_loop_lag_ms": Kind.TIME,
    "db_query_time_ms": Kind.TIME,
    "db_pool_usage_percent": Kind.GAUGE,
    "up_seconds": Kind.COUNT,
    "down_seconds": Kind.COUNT,
    # Agents and tasks.
    "active_agents": Kind.LEVEL,
    "busy_agents": Kind.LEVEL,
    "total_sessions": Kind.LEVEL,
    "pending_tasks": Kind.LEVEL,
    "held_tasks": Kind.LEVEL,
    "agent_failures": Kind.COUNT,
    "tasks_delegated": Kind.COUNT,
    "tasks_succeeded": Kind.COUNT,
    "tasks_failed": Kind.COUNT,
    "tasks_canceled": Kind.COUNT,
    "task_queue_wait_ms": Kind.TIME,
    "task_run_time_ms": Kind.TIME,
    # Calls that do not wait by design: all of them, and by who they are for.
    "response_time_ms": Kind.TIME,
    "viewer_response_time_ms": Kind.TIME,
    "operator_response_time_ms": Kind.TIME,
    "agent_response_time_ms": Kind.TIME,
    "admin_response_time_ms": Kind.TIME,
    # Calls of every kind.
    "calls": Kind.COUNT,
    "call_faults": Kind.COUNT,
    "failed_auth_attempts": Kind.COUNT,
    "security_events": Kind.COUNT,
    "blocked_requests": Kind.COUNT,
}
"""The series that are kept, and of which kind they are."""


@dataclass(frozen=True, slots=True)
class Window:
    """A window of the series, looked at from `now`. Times in seconds since 1970."""

    series: SeriesSet
    start: float
    end: float
    now: float

    def total(self, name: str) -> float:
        """Return the sum of a series."""
        return self.series.window(name, self.start, self.end, self.now).total

    def quantile(self, name: str, share: float) -> float | None:
        """Return a quantile of the times of a series; None when there are none."""
        bucket = self.series.window(name, self.start, self.end, self.now)
        return bucket.quantile(share) if bucket.count else None

    def share(self, part: float, whole: float) -> float | None:
        """Return a share in percent; None of nothing."""
        return 100.0 * part / whole if whole else None

    def of(self, name: str) -> float | None:
        """Return the value of a series by its kind; None where nothing was measured. What is counted may be zero."""
        kind = SERIES[name]
        if kind is Kind.LEVEL:
            steps = self.series.steps(name, max(self.start, self.end - 2 * MINUTES.width), self.end, self.now)
            return steps[-1].bucket.mean if steps else None
        bucket = self.series.window(name, self.start, self.end, self.now)
        if kind is Kind.COUNT:
            return bucket.total
        return bucket.mean if bucket.count else None


def _availability(window: Window) -> float | None:
    up = window.total("up_seconds")
    return window.share(up, up + window.total("down_seconds"))


def _errors(window: Window) -> float | None:
    return window.share(window.total("call_faults"), window.total("calls"))


def _task_failures(window: Window) -> float | None:
    failed = window.total("tasks_failed")
    return window.share(failed, failed + window.total("tasks_succeeded"))


def _completion(window: Window) -> float | None:
    failures = _task_failures(window)
    return None if failures is None else 100.0 - failures


def _failed_last_hour(window: Window) -> float:
    return window.series.window("tasks_failed", window.end - HOUR, window.end, window.now).total


def _throughput(window: Window) -> float:
    return window.total("tasks_succeeded") / max(1.0, window.end - window.start)


DERIVED: Final[Mapping[str, Callable[[Window], float | None]]] = {
    "response_time_p95_ms": lambda window: window.quantile("response_time_ms", 0.95),
    "response_time_p99_ms": lambda window: window.quantile("response_time_ms", 0.99),
    "average_response_time_ms": lambda window: window.of("response_time_ms"),
    "error_rate_percent": _errors,
    "availability_percent": _availability,
    "failed_tasks_last_hour": _failed_last_hour,
    "task_failure_percent": _task_failures,
    "task_completion_percent": _completion,
    "task_throughput_per_second": _throughput,
    "task_queue_wait_p95_ms": lambda window: window.quantile("task_queue_wait_ms", 0.95),
    "task_run_time_p95_ms": lambda window: window.quantile("task_run_time_ms", 0.95),
    "db_query_time_p95_ms": lambda window: window.quantile("db_query_time_ms", 0.95),
}
"""What is worked out of the series."""

_BASE: Final[Mapping[str, str]] = {
    "error_rate_percent": "calls",
    "availability_percent": "up_seconds",
    "failed_tasks_last_hour": "tasks_failed",
    "task_failure_percent": "tasks_succeeded",
    "task_completion_percent": "tasks_succeeded",
    "task_throughput_per_second": "tasks_succeeded",
    "task_queue_wait_p95_ms": "task_queue_wait_ms",
    "task_run_time_p95_ms": "task_run_time_ms",
    "db_query_time_p95_ms": "db_query_time_ms",
}

METRICS: Final = tuple(sorted((*SERIES, *DERIVED)))
"""All names, sorted."""

STATUS: Final = tuple(
    name for name in METRICS if not name.endswith("_seconds") and name not in ("calls", "call_faults")
)
"""Those that say something as they are: all but the raw counts behind shares."""


def value_of(series: SeriesSet, metric: str, start: float, end: float, now: float) -> float | None:
    """Return a metric over a window; None where nothing was measured. Raises `KeyError` for a name nobody knows."""
    window = Window(series, start, end, now)
    derived = DERIVED.get(metric)
    return derived(window) if derived else window.of(metric)


def base_of(metric: str) -> str:
    """Return the series behind a metric: itself, or the one that says when there is something to work out."""
    return metric if metric in SERIES else _BASE.get(metric, "response_time_ms")


def points_of(
    series: SeriesSet, metric: str, start: float, end: float, now: float, *, width: float = 0.0
) -> list[Step]:
    """Return a metric step by step. Of a derived one each step holds one value."""
    steps = series.steps(base_of(metric), start, end, now, width=width)
    if metric in SERIES:
        return steps
    worked_out: list[Step] = []
    for step in steps:
        value = value_of(series, metric, step.start, step.start + step.width, now)
        if value is not None:
            bucket = type(step.bucket)(1, value, value, value)
            worked_out.append(Step(step.start, step.width, bucket))
    return worked_out
