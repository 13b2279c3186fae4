"""One reader of class OUTPUT: where it stands, what it has had of each attempt, and what it missed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from agenthive_server.kernel.events import Event, EventType

from .attempt_output import AttemptKey, AttemptOutput, Entry
from .filter import EventFilter
from .output import OutputHub

SCAN = 1_024
"""Entries looked at in one go."""


@dataclass(frozen=True, kw_only=True)
class OutputPosition:
    """Where a reader of one attempt's output stands: the first byte it wants."""

    namespace: str
    task_id: str
    attempt: int
    offset: int

    @property
    def key(self) -> AttemptKey:
        """Which attempt."""
        return (self.namespace, self.task_id, self.attempt)


class OutputReader:
    """Reads from a position on; the output of single attempts from an offset on. Never waits, keeps no output."""

    def __init__(
        self,
        hub: OutputHub,
        wanted: EventFilter,
        position: int,
        offsets: Iterable[OutputPosition] = (),
        *,
        time: float | None = None,
        sequence: int = -1,
    ) -> None:
        """`time` and `sequence` say the same as `position` of what other servers took in: since then."""
        self._hub = hub
        self._wanted = wanted
        self._begin = self._position = position
        self._sequence = sequence
        # The next byte of each attempt; of an attempt that is not here, all is new.
        from_now = position >= hub.next
        self._offsets = {
            kept.key: kept.offset_since(time=time, sequence=sequence)
            if kept.guest and not from_now
            else kept.offset_at(position)
            for kept in hub.attempts.values()
            if wanted.matches(kept.sample)
        }
        for wish in offsets:
            self._resume(wish)
        self.gaps = 0

    @property
    def position(self) -> int:
        """Where it stands in the output of all."""
        return self._position

    @property
    def behind(self) -> bool:
        """Whether there may be something to read."""
        return self._position < self._hub.next

    def read(self, most: int, most_bytes: int) -> list[Event]:
        """Return what comes next: chunks, progress, and gaps where chunks are gone.

        Empty when nothing of what was looked at is wanted; while `behind`, there may be more.
        """
        events: list[Event] = []
        if self._position <= self._hub.lost:
            self._tell_lost(events)
        size = 0
        for entry in self._hub.since(self._position, SCAN):
            self._position = entry.position + 1
            if entry.event is not None and self._wanted.matches(entry.event):
                size += self._take(entry, entry.event, events)
                if len(events) >= most or size >= most_bytes:
                    break
        else:
            if not self._hub.since(self._position, 1):
                self._position = self._hub.next
        return events

    def _resume(self, wish: OutputPosition) -> None:
        """Go back to where the first wanted byte of an attempt came."""
        self._offsets[wish.key] = wish.offset
        kept = self._hub.attempts.get(wish.key)
        if kept is None or wish.offset >= kept.end:
            return
        for entry in kept.chunks:
            if entry.offset + entry.size > wish.offset:
                self._position = min(self._position, entry.position)
                return
        # All of it is gone: the position of the last chunk makes the gap be told.
        self._position = min(self._position, kept.lost)

    def _take(self, entry: Entry, event: Event, events: list[Event]) -> int:
        """Add an entry as far as it is new to this reader; returns its size."""
        if event.type is not EventType.TASK_OUTPUT:
            if entry.position < self._begin:
                return 0
            events.append(event)
            return entry.size
        kept = entry.attempt
        expected = self._offsets.get(kept.key)
        if expected is None:
            expected = self._meet(kept)
        end = entry.offset + entry.size
        if end <= expected:
            return 0
        if entry.offset > expected:
            events.append(self._gap(kept, expected, entry.offset))
        elif entry.offset < expected:
            rest = event.data["data"][expected - entry.offset :]
            event = replace(event, data={**event.data, "offset": expected, "data": rest}, wire=None)
        events.append(event)
        self._offsets[kept.key] = end
        return entry.size

    def _meet(self, kept: AttemptOutput) -> int:
        """Begin with an attempt that is new; those it supersedes or that nobody knows any more are forgotten."""
        namespace, task_id, number = kept.key
        self._offsets.pop((namespace, task_id, number - 1), None)
        known = self._hub.attempts
        if len(self._offsets) > 64 + 2 * len(known):
            self._offsets = {key: offset for key, offset in self._offsets.items() if key in known}
        # One that ran before, on another server: from where it was brought in.
        return 0 if kept.begun > self._sequence else kept.origin

    def _tell_lost(self, events: list[Event]) -> None:
        for kept in self._hub.attempts.values():
            if kept.lost < self._position or not self._wanted.matches(kept.sample):
                continue
            expected = self._offsets.get(kept.key, kept.origin)
            if kept.first_kept > expected:
                events.append(self._gap(kept, expected, kept.first_kept))
                self._offsets[kept.key] = kept.first_kept

    def _gap(self, kept: AttemptOutput, start: int, end: int) -> Event:
        self.gaps += 1
        data = {"attempt": kept.key[2], "from_offset": start, "to_offset": end}
        return replace(kept.sample, type=EventType.OUTPUT_GAP, data=data, time=kept.time, wire=None)
