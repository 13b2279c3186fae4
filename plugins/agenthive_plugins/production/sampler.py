"""Looks at the running system every few seconds and writes what it sees into the series.

What is one thing for the whole hive, its agents, tasks and whether it is up, is looked at by the replica that keeps the
series. What every replica has of its own, calls and a machine, each looks at, and reports it where it keeps no series.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from agenthive_server.plugin.api import VitalsReading

from .blame import Blame
from .buckets import Bucket
from .calls import FAULTS, Calls
from .machine import Machine, cpu_percent, network_mbps
from .report import Report
from .series import SeriesSet
from .uptime import Uptime, usable

IN_CONTACT: Final = ("IDLE", "BUSY", "DRAINING")
_MEGABYTE: Final = 1e6
_PROBES: Final = "/grpc."
"""What load balancers ask all the time says nothing of how callers fare."""

_REFUSALS: Final = {
    "failed_auth_attempts": frozenset({"UNAUTHENTICATED"}),
    "security_events": frozenset({"PERMISSION_DENIED"}),
    "blocked_requests": frozenset({"PERMISSION_DENIED", "RESOURCE_EXHAUSTED"}),
}


class Sampler:
    """One `look` after the other; each writes what has changed since the one before."""

    def __init__(
        self,
        series: SeriesSet,
        blame: Blame,
        calls: Calls,
        uptime: Uptime,
        *,
        vitals: Callable[[], VitalsReading],
        machine: Callable[[], Machine],
    ) -> None:
        self._own, self._own_blame = series, blame
        self._series: SeriesSet | Report = series
        self._blame: Callable[[str, str, float, float], None] = blame.add
        self._calls = calls
        self._uptime = uptime
        self._vitals = vitals
        self._machine = machine
        self._before: tuple[VitalsReading, Machine] | None = None
        self.slow = 1_000.0
        """Milliseconds from which on a call is somebody's fault: the shortest time a target promises."""

    def look(self, report: Report | None = None) -> float:
        """Look once; returns the time of it. With a report, only at what is this replica's own, and into that."""
        vitals, machine = self._vitals(), self._machine()
        now = vitals.time
        if report is None:
            self._series, self._blame = self._own, self._own_blame.add
            self._uptime.look(now, up=usable(vitals.components))
            self._hive(vitals, now)
        else:
            self._series, self._blame = report, report.blame
        self._gauges(vitals, machine, now)
        if self._before is not None:
            before, machine_before = self._before
            seconds = now - before.time
            if seconds > 0:
                self._since(before, vitals, seconds, now)
                self._gauge("cpu_usage_percent", now, cpu_percent(machine_before, machine))
                self._gauge("network_throughput_mbps", now, network_mbps(machine_before, machine, seconds))
        self._before = (vitals, machine)
        self._times(now)
        return now

    def _gauge(self, name: str, now: float, value: float | None) -> None:
        if value is not None:
            self._series.gauge(name, now, value)

    def _hive(self, vitals: VitalsReading, now: float) -> None:
        agents = vitals.agents
        readings = {
            "active_agents": float(sum(agents.get(state, 0) for state in IN_CONTACT)),
            "busy_agents": float(agents.get("BUSY", 0)),
            "total_sessions": float(vitals.sessions),
            "pending_tasks": float(vitals.queue_depth),
            "held_tasks": float(vitals.held_tasks),
        }
        for name, value in readings.items():
            self._gauge(name, now, value)

    def _gauges(self, vitals: VitalsReading, machine: Machine, now: float) -> None:
        self._gauge("memory_usage_percent", now, machine.memory_percent)
        self._gauge("disk_usage_percent", now, machine.disk_percent)
        if vitals.resident_bytes:
            self._gauge("server_memory_mb", now, vitals.resident_bytes / _MEGABYTE)
        self._time("event_loop_lag_ms", now, vitals.event_loop_lag)
        if vitals.store_latency is not None:
            self._time("db_query_time_ms", now, vitals.store_latency)

    def _time(self, name: str, now: float, seconds: float) -> None:
        bucket = Bucket()
        bucket.add_time(seconds * 1e3)
        self._series.add(name, now, bucket)

    def _since(self, before: VitalsReading, now_is: VitalsReading, seconds: float, now: float) -> None:
        used = max(0.0, now_is.cpu_seconds - before.cpu_seconds)
        self._series.gauge("server_cpu_percent", now, 100.0 * used / seconds)
        if now_is.store_latency is not None:
            # The utilisation law (Denning and Buzen, 1978): how busy the one connection that writes is, is the rate of
            # its commits times what one takes.
            commits = max(0, now_is.commits - before.commits) / seconds
            self._series.gauge("db_pool_usage_percent", now, min(100.0, 100.0 * commits * now_is.store_latency))
        grown = _grown(before.calls, now_is.calls)
        self._codes({key: count for key, count in grown.items() if not key[0].startswith(_PROBES)}, now)

    def _codes(self, calls: Mapping[tuple[str, str], int], now: float) -> None:
        self._series.count("calls", now, sum(calls.values()))
        for (method, code), count in calls.items():
            if code in FAULTS:
                self._series.count("call_faults", now, count)
                self._blame("fault", method, count, now)
        for name, codes in _REFUSALS.items():
            self._series.count(name, now, sum(count for (_, code), count in calls.items() if code in codes))

    def _times(self, now: float) -> None:
        for method, name, bucket in self._calls.take():
            self._series.add(name, now, bucket)
            self._series.add("response_time_ms", now, bucket)
            self._blame("slow", method, bucket.above(self.slow), now)


def _grown(before: Mapping[tuple[str, str], int], after: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """Return by how much counters have grown; those that did not are left out."""
    return {key: count - before.get(key, 0) for key, count in after.items() if count > before.get(key, 0)}
