"""An event loop without a machine below it: what is ready runs in a drawn order, and time is a `ManualClock`."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar, TypeVarTuple

from agenthive_server.kernel.clock import ManualClock

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STEP = 1e-6
"""The least by which time moves, so that rounding never leaves it just before a deadline."""

MANY = 200
"""Tasks of a process among which those that are done are not looked for."""


class Process:
    """What runs as one process of a simulation: it can be stopped, goes on where it was, and can be killed."""

    def __init__(self) -> None:
        self._context = copy_context()
        self._context.run(_PROCESS.set, self)
        self.stopped = False
        self.held: list[asyncio.Handle] = []
        self.tasks: list[asyncio.Task[Any]] = []

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something in this process."""
        return asyncio.get_running_loop().create_task(work, context=self._context.copy())

    def go_on(self) -> None:
        """Let what is stopped run again."""
        self.stopped = False
        held, self.held = self.held, []
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SeededLoop)
        loop.put_back(held)

    async def kill(self) -> None:
        """End everything in it."""
        tasks = [task for task in self.tasks if not task.done()]
        for task in tasks:
            task.cancel()
        if self.stopped:
            self.go_on()
        if tasks:
            await asyncio.wait(tasks)


_PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


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
        # Processes that were stopped; at the end nobody is.
        self._stopped: dict[Process, None] = {}
        self._ending = False
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

    def create_task(  # type: ignore[override] # its own has no name for what it takes
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Make a task, one of the process it is made in."""
        task = super().create_task(coro, name=name, context=context)
        process = (context or copy_context()).get(_PROCESS)
        if process is not None:
            if len(process.tasks) > MANY:
                process.tasks = [known for known in process.tasks if not known.done()]
            process.tasks.append(task)
        return task

    def end(self) -> None:
        """Let no process be stopped any more."""
        self._ending = True
        for process in self._stopped:
            self.put_back(process.held)
            process.held = []

    def put_back(self, handles: Iterable[asyncio.Handle]) -> None:
        """Let callbacks wait for their turn again."""
        self._waiting.extend(handles)

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
        if handle.cancelled():
            return
        process = handle._context.get(_PROCESS)  # type: ignore[attr-defined] # missing there
        if process is not None and process.stopped and not self._ending:
            process.held.append(handle)
            self._stopped[process] = None
            return
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
        loop.end()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
            for task in left:
                # Looked at, so that nobody complains: the run is over, well or not.
                _ = task.cancelled() or task.exception()
        loop.close()
