"""The database's clock as a server sees it: its own, set by what the database says with every renewal of a lease."""

from __future__ import annotations

import logging
from typing import Final

from agenthive_server.kernel.clock import Clock

NOTABLE: Final = 1.0
"""Seconds by which two clocks differ that should not."""

_log = logging.getLogger(__name__)


class DatabaseClock:
    """A clock that is set by another. Spans are its own; only the time of day follows.

    It is moved by no more than is sure: an answer that took a while tells the time only so exactly.
    """

    def __init__(self, own: Clock) -> None:
        self._own = own
        # Seconds by which the database's clock is ahead of this machine's.
        self.offset = 0.0

    def now(self) -> float:
        """Return the wall-clock time of the database, in seconds since 1970."""
        return self._own.now() + self.offset

    def monotonic(self) -> float:
        """As this machine's clock."""
        return self._own.monotonic()

    async def sleep(self, seconds: float) -> None:
        """As this machine's clock."""
        await self._own.sleep(seconds)

    def follow(self, asked: float, told: float) -> None:
        """Take what the database said: it was `told` there at some time between `asked` (by this clock) and now."""
        earliest, latest = told - self.now(), told - asked
        change = max(earliest, min(latest, 0.0))
        if not change:
            return
        if abs(change) > NOTABLE:
            _log.warning("clock_differs", extra={"seconds": round(change, 3), "clock": "database"})
        self.offset += change
