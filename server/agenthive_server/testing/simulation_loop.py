"""An event loop without a machine below it: what is ready runs in a drawn order, and time is a `ManualClock`."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

from agenthive_server.kernel.clock import ManualClock

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STEP = 1e-6
"""The least by which time moves, so that rounding never leaves it just before a deadline."""


class SeededLoop(asyncio.BaseEventLoop):
    """Runs one ready callback after another, each drawn by chance; when none is, the clock moves to the next deadline.

    Without files, sockets and threads; so the same dice give the same run, callback by callback.
    """

    def __init__(self, clock: ManualClock, dice: random.Random) -> None:
        super().__init__()
        self._clock = clock
        self._dice = dice
        self._waiting: list[asyncio.Handle] = []
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._made = 0
        self.steps = 0

    def time(self) -> float:
        """Return the clock's time."""
        return self._clock.now()

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Have a callback run when its turn is drawn."""
        handle = asyncio.Handle(callback, args, self, context)
        self._waiting.append(handle)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Have a callback run once the clock has reached a time."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._made += 1
        heapq.heappush(self._timers, (when, self._made, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: a cancelled one is passed over when its time comes."""

    def _run_once(self) -> None:
        while not self._waiting:
            self._move()
        self._ripen()
        waiting = self._waiting
        at = int(self._dice.random() * len(waiting))
        waiting[at], waiting[-1] = waiting[-1], waiting[at]
        handle = waiting.pop()
        if not handle.cancelled():
            self.steps += 1
            handle._run()

    def _move(self) -> None:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        times = [time for time in (self._clock.next_wake, self._timers[0][0] if self._timers else None) if time]
        if not times:
            raise RuntimeError("everything waits and nothing will ever happen")
        self._clock.move(max(min(times) - self._clock.now(), STEP))
        self._ripen()

    def _ripen(self) -> None:
        now = self._clock.now()
        while self._timers and self._timers[0][0] <= now:
            handle = heapq.heappop(self._timers)[2]
            if not handle.cancelled():
                self._waiting.append(handle)


def run(main: Callable[[], Coroutine[Any, Any, T]], clock: ManualClock, dice: random.Random) -> T:
    """Run a coroutine to its end on a loop of its own."""
    loop = SeededLoop(clock, dice)
    try:
        return loop.run_until_complete(main())
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
            for task in left:
                # Looked at, so that nobody complains: the run is over, well or not.
                _ = task.cancelled() or task.exception()
        loop.close()
