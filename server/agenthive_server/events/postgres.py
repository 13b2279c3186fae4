"""Rings when the log has grown on any server of a database. What it hears is PostgreSQL's LISTEN; without that, and
when nothing was heard for a second, it looks."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.health import Reading, Status

LOOKED_EVERY: Final = 1.0
"""Seconds for which an event may be overlooked when nobody rings."""

_log = logging.getLogger(__name__)


class Ear(Protocol):
    """Calls back after every commit, until it is closed or its connection fails."""

    async def look(self) -> int:
        """Return the head of the log; raises `StoreUnavailable` when nothing can be heard any more."""

    def close(self) -> None:
        """Listen no more."""


class PostgresNotifier:
    """Tells the notifier of this process what was committed anywhere.

    `listen` opens an ear that calls back with the head of the log, `head` asks for it without one. Both raise
    `StoreUnavailable`. `ring` is told how far the log reaches; the same more than once, and what it may know already.
    """

    def __init__(
        self,
        listen: Callable[[Callable[[int], None]], Awaitable[Ear]],
        head: Callable[[], Awaitable[int]],
        ring: Callable[[int], None],
        clock: Clock,
    ) -> None:
        self._listen = listen
        self._head = head
        self._ring = ring
        self._clock = clock
        self._heard = False
        # Why nothing can be heard at present; empty while all is well.
        self.trouble = "not listening yet"

    def announce(self, head: int) -> None:
        """Do nothing: the database tells of every commit."""

    async def run(self) -> None:
        """Listen until cancelled; go on by looking while that is not possible."""
        while True:
            try:
                ear = await self._listen(self._notified)
            except StoreUnavailable as error:
                self._deaf(error)
                await self._look()
                await self._clock.sleep(LOOKED_EVERY)
                continue
            try:
                await self._follow(ear)
            except StoreUnavailable as error:
                self._deaf(error)
            finally:
                ear.close()

    async def _follow(self, ear: Ear) -> None:
        while True:
            # The first time: what was committed before anyone listened. Then: what nobody notified of.
            head = await ear.look()
            self.trouble = ""
            self._ring(head)
            await self._silence()

    async def _silence(self) -> None:
        """Return when nothing was heard for a while."""
        self._heard = True
        while self._heard:
            self._heard = False
            await self._clock.sleep(LOOKED_EVERY)

    async def _look(self) -> None:
        try:
            self._ring(await self._head())
        except StoreUnavailable as error:
            self._deaf(error)

    def _notified(self, head: int) -> None:
        self._heard = True
        self._ring(head)

    def _deaf(self, error: StoreUnavailable) -> None:
        if not self.trouble:
            _log.warning("listening_failed", extra={"error": error.message})
        self.trouble = error.message

    def probe(self) -> list[tuple[str, Reading]]:
        """Return a reading: DEGRADED while readers are woken by a look a second only."""
        return [("listener", Reading(Status.DEGRADED if self.trouble else Status.OK, self.trouble))]
