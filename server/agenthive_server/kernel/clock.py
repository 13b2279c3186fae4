"""The only place that reads time: a clock that runs by itself, and one that tests move by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """Wall-clock time in seconds since 1970, a monotonic reading for spans, and waiting."""

    def now(self) -> float:
        """Return the wall-clock time in seconds since 1970."""

    def monotonic(self) -> float:
        """Return seconds that never go back, for measuring spans."""

    async def sleep(self, seconds: float) -> None:
        """Wait for a span of this clock; returns at once when it is not positive."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return the wall-clock time in seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never go back; time in which the machine was suspended counts."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for a span; cancellation ends it early."""
        await asyncio.sleep(max(0.0, seconds))


class ManualClock:
    """A clock that stands still until it is moved. Sleepers wake in the order of their times."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        """Return the time it was moved to."""
        return self._now

    def monotonic(self) -> float:
        """Return the time it was moved to."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has been moved past the end of the span."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        await future

    @property
    def next_wake(self) -> float | None:
        """The time of the earliest sleeper, or None when nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def move(self, seconds: float) -> None:
        """Move the clock forward at once, waking every sleeper whose time has come."""
        self._now += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)

    async def advance(self, seconds: float) -> None:
        """Move forward sleeper by sleeper, letting whoever wakes run before the clock goes on."""
        end = self._now + seconds
        while (wake := self.next_wake) is not None and wake <= end:
            self.move(wake - self._now)
            await settle()
        self.move(end - self._now)
        await settle()


async def settle(turns: int = 20) -> None:
    """Let everything that is ready on the event loop run."""
    for _ in range(turns):
        await asyncio.sleep(0)
