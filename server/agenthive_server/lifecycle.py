"""What a server process lives by: background loops that are kept alive, signals, the lag of the event loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.health import Reading, Status
from agenthive_server.telemetry import Histogram

_log = logging.getLogger(__name__)

Loop = Callable[[], Coroutine[Any, Any, None]]

REST = 1.0
"""Seconds before a loop that failed is started again."""


class StartError(Exception):
    """The server cannot start: a sentence for the operator."""


class Loops:
    """Runs background loops in one task group. One that fails is told in health and in the log, and started again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self, loops: Mapping[str, Loop]) -> None:
        """Start the loops; they run until `stop`."""
        self._task = asyncio.create_task(self._run(loops))

    async def _run(self, loops: Mapping[str, Loop]) -> None:
        async with asyncio.TaskGroup() as group:
            for name, loop in loops.items():
                group.create_task(self._keep(name, loop), name=name)

    async def _keep(self, name: str, loop: Loop) -> None:
        while True:
            try:
                await loop()
                return
            except Exception as error:  # noqa: BLE001 - a defect in one loop must not end the server; it is told and logged
                _log.exception("loop %s failed and is started again", name)
                self._failures[name] = f"{type(error).__name__}; started again"
            await self._clock.sleep(REST)

    async def stop(self) -> None:
        """Cancel the loops and wait for their end."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def probe(self) -> list[tuple[str, Reading]]:
        """Return a reading for each loop that has ever failed."""
        return [(f"loop/{name}", Reading(Status.DEGRADED, why)) for name, why in self._failures.items()]


class LoopLag:
    """Measures how late the event loop is."""

    EVERY = 0.5
    LATE = 0.25

    def __init__(self) -> None:
        self.lag = 0.0
        self.worst = 0.0
        self.delays = Histogram()

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(self.EVERY)
            self.lag = max(0.0, loop.time() - began - self.EVERY)
            self.worst = max(self.worst, self.lag)
            self.delays.observe(self.lag)

    def probe(self) -> list[tuple[str, Reading]]:
        """Return the last lag; DEGRADED when it was late."""
        late = self.lag > self.LATE
        reason = f"{self.lag * 1000:.0f} ms late" if late else ""
        return [("event_loop", Reading(Status.DEGRADED if late else Status.OK, reason, self.lag))]


LONG_PASS = 0.1
"""Seconds of a full pass of Python's collector after which what it found alive is not looked at again."""


def keep_collections_short(clock: Clock) -> None:
    """Let the collector of this process look at little, from now on.

    Almost nothing here is cyclic; looking for it as often as Python does cost an eighth of a delegated task, and a full
    pass over a million tasks 5 s, longer than a replica may be silent. What a long pass found alive is not looked at
    again: reference counts free it like everything else, and only cycles made of it later would stay.
    """
    began = 0.0

    def passed(phase: str, info: Mapping[str, int]) -> None:
        nonlocal began
        if info["generation"] < 2:
            return
        if phase == "start":
            began = clock.monotonic()
        elif clock.monotonic() - began > LONG_PASS:
            gc.freeze()

    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    gc.callbacks.append(passed)


def allow_connections() -> None:
    """Let this process have as many open files as it may: every connection is one, and shells allow 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def tell_manager(address: str, state: str) -> None:
    """Tell a service manager of a state (`READY=1`, `STOPPING=1`), as `sd_notify(3)` does, if there is one."""
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, suppress(OSError):
        manager.setblocking(False)
        # A name that begins with @ is in the abstract namespace.
        manager.sendto(state.encode("ascii"), "\0" + address[1:] if address.startswith("@") else address)


class Signals:
    """SIGTERM and SIGINT: the first asks for a graceful stop, the second for the end of all waiting."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()

    def install(self) -> None:
        """Take the signals of this process; only in the main thread."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received)

    def _received(self) -> None:
        if self.stop.is_set():
            self.hurry.set()
        self.stop.set()
