"""Where what of a plugin runs on one replica at a time: its handlers, and its loops that are not for everywhere.

All of it runs on the same replica, so that it may share what it has in memory; which one that is, is one row in the
database, taken once. Before any of it begins there, the plugin is told that it takes over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import KernelError
from agenthive_server.kernel.replicas import Role

from .cell import Act
from .driving import driven, steps_of
from .patience import FAILURES

if TYPE_CHECKING:
    from agenthive_server.kernel.decide import View

PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
"""Seconds before a plugin that could not take over tries again: doubled with each failure, up to this."""

_log = logging.getLogger(__name__)


def _nothing() -> None:
    pass


class Unseated(Exception):
    """This replica has the role no more."""


class Seat:
    """The role of one open plugin, as `kernel.replicas.Role`; held when the plugin has taken over as well."""

    def __init__(self, role: Role, clock: Clock) -> None:
        self._role = role
        self._clock = clock
        self._act: Act | None = None
        self._takes_over: Callable[[], Awaitable[None]] | None = None
        self._taking = asyncio.Lock()
        self._ready = False
        self._left = False
        # What runs, and whether nothing does.
        self._spans: set[asyncio.Timeout] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        role.when_lost(self._lost)

    def prepare(self, act: Act, takes_over: Callable[[], Awaitable[None]]) -> None:
        """Have this called before anything begins on this replica; `act` is what it counts under."""
        self._act, self._takes_over = act, takes_over

    @property
    def held(self) -> bool:
        """Whether this replica has the role, and the plugin took over."""
        return self._ready

    async def acquire(self) -> None:
        """Wait until this replica has the role and the plugin took over; where it was left that is never."""
        while self._left or not self._ready:
            if self._left:
                await asyncio.Event().wait()
            await self._role.acquire()
            async with self._taking:
                await self._take_over()

    async def _take_over(self) -> None:
        """Tell the plugin, again and again until it goes well or the role is lost."""
        pause = PAUSE
        while self._role.held and not self._ready and not self._left:
            if await self._told():
                self._ready = True
                return
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _told(self) -> bool:
        act, takes_over = self._act, self._takes_over
        if act is None or takes_over is None:
            return True
        act.calls += 1
        try:
            async with self.span():
                await driven(steps_of(takes_over()), act.cell.running, act)
        except (Unseated, KernelError):
            # A store that cannot be read is no failure of the plugin.
            return False
        except FAILURES as error:
            act.cell.failed(act, error)
            return False
        return True

    @asynccontextmanager
    async def span(self) -> AsyncIterator[None]:
        """Hold what runs in it to the time in which this replica has the role; raises `Unseated` when that is over."""
        span = asyncio.timeout(None)
        try:
            async with span:
                self._spans.add(span)
                self._empty.clear()
                yield
        except TimeoutError:
            if not span.expired():
                raise
        finally:
            self._spans.discard(span)
            if not self._spans:
                self._empty.set()
        if span.expired():
            raise Unseated

    def check(self, view: View) -> None:
        """Let the change set of a decision stand only if the role is then still held."""
        self._role.check(view)

    async def leave(self, seconds: float) -> None:
        """End what runs, within so many seconds, and begin with nothing any more; the role is held until `release`."""
        self._left = True
        self._end()
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            _log.error("what a plugin runs does not end with its role")

    async def release(self) -> None:
        """Let another replica have it at once."""
        self._left, self._ready = True, False
        # The role outlives whoever had it.
        self._role.when_lost(_nothing)
        await self._role.release()

    def when_lost(self, tell: Callable[[], None]) -> None:
        """Do nothing: what runs in a `span` is ended."""

    def _lost(self) -> None:
        self._ready = False
        self._end()

    def _end(self) -> None:
        for span in tuple(self._spans):
            if not span.expired():
                span.reschedule(0.0)
