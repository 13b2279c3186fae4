"""The interceptors that are always on: call id, access log, deadline cap, limit on calls at once."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final

from agenthive_server import telemetry
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import Overloaded
from agenthive_server.plugin.api import Call, Interceptor, Load, Outcome, Stage
from agenthive_server.telemetry import Histogram, Sample

CALL_ID_KEY: Final = "agenthive-call-id"

_log = logging.getLogger(__name__)
_access = logging.getLogger("agenthive_server.access")


class CallId:
    """Gives every call an id: in the context for logs, in the trailing metadata for the caller."""

    stage = Stage.EDGE

    def __init__(self, prefix: str) -> None:
        self._prefix = f"{prefix}-"
        self._numbers = itertools.count(1)

    def before(self, call: Call) -> None:
        """Set the id."""
        call.call_id = call_id = f"{self._prefix}{next(self._numbers):x}"
        call.trailing = ((CALL_ID_KEY, call_id),)
        # The RPC runs in a task of its own, so there is nothing to set back.
        telemetry.call_id.set(call_id)

    def after(self, call: Call, outcome: Outcome) -> None:
        """Do nothing."""


TIMED: Final = frozenset({Load.UNARY, Load.FREE})
"""Calls whose duration says something; a stream lasts as long as its caller wants."""


class AccessLog:
    """Counts every call and times those that are no streams. One line per call only at level DEBUG."""

    stage = Stage.EDGE

    def __init__(self, clock: Clock) -> None:
        self._now = clock.monotonic
        self._calls: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._durations: defaultdict[str, Histogram] = defaultdict(Histogram)

    def before(self, call: Call) -> None:
        """Note when it came in."""
        call.started = self._now()

    def after(self, call: Call, outcome: Outcome) -> None:
        """Count it."""
        seconds = self._now() - call.started
        self._calls[(call.method, outcome.code)] += 1
        if call.policy.load in TIMED:
            self._durations[call.method].observe(seconds)
        if _access.isEnabledFor(logging.DEBUG):
            fields = {
                telemetry.METHOD: call.method,
                telemetry.CODE: outcome.code,
                telemetry.REASON: outcome.reason,
                telemetry.CALL_ID: call.call_id,
                telemetry.NAMESPACE: call.namespace,
                telemetry.PRINCIPAL: call.principal,
                telemetry.PEER: call.transport.peer(),
            }
            _access.debug("rpc %s %s in %.1f ms", call.method, outcome.code, seconds * 1e3, extra=fields)

    def calls(self) -> dict[tuple[str, str], int]:
        """Return how many calls were answered, by method and status code."""
        return dict(self._calls)

    def metrics(self) -> Iterator[Sample]:
        """Yield the counters."""
        for (method, code), count in self._calls.items():
            yield Sample(telemetry.RPC_CALLS, ((telemetry.METHOD, method), (telemetry.CODE, code)), count)
        for method, duration in self._durations.items():
            yield from duration.samples(telemetry.RPC_DURATION, ((telemetry.METHOD, method),))


class Deadlines:
    """Ends calls whose time is up, with one timer for all of them.

    Calls of one span end in the order in which they began, so that a dictionary per span is a queue from which anything
    can be removed at once; there are only as many spans as the policies name.
    """

    def __init__(self) -> None:
        self._queues: defaultdict[float, dict[Call, asyncio.Task[object]]] = defaultdict(dict)
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, call: Call, span: float, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel the current task, with `call.expired` set, once `call.deadline` has passed."""
        task = asyncio.current_task(loop)
        if task is None:
            return
        self._queues[span][call] = task
        if self._timer is None or self._timer.when() > call.deadline:
            self._arm(loop, call.deadline)

    def forget(self, call: Call, span: float) -> None:
        """Let a call that has ended be."""
        self._queues[span].pop(call, None)

    def expire(self, now: float) -> float | None:
        """End the calls whose deadline is not after `now`; returns the next deadline, or None."""
        nexts: list[float] = []
        for queue in self._queues.values():
            for call in list(queue):
                if call.deadline > now:
                    nexts.append(call.deadline)
                    break
                task = queue.pop(call)
                if not call.answered:
                    call.expired = True
                    task.cancel("deadline exceeded")
        return min(nexts, default=None)

    def _arm(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(when, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        following = self.expire(loop.time())
        if following is not None:
            self._arm(loop, following)


class DeadlineCap:
    """Gives every unary call a deadline: the caller's, no longer than the policy allows, or the policy's default."""

    stage = Stage.EDGE

    def __init__(self, deadlines: Deadlines | None = None) -> None:
        self._deadlines = deadlines or Deadlines()
        self._loop: asyncio.AbstractEventLoop | None = None

    def before(self, call: Call) -> None:
        """Set the deadline; gRPC enforces the caller's own, this watches over the others."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        span = self._span(call)
        if span:
            call.deadline = loop.time() + span
            self._deadlines.watch(call, span, loop)
        elif call.remaining is not None:
            call.deadline = loop.time() + call.remaining

    def after(self, call: Call, outcome: Outcome) -> None:
        """Stop watching."""
        span = self._span(call)
        if span:
            self._deadlines.forget(call, span)

    @staticmethod
    def _span(call: Call) -> float:
        """Return the seconds the server itself has to enforce; zero when the caller's own deadline comes first."""
        policy, remaining = call.policy, call.remaining
        if remaining is None:
            return policy.default_deadline
        return policy.longest_deadline if remaining > policy.longest_deadline else 0.0


class ConcurrencyLimit:
    """Bounds the calls at once: unary ones and streams apart; sessions and probes are only counted."""

    stage = Stage.EDGE

    def __init__(self, *, unary: int = 2_000, streams: int = 10_000, retry_after: float = 1.0) -> None:
        bounds = {Load.UNARY: unary, Load.STREAM: streams}
        self._limits = [bounds.get(load, sys.maxsize) for load in Load]
        self._in_flight = [0] * len(Load)
        self._refused = [0] * len(Load)
        self._retry_after = retry_after

    def before(self, call: Call) -> None:
        """Count the call in; raises `Overloaded` when there are too many."""
        load = call.policy.load
        running = self._in_flight[load]
        if running >= self._limits[load]:
            self._refused[load] += 1
            kind = load.name.lower()
            raise Overloaded(
                f"{running} {kind} calls are being served already",
                metadata={"limit": str(running), "load": kind},
                retry_after=self._retry_after,
            )
        self._in_flight[load] = running + 1

    def after(self, call: Call, outcome: Outcome) -> None:
        """Count the call out."""
        self._in_flight[call.policy.load] -= 1

    def in_flight(self, load: Load) -> int:
        """Return the calls of this kind that are being served."""
        return self._in_flight[load]

    def metrics(self) -> Iterator[Sample]:
        """Yield the gauges and counters."""
        for load in Load:
            label = ((telemetry.LOAD, load.name.lower()),)
            yield Sample(telemetry.RPC_IN_FLIGHT, label, self._in_flight[load])
            yield Sample(telemetry.RPC_REFUSED, label, self._refused[load])


class BuiltIn:
    """The built-in interceptors in their order, and what they measure."""

    def __init__(self, *, clock: Clock, new_id: Callable[[], str], unary: int = 2_000, streams: int = 10_000) -> None:
        self.access = AccessLog(clock)
        self.limit = ConcurrencyLimit(unary=unary, streams=streams)
        self.interceptors: tuple[Interceptor, ...] = (CallId(new_id()[-8:]), self.access, DeadlineCap(), self.limit)

    def metrics(self) -> Iterator[Sample]:
        """Yield what they measure."""
        yield from self.access.metrics()
        yield from self.limit.metrics()
