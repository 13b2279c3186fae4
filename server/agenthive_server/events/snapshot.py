"""Synthetic events of a snapshot, encoded group by group as the reader takes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from agenthive_server.kernel.events import Event, EventType

from .filter import EventFilter
from .frames import LARGE_BYTES, LARGE_EVENTS

ENCODE = 64
"""Events looked at in one go."""


class Packing:
    """Packs what one reader wants of a snapshot. Nothing of it is kept: nobody else reads it."""

    def __init__(self, events: Sequence[Event], wanted: EventFilter, encode: Callable[[Event], bytes]) -> None:
        self._events = events
        self._wanted = wanted
        self._encode = encode
        self._counts = {EventType.AGENT_SNAPSHOT: 0, EventType.TASK_SNAPSHOT: 0}

    async def groups(self) -> AsyncGenerator[list[bytes], None]:
        """Yield wire forms, as many at a time as a large frame holds."""
        wires: list[bytes] = []
        size = 0
        for number, event in enumerate(self._events):
            if number % ENCODE == 0:
                await asyncio.sleep(0)
            if not self._wanted.matches(event):
                continue
            wires.append(self._encode(event))
            size += len(wires[-1])
            self._counts[event.type] += 1
            if len(wires) >= LARGE_EVENTS or size >= LARGE_BYTES:
                yield wires
                wires, size = [], 0
        if wires:
            yield wires

    def end_mark(self, time: float) -> Event:
        """Return the event that says the snapshot is complete, with how much of it this reader was sent."""
        data = {
            "agent_count": self._counts[EventType.AGENT_SNAPSHOT],
            "task_count": self._counts[EventType.TASK_SNAPSHOT],
        }
        return Event(type=EventType.SNAPSHOT_END, namespace=self._wanted.namespace or "", data=data, time=time)
