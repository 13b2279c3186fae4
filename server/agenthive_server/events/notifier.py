"""Wakes readers in this process; carries no data."""

from __future__ import annotations

import asyncio
import math
from collections import deque

from agenthive_server.kernel.clock import Clock

TICK = 0.25
"""Timeouts are looked after at most this often: one coarse wheel for thousands of waiting readers."""

NEVER = 2**63
"""A sequence no log grows beyond: who waits for it waits for the timeout."""

PACE_PER_READER = 50e-6
MAX_PACE = 0.2
"""Writing a frame takes some 30 µs. Woken for every event, 50 readers would keep the loop busy with 1,000 events/s."""

BATCH = 100
"""Readers let go in one turn of the event loop."""

_Waiter = tuple[int, float, "asyncio.Future[bool]"]


class LocalNotifier:
    """Wakes whoever waits for the log to grow, without a task or a timer per waiter.

    Rings are gathered: readers are woken once per turn of the event loop, and when many were woken, not again before
    they have had time to write what they found (`PACE_PER_READER` each, at most `MAX_PACE`). Timeouts need `run`.
    """

    def __init__(self, clock: Clock, *, max_pace: float = MAX_PACE) -> None:
        self._clock = clock
        self._max_pace = max_pace
        self._waiters: list[_Waiter] = []
        self._room = 64
        # What was rung, and what the readers have been told of.
        self._head = 0
        self._announced = 0
        # Woken, but not yet let go.
        self._ready: deque[asyncio.Future[bool]] = deque()
        self._waking: asyncio.Handle | None = None
        self._next_wake = 0.0
        self._crowd = 0.0
        self._alarm: asyncio.Future[None] | None = None
        self._due = math.inf
        self._rung_at = 0.0
        # Seconds from the last ring that found readers until they were let go; None before the first.
        self.latency: float | None = None

    @property
    def waiting(self) -> int:
        """How many wait, those included whose call was cancelled a moment ago."""
        return len(self._waiters)

    def gathering(self, position: int) -> bool:
        """Whether a reader at a position should wait: what is beyond it is about to be announced to everyone."""
        return self._waking is not None and position >= self._announced

    def ring(self, head: int) -> None:
        """Tell everyone that the log has grown to `head`. Called on the event loop; returns at once."""
        if head <= self._head:
            return
        self._head = head
        if self._waking is not None:
            return
        loop = asyncio.get_running_loop()
        self._rung_at = loop.time()
        delay = self._next_wake - self._rung_at
        if delay > 0:
            self._waking = loop.call_later(delay, self._wake)
        elif self._waiters:
            self._waking = loop.call_soon(self._wake)
        else:
            self._announced = head

    async def wait(self, beyond: int, timeout: float) -> bool:  # noqa: ASYNC109 - not a timer each: one wheel for all
        """Wait until the log has grown beyond a sequence; False after `timeout` seconds. May be cancelled."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.enlist(future, beyond, timeout)
        return await future

    def enlist(self, future: asyncio.Future[bool], beyond: int, timeout: float | None = None) -> None:
        """Resolve a future of the caller as `wait` would answer; it may be enlisted with several notifiers."""
        if self._announced > beyond:
            if not future.done():
                future.set_result(True)
            return
        deadline = math.inf if timeout is None else self._clock.monotonic() + timeout
        self._waiters.append((beyond, deadline, future))
        if len(self._waiters) > self._room:
            self._sweep()
        if deadline < self._due and self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)

    async def run(self) -> None:
        """End the waits whose time is up, until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._alarm = loop.create_future()
                earliest = self._expire()
                if earliest == math.inf:
                    self._due = math.inf
                    await self._alarm
                else:
                    await self._doze(max(TICK, earliest - self._clock.monotonic()), self._alarm)
        finally:
            self._alarm = None
            self._due = math.inf

    async def _doze(self, seconds: float, alarm: asyncio.Future[None]) -> None:
        """Sleep for a span of the clock, or until somebody comes whose time is up earlier."""
        self._due = self._clock.monotonic() + seconds
        sleeper = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait((sleeper, alarm), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()

    def _wake(self) -> None:
        self._waking = None
        self.latency = asyncio.get_running_loop().time() - self._rung_at
        head = self._announced = self._head
        waiters, self._waiters = self._waiters, []
        before = len(self._ready)
        for waiter in waiters:
            beyond, _, future = waiter
            if future.done():
                continue
            if beyond < head:
                self._ready.append(future)
            else:
                self._waiters.append(waiter)
        woken = len(self._ready) - before
        if not before:
            self._release()
        # Those who are still writing will be back: forget them slowly.
        self._crowd = max(woken, 0.9 * self._crowd)
        pace = min(self._crowd * PACE_PER_READER, self._max_pace)
        self._next_wake = asyncio.get_running_loop().time() + pace

    def _release(self) -> None:
        """Let a batch go; the next one after whatever else the event loop has to do."""
        for _ in range(min(BATCH, len(self._ready))):
            future = self._ready.popleft()
            if not future.done():
                future.set_result(True)
        if self._ready:
            asyncio.get_running_loop().call_soon(self._release)

    def _expire(self) -> float:
        """End the waits that are overdue; returns the earliest time another one is."""
        now = self._clock.monotonic() + 1e-6
        for _, deadline, future in self._waiters:
            if deadline <= now and not future.done():
                future.set_result(False)
        self._sweep()
        return min((deadline for _, deadline, _ in self._waiters), default=math.inf)

    def _sweep(self) -> None:
        self._waiters = [waiter for waiter in self._waiters if not waiter[2].done()]
        self._room = 64 + 2 * len(self._waiters)
