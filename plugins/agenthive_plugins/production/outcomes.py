"""Handlers: what becomes of tasks and agents, counted by the time at which it happened.

Events come at least once. One that was counted already (its sequence is not beyond the last that is in the stored
series) is left out, so that a repeat after a crash counts nothing twice; what was counted and not yet stored when the
server was killed is lost, which is at most what came in the last few seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from agenthive_server.plugin.api import Event, EventType, Handler

from .blame import Blame
from .buckets import Bucket
from .series import FINE, SeriesSet

MOST_OPEN: Final = 50_000
"""Tasks of which it is remembered since when they wait or run; of those beyond, the times are not measured."""

_TERMINAL: Final[Mapping[EventType, str]] = {
    EventType.TASK_SUCCEEDED: "tasks_succeeded",
    EventType.TASK_FAILED: "tasks_failed",
    EventType.TASK_EXPIRED: "tasks_failed",
    EventType.TASK_QUARANTINED: "tasks_failed",
    EventType.TASK_CANCELED: "tasks_canceled",
}
_WAITING: Final = (
    EventType.TASK_DELEGATED,
    EventType.TASK_RELEASED,
    EventType.TASK_REQUEUED,
    EventType.TASK_RETRY_SCHEDULED,
    EventType.TASK_RETRIED,
)


class Outcomes:
    """Counts events, into buckets of its own until they are folded. `sequence` is the last one counted."""

    def __init__(self, series: SeriesSet, blame: Blame, sequence: int) -> None:
        self._series = series
        self._blame = blame
        self.sequence = sequence
        self._waiting: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._running: OrderedDict[tuple[str, str], float] = OrderedDict()
        # By name and span: a dictionary costs a handler a tenth of what the series at three widths do.
        self._counts: dict[tuple[str, int], int] = {}
        self._times: dict[tuple[str, int], Bucket] = {}

    def begin(self, sequence: int) -> None:
        """Go on after an event with what is stored; what was counted and not folded was lost, or counted elsewhere."""
        self.sequence = sequence
        self._counts.clear()
        self._times.clear()
        self._waiting.clear()
        self._running.clear()

    def fold(self) -> int:
        """Write what was counted into the series; returns the last event that is in them now."""
        for (name, span), number in self._counts.items():
            self._series.add(name, span * FINE.width, Bucket(number, number, 1.0, 1.0))
        for (name, span), bucket in self._times.items():
            self._series.add(name, span * FINE.width, bucket)
        self._counts.clear()
        self._times.clear()
        return self.sequence

    def _count(self, name: str, time: float) -> None:
        key = (name, int(time // FINE.width))
        self._counts[key] = self._counts.get(key, 0) + 1

    @property
    def handlers(self) -> Mapping[EventType, Handler]:
        """By type of event."""
        own: dict[EventType, Handler] = dict.fromkeys(_WAITING, self._waits)
        own |= dict.fromkeys(_TERMINAL, self._ended)
        own |= dict.fromkeys((EventType.AGENT_FAILED, EventType.AGENT_LOST), self._agent_failed)
        own[EventType.TASK_STARTED] = self._started
        own[EventType.PLUGIN_REPORTED] = self._reported
        return own

    def _is_new(self, event: Event) -> bool:
        new = event.sequence > self.sequence
        self.sequence = max(self.sequence, event.sequence)
        return new

    async def _waits(self, event: Event) -> None:
        if not self._is_new(event):
            return
        if event.type is EventType.TASK_DELEGATED:
            self._count("tasks_delegated", event.time)
        key = (event.namespace, event.task_id)
        self._running.pop(key, None)
        if event.type is not EventType.TASK_RETRY_SCHEDULED and event.data.get("state") != "BLOCKED":
            _remember(self._waiting, key, event.time)

    async def _started(self, event: Event) -> None:
        if not self._is_new(event):
            return
        key = (event.namespace, event.task_id)
        since = self._waiting.pop(key, None)
        if since is not None:
            self._time("task_queue_wait_ms", event.time, event.time - since)
        _remember(self._running, key, event.time)

    async def _ended(self, event: Event) -> None:
        if not self._is_new(event):
            return
        key = (event.namespace, event.task_id)
        self._waiting.pop(key, None)
        since = self._running.pop(key, None)
        if since is not None and event.type is not EventType.TASK_CANCELED:
            self._time("task_run_time_ms", event.time, event.time - since)
        name = _TERMINAL[event.type]
        self._count(name, event.time)
        if name == "tasks_failed":
            self._blame.add("task", _cause(event), 1, event.time)

    async def _agent_failed(self, event: Event) -> None:
        if self._is_new(event):
            self._count("agent_failures", event.time)

    async def _reported(self, event: Event) -> None:
        grave = event.data.get("plugin") == "security" and event.data.get("severity", "INFO") != "INFO"
        if self._is_new(event) and grave:
            self._count("security_events", event.time)

    def _time(self, name: str, time: float, seconds: float) -> None:
        key = (name, int(time // FINE.width))
        bucket = self._times.get(key)
        if bucket is None:
            bucket = self._times[key] = Bucket()
        bucket.add_time(max(0.0, seconds) * 1e3)


def _remember(times: OrderedDict[tuple[str, str], float], key: tuple[str, str], time: float) -> None:
    times[key] = time
    if len(times) > MOST_OPEN:
        times.popitem(last=False)


def _cause(event: Event) -> str:
    """Return in a word why a task failed: the class of its error, the clock that ran out, or that it is poison."""
    if event.type is EventType.TASK_EXPIRED:
        return f"EXPIRED {event.data.get('clock', '')}".strip()
    if event.type is EventType.TASK_QUARANTINED:
        return "QUARANTINED"
    error = event.data.get("error")
    found = getattr(error, "error_class", None) or "UNKNOWN"
    return str(found)
