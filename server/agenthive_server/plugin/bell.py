"""Bells: how a plugin hears on every replica that something happened, wherever in the hive that was."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import final
from weakref import WeakSet

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.events import Event, EventType


@final
class Bell:
    """Rings when this replica hears of an event of certain types.

    It only rings: what happened is in the store then. It may be missed, so whoever waits for it looks by himself now
    and then.
    """

    def __init__(self, kinds: Collection[EventType], clock: Clock) -> None:
        self.kinds = frozenset(kinds)
        self._clock = clock
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Let whoever waits go on, or not begin to wait."""
        self._rung.set()

    async def wait(self, seconds: float) -> None:
        """Return when it has rung since this returned the last time, or after so many seconds."""
        waits = {asyncio.ensure_future(self._rung.wait()), asyncio.ensure_future(self._clock.sleep(seconds))}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self._rung.clear()


class Bells:
    """All bells of a server; those nobody holds any more are forgotten."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._bells: WeakSet[Bell] = WeakSet()

    def bell(self, kinds: Collection[EventType]) -> Bell:
        """Return a new bell."""
        made = Bell(kinds, self._clock)
        self._bells.add(made)
        return made

    def heard(self, events: Sequence[Event]) -> None:
        """Ring those that these events are for."""
        for bell in self._bells:
            if any(event.type in bell.kinds for event in events):
                bell.ring()
