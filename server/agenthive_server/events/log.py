"""The event log as readers see it: the newest part in memory, the rest in the store.

The tail in memory is always whole: its sequences follow each other without a hole. Whatever does not continue it
replaces it, and what lies between is read from the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from agenthive_server.kernel.errors import CursorCompacted, StoreUnavailable
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.ports import LogBounds

from .chunks import ChunkCache, cut, weigh
from .cursor import Cursor

CHUNK_BYTES = 4 * 2**20


class LogStore(Protocol):
    """What of a store the log needs; see `kernel.ports.Store`."""

    async def read_events(self, after: int, limit: int) -> list[Event]:
        """Return events after a sequence; raises `CursorCompacted`."""

    async def sequence_at(self, time: float) -> int:
        """Return the sequence before the first kept event at or after a time."""

    async def bounds(self) -> LogBounds:
        """Return the ends of the event log."""

    async def compact(self, before: int, limit: int = 5_000) -> int:
        """Remove events below a sequence; returns the new oldest one."""


class EventLog:
    """One log for all readers in this process. `encode` makes an event's wire form, at most once for each event."""

    def __init__(
        self,
        store: LogStore,
        encode: Callable[[Event], bytes],
        *,
        tail_bytes: int = 4 * 2**20,
        chunk_events: int = 1_024,
    ) -> None:
        self._store = store
        self.encode = encode
        self._tail_bytes = tail_bytes
        self._chunk_events = chunk_events
        self._tail: list[Event] = []
        self._tail_weight = 0
        self._head = 0
        self._oldest = 1
        self._log_id = ""
        self._chunks = ChunkCache(self._fetch, CHUNK_BYTES)

    async def open(self) -> None:
        """Learn the ends and the identity of the log; raises `StoreUnavailable`."""
        await self.refresh()

    async def refresh(self) -> None:
        """Ask the store how far the log reaches: other replicas write and compact it too. Raises `StoreUnavailable`."""
        bounds = await self._store.bounds()
        self._log_id = bounds.log_id
        self.compacted(bounds.oldest)
        self.advance(bounds.head)

    @property
    def head(self) -> int:
        """The sequence of the newest event known to be committed; 0 when there never was one."""
        return self._head

    @property
    def oldest(self) -> int:
        """The sequence of the oldest event that is kept; `head + 1` when there is none."""
        return self._oldest

    @property
    def log_id(self) -> str:
        """The identity of this log; a restored backup has another."""
        return self._log_id

    @property
    def store_reads(self) -> int:
        """How often readers behind the tail made the store be read."""
        return self._chunks.fetches

    def append(self, events: Sequence[Event]) -> None:
        """Take what was just committed: whole change sets with sequence, last and time, in order. Never waits."""
        if not events:
            return
        fresh: Sequence[Event] = events
        if events[0].sequence <= self._head:
            fresh = [event for event in events if event.sequence > self._head]
            if not fresh:
                return
        first, newest = fresh[0].sequence, fresh[-1].sequence
        if newest - first + 1 != len(fresh):
            # Something is missing inside: the store tells it.
            self.advance(newest)
            return
        if first != self._head + 1 or (self._tail and self._tail[-1].sequence != self._head):
            self._drop_tail()
        self._tail += fresh
        self._tail_weight += weigh(fresh)
        self._head = newest
        if self._tail_weight > self._tail_bytes:
            self._trim()

    def advance(self, head: int) -> None:
        """Learn that another replica has committed up to `head`; what is not in the tail is read from the store."""
        self._head = max(self._head, head)

    def compacted(self, oldest: int) -> None:
        """Learn that the events below `oldest` are gone: readers that still want one are told so from now on."""
        if oldest <= self._oldest:
            return
        self._oldest = oldest
        if self._tail and self._tail[0].sequence < oldest:
            gone = self._tail[: oldest - self._tail[0].sequence]
            del self._tail[: len(gone)]
            self._tail_weight -= weigh(gone)

    async def compact(self, before: int) -> int:
        """Remove a bounded number of events below a sequence; returns the new oldest. Raises `StoreUnavailable`."""
        self.compacted(await self._store.compact(before))
        return self._oldest

    def _from_tail(self, after: int, limit: int) -> list[Event] | None:
        """Return what `read` does, if that is in the tail; else None."""
        if after >= self._head:
            return []
        tail = self._tail
        if not tail or after + 1 < tail[0].sequence or after + 1 > tail[-1].sequence:
            return None
        return cut(tail, after + 1 - tail[0].sequence, limit)

    async def read(self, after: int, limit: int) -> list[Event]:
        """Return events after a sequence in order, about `limit` of them, never ending inside a change set.

        They begin at `after + 1`, always. Empty at the head. Raises `CursorCompacted` when that event is no longer
        kept, `StoreUnavailable` when it is behind the tail and the store cannot be read. Cancelling disturbs no other
        reader.
        """
        if after + 1 < self._oldest:
            raise await self.too_old(after)
        events = self._from_tail(after, limit)
        return events if events is not None else await self._chunks.read(after, limit)

    async def sequence_at(self, time: float) -> int:
        """Return the sequence before the first event at or after a time.

        Raises `CursorCompacted` when that event is the oldest kept and others before it may have been meant too.
        """
        await self.refresh()
        sequence = await self._store.sequence_at(time)
        if 1 < self._oldest == sequence + 1 <= self._head:
            raise await self.too_old(sequence - 1)
        return sequence

    def wire(self, event: Event) -> bytes:
        """Return the wire form of an event, made when it is first asked for."""
        wire = event.wire
        if wire is None:
            wire = event.wire = self.encode(event)
        return wire

    def cursor(self, sequence: int) -> str:
        """Return the text of a cursor after a sequence."""
        return str(Cursor(self._log_id, sequence))

    async def too_old(self, after: int | None = None) -> CursorCompacted:
        """Return the error for a reader that wants events which are gone; without a sequence, those of another log."""
        with suppress(StoreUnavailable):
            # Another replica may have removed more: the cursor in the error should be good.
            await self.refresh()
        wanted = "events of another log" if after is None else f"events from {after + 1} on"
        return CursorCompacted(
            f"{wanted} were asked for; the oldest event kept is {self._oldest}",
            metadata={"oldest_cursor": self.cursor(self._oldest - 1)},
        )

    async def _fetch(self, after: int) -> list[Event]:
        """Read a chunk from the store and make sure that it goes on at `after + 1` and ends with a change set."""
        try:
            events = await self._store.read_events(after, self._chunk_events)
            while events and events[-1].sequence < events[-1].last:
                events += await self._store.read_events(events[-1].sequence, self._chunk_events)
        except CursorCompacted:
            raise await self.too_old(after) from None
        if events and events[0].sequence == after + 1 and events[-1].sequence == after + len(events):
            return events
        if not events and after >= self._head:
            return events
        # The store went on somewhere else: compaction came in between.
        await self.refresh()
        if events or after + 1 < self._oldest:
            raise await self.too_old(after)
        raise StoreUnavailable(f"the store does not show the events after {after} yet")

    def _drop_tail(self) -> None:
        self._tail = []
        self._tail_weight = 0

    def _trim(self) -> None:
        """Drop the oldest change sets until a little room is free, so that this is done now and then only."""
        tail, keep, index = self._tail, self._tail_bytes * 7 // 8, 0
        while self._tail_weight > keep and index < len(tail):
            end = index + tail[index].last - tail[index].sequence + 1
            self._tail_weight -= weigh(tail[index:end])
            index = end
        del tail[:index]
