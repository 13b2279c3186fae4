"""Interceptor: how long each call took and whether the server failed it, folded into series by the sampler.

It counts into lists of its own, some half a microsecond a call; everything else happens once in ten seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Final

from agenthive_server.plugin.api import Audience, Call, Load, Outcome, Stage

from .buckets import BINS, BOUNDS_MS, Bucket

FAULTS: Final = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Codes of calls that failed by the server's fault; all others are OK, the caller's, or a refusal with a reason."""

LONGEST: Final = 3_600.0
"""A call that may take longer than this waits by design, and its time says nothing of the server."""

_DELEGATE: Final = "/agenthive.v1.OrchestratorService/DelegateTask"
_WAITS_FOR_RESULT: Final = 2

_SERIES: Final = {
    # Probes and reflection, which nobody waits for: they have no series, and are not timed.
    Audience.ANYONE: "",
    Audience.VIEWER: "viewer_response_time_ms",
    Audience.AGENT: "agent_response_time_ms",
    Audience.OPERATOR: "operator_response_time_ms",
    Audience.ADMIN: "admin_response_time_ms",
}


class Meter:
    """What came of the calls of one method since it was last read."""

    __slots__ = ("bins", "least", "may_wait", "method", "most", "series", "timed", "total")

    def __init__(self, method: str, series: str, *, timed: bool, may_wait: bool) -> None:
        self.method = method
        self.series = series
        self.timed = timed
        self.may_wait = may_wait
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.bins = [0] * BINS
        self.total = 0.0
        self.least = float("inf")
        self.most = 0.0

    def bucket(self) -> Bucket:
        """Return what came since it was last cleared."""
        histogram = {place: count for place, count in enumerate(self.bins) if count}
        return Bucket(float(sum(histogram.values())), self.total, self.least, self.most, histogram)


class Calls:
    """Measures every call that gets as far as its method."""

    stage = Stage.OBSERVE

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._now = monotonic
        self._meters: dict[str, Meter] = {}

    def before(self, call: Call) -> None:
        """Do nothing: when it came in is known."""

    def after(self, call: Call, outcome: Outcome) -> None:
        """Count it. A call its caller gave up says nothing, and one that waits by design neither."""
        meter = self._meters.get(call.method)
        if meter is None:
            meter = self._open(call)
        if not meter.timed or outcome.code == "CANCELLED":
            return
        if meter.may_wait and call.request is not None and call.request.wait_for == _WAITS_FOR_RESULT:
            return
        milliseconds = (self._now() - call.started) * 1e3
        meter.bins[bisect_left(BOUNDS_MS, milliseconds)] += 1
        meter.total += milliseconds
        if milliseconds > meter.most:
            meter.most = milliseconds
        if milliseconds < meter.least:
            meter.least = milliseconds

    def _open(self, call: Call) -> Meter:
        policy = call.policy
        waits = call.method == _DELEGATE
        series = _SERIES[policy.audience]
        short = waits or 0 < policy.longest_deadline <= LONGEST
        timed = bool(series) and short and policy.load in (Load.UNARY, Load.FREE)
        meter = Meter(call.method, series, timed=timed, may_wait=waits)
        self._meters[call.method] = meter
        return meter

    def take(self) -> Iterator[tuple[str, str, Bucket]]:
        """Yield method, series and what came of it since the last time, for each method that was called."""
        for meter in self._meters.values():
            bucket = meter.bucket()
            if bucket.count:
                yield meter.method, meter.series, bucket
                meter.clear()
