"""Frames: responses of an event stream, made once and shared by all readers that stand at the same place.

A frame is the wire form of `StreamEventsResponse`: each event's bytes as field 1, then the cursor as field 2.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from agenthive_server.kernel.events import Event

from .filter import EventFilter, named_in
from .log import EventLog

EVENTS = 64
BYTES = 64 * 2**10
"""What a frame holds at most; the change set that crosses the limit comes whole."""

BEHIND = 128
"""A reader that is further behind gets larger frames."""

LARGE_EVENTS = 1_024
LARGE_BYTES = 256 * 2**10

SCAN = 1_024
"""Events looked at in one go."""

ENCODE = 64
"""Events encoded in one go."""


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_EVENT_FIELD = tuple(b"\x0a" + varint(size) for size in range(1_024))


def join_frame(wires: Iterable[bytes], cursor: str) -> bytes:
    """Return the bytes of a response with these events and a cursor."""
    parts = []
    for wire in wires:
        size = len(wire)
        parts.append(_EVENT_FIELD[size] if size < 1_024 else b"\x0a" + varint(size))
        parts.append(wire)
    text = cursor.encode()
    parts += (b"\x12", varint(len(text)), text)
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Frame:
    """What a reader gets after a position: bytes to send, and where it stands then. No events: nothing to send."""

    data: bytes
    end: int
    count: int
    # Whether more followed when it was made: it stays what it is while the log grows.
    full: bool


class Framer:
    """Makes frames of one log and keeps the last ones within a bound of bytes."""

    def __init__(self, log: EventLog, *, cache_bytes: int = 4 * 2**20) -> None:
        self._log = log
        self._cache: OrderedDict[tuple[EventFilter, int, bool], Frame] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._bytes = 0
        # Who is named in the events that were read last: first and last sequence, and the names.
        self._named: tuple[int, int, frozenset[str]] = (0, 0, frozenset())
        self.made = 0

    async def frame(self, wanted: EventFilter, after: int) -> Frame | None:
        """Return the next frame after a position, None at the head.

        A frame without events moves the position only: more may follow, ask again. Never holds the event loop for more
        than `SCAN` events. Raises what `EventLog.read` raises.
        """
        log = self._log
        large = log.head - after > BEHIND
        key = (wanted, after, large)
        frame = self._cache.get(key)
        if frame is not None and (frame.full or frame.end >= log.head):
            self._cache.move_to_end(key)
            return frame
        events = await log.read(after, SCAN)
        if not events:
            return None
        if wanted.subjects and wanted.excludes(self._names(events)):
            # Not kept: thousands of readers may each want something else.
            end = events[-1].sequence
            return Frame(b"", end, 0, end < log.head)
        frame = await self._make(wanted, after, events, large)
        self._keep(key, frame)
        return frame

    async def _make(self, wanted: EventFilter, after: int, events: list[Event], large: bool) -> Frame:
        most, most_bytes = (LARGE_EVENTS, LARGE_BYTES) if large else (EVENTS, BYTES)
        wires: list[bytes] = []
        size = encoded = 0
        end = after
        for event in events:
            if wanted.matches(event):
                wire = event.wire
                if wire is None:
                    if encoded >= ENCODE:
                        await asyncio.sleep(0)
                        encoded = 0
                    wire = self._log.wire(event)
                    encoded += 1
                wires.append(wire)
                size += len(wire)
            if event.sequence >= event.last:
                end = event.sequence
                if len(wires) >= most or size >= most_bytes:
                    break
        self.made += 1
        data = join_frame(wires, self._log.cursor(end)) if wires else b""
        return Frame(data, end, len(wires), end < self._log.head)

    def _names(self, events: list[Event]) -> frozenset[str]:
        """Return who is named in these events; readers who were woken together ask for the same ones."""
        first, last = events[0].sequence, events[-1].sequence
        if self._named[:2] != (first, last):
            self._named = (first, last, named_in(events))
        return self._named[2]

    def _keep(self, key: tuple[EventFilter, int, bool], frame: Frame) -> None:
        old = self._cache.pop(key, None)
        self._bytes += _weight(frame) - (_weight(old) if old else 0)
        self._cache[key] = frame
        while self._bytes > self._cache_bytes:
            self._bytes -= _weight(self._cache.popitem(last=False)[1])


def _weight(frame: Frame) -> int:
    return 512 + len(frame.data)
