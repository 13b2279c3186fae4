"""What whoever waits for a move is told: a line a second at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agenthive_server.kernel.clock import Clock

EVERY: Final = 1.0


class Progress:
    """Counts rows, and says how far it is."""

    def __init__(self, clock: Clock, say: Callable[[str], None]) -> None:
        self._clock = clock
        self.say = say
        self._what, self._total = "", 0
        self._began = self._said = clock.monotonic()
        self.rows = self.written = self.written_before = 0

    def begin(self, what: str, total: int) -> None:
        """Something new is counted, of about so many."""
        self._what, self._total = what, total
        self._began = self._clock.monotonic()
        self.rows = 0
        self.written_before = self.written

    def step(self, written: int = 0) -> None:
        """One row more was looked at, and so many were written."""
        self.rows += 1
        self.written += written
        # The clock is asked now and then: it would cost more than the row.
        if self.rows % 256 == 0 or written:
            self._tell()

    def _tell(self) -> None:
        now = self._clock.monotonic()
        if now - self._said < EVERY:
            return
        self._said = now
        rate = self.rows / max(now - self._began, 0.001)
        copied = self.written - self.written_before
        self.say(
            f"{self._what}: {self.rows:,} of about {max(self._total, self.rows):,} rows"
            + (f", {copied:,} written" if copied else "")
            + f" ({rate:,.0f}/s)"
        )
