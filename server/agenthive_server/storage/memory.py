"""The store in dictionaries: the reference for behaviour, and what tests and simulations run on."""

from __future__ import annotations

import bisect
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from uuid import uuid4

from agenthive_server.kernel.changes import COMMITTED, ChangeSet, Conflicted, Outcome
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import CursorCompacted, NotFound
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.ports import BlobInfo, LogBounds, Query
from agenthive_server.kernel.records import Key, Kind, Record, Ref
from agenthive_server.kernel.tasks import Task
from agenthive_server.telemetry import Histogram

from .columns import SHAPES, Shape, matches

BLOB_CHUNK = 1024 * 1024
"""The largest piece in which a blob is read."""


def cursor_compacted(oldest: int) -> CursorCompacted:
    """Return the error for a reader that comes too late; `oldest_sequence` is the first event still kept."""
    return CursorCompacted("events after this cursor are no longer kept", metadata={"oldest_sequence": str(oldest)})


def blob_not_found(blob_id: str) -> NotFound:
    """Return the error for reading a blob that is not there, or not any more."""
    return NotFound(f"no blob {blob_id!r} in this namespace", reason="BLOB_NOT_FOUND")


def _beyond(shape: Shape, record: Record, after: tuple[float | str, str]) -> bool:
    key = shape.sort_key(record)
    return key < after if shape.newest_first else key > after


class MemoryStore:
    """Keeps everything until the object goes; `close` and `open` again lose nothing.

    Without threads and without suspending: every method but `put_blob` and `read_blob` is done in one step of the loop.
    """

    def __init__(self, clock: Clock, *, log_id: str = "") -> None:
        self._clock = clock
        self._log_id = log_id or uuid4().hex
        self._tables: dict[Kind, dict[Key, Record]] = {kind: {} for kind in Kind}
        self._events: list[Event] = []
        self._head = 0
        self._time = 0.0
        self._blobs: dict[Key, tuple[BlobInfo, bytes]] = {}

    async def open(self) -> None:
        """Do nothing; it is always open."""

    async def close(self) -> None:
        """Do nothing; what was committed stays."""

    async def commit(self, group: Sequence[ChangeSet]) -> Sequence[Outcome]:
        """Apply the change sets in order; returns one outcome for each."""
        return [self._apply(changes) for changes in group]

    def _apply(self, changes: ChangeSet) -> Outcome:
        stale = self._stale(changes)
        changes.void = bool(stale)
        if stale:
            return Conflicted(stale)
        for kind, key in changes.deletes:
            del self._tables[kind][key]
        for (kind, key), record in changes.puts.items():
            self._tables[kind][key] = record
        self._append(changes.events)
        return COMMITTED

    def _stale(self, changes: ChangeSet) -> tuple[Ref, ...]:
        wanted = [(ref, record.revision - 1) for ref, record in changes.puts.items()]
        wanted += [(ref, record.revision) for ref, record in changes.deletes.items()]
        wanted += changes.checks.items()
        stale = [ref for ref, revision in wanted if self._revision(ref) != revision]
        return tuple(dict.fromkeys([*stale, *changes.undermined()]))

    def _revision(self, ref: Ref) -> int:
        record = self._tables[ref[0]].get(ref[1])
        return record.revision if record else 0

    def _append(self, events: Sequence[Event]) -> None:
        if not events:
            return
        self._time = max(self._time, self._clock.now())
        last = self._head + len(events)
        for event in events:
            self._head += 1
            event.sequence, event.last, event.time = self._head, last, self._time
        self._events.extend(events)

    async def get(self, kind: Kind, keys: Sequence[Key]) -> list[Record | None]:
        """Return the records of these keys, None where there is none."""
        table = self._tables[kind]
        return [table.get(key) for key in keys]

    async def scan(self, kind: Kind, *, open_only: bool = False) -> list[Record]:
        """Return all records of a kind (with `open_only`, tasks that are not terminal)."""
        records = list(self._tables[kind].values())
        return [r for r in records if not (isinstance(r, Task) and r.terminal)] if open_only else records

    async def query(self, kind: Kind, query: Query) -> list[Record]:
        """Return a page; see `Query` for the order. A condition on what a kind does not have finds nothing."""
        shape = SHAPES[kind]
        found = [
            record
            for record in self._tables[kind].values()
            if record.namespace == query.namespace
            and record.id.startswith(query.prefix)
            and matches(shape.facts(record), query)
        ]
        found.sort(key=shape.sort_key, reverse=shape.newest_first)
        after = query.after
        if after is not None:
            found = [record for record in found if _beyond(shape, record, after)]
        return found[: query.limit]

    async def expired(self, kind: Kind, before: float, limit: int) -> list[Record]:
        """Return records past their time, the longest past first; none of a kind that has no such time."""
        shape = SHAPES[kind]
        dated = ((shape.facts(record).get("due_time"), record) for record in self._tables[kind].values())
        due = sorted((time, record.key) for time, record in dated if time is not None and time < before)
        return [self._tables[kind][key] for _, key in due[:limit]]

    async def read_events(self, after: int, limit: int) -> list[Event]:
        """Return events after a sequence, whole change sets. Raises `CursorCompacted` when `after + 1` is gone."""
        if after >= self._head:
            return []
        oldest = self._oldest
        if after + 1 < oldest:
            raise cursor_compacted(oldest)
        start = after + 1 - oldest
        end = self._events[min(start + max(limit, 1), len(self._events)) - 1].last
        return self._events[start : end + 1 - oldest]

    @property
    def _oldest(self) -> int:
        return self._events[0].sequence if self._events else self._head + 1

    async def sequence_at(self, time: float) -> int:
        """Return the sequence before the first kept event at or after a time (the head when there is none)."""
        index = bisect.bisect_left(self._events, time, key=lambda event: event.time)
        return self._oldest + index - 1

    async def bounds(self) -> LogBounds:
        """Return the ends of the event log."""
        return LogBounds(oldest=self._oldest, head=self._head, log_id=self._log_id)

    async def compact(self, before: int, limit: int = 5_000) -> int:
        """Remove whole change sets that end below `before`, about `limit` events but at least one set."""
        oldest, end = self._oldest, 0
        while end < len(self._events):
            size = self._events[end].last - oldest + 1
            if self._events[end].last >= before or (end and size > limit):
                break
            end = size
        del self._events[:end]
        return self._oldest

    async def put_blob(self, info: BlobInfo, chunks: AsyncIterator[bytes]) -> BlobInfo:
        """Store a blob once `chunks` has ended; what `chunks` raises is raised, and nothing is stored."""
        key = (info.namespace, info.id)
        if key not in self._blobs:
            content = b"".join([chunk async for chunk in chunks])
            self._blobs.setdefault(key, (replace(info, size=len(content)), content))
        known, content = self._blobs[key]
        renewed = replace(known, create_time=max(known.create_time, info.create_time))
        self._blobs[key] = (renewed, content)
        return renewed

    async def find_blob(self, namespace: str, blob_id: str) -> BlobInfo | None:
        """Return what is known of a blob, or None."""
        found = self._blobs.get((namespace, blob_id))
        return found[0] if found else None

    async def read_blob(self, namespace: str, blob_id: str, offset: int = 0) -> AsyncIterator[bytes]:
        """Yield the content from an offset; raises `NotFound` when there is no such blob."""
        found = self._blobs.get((namespace, blob_id))
        if found is None:
            raise blob_not_found(blob_id)
        content = found[1]
        for start in range(offset, len(content), BLOB_CHUNK):
            yield content[start : start + BLOB_CHUNK]

    async def expire_blobs(self, before: float, limit: int = 100) -> int:
        """Remove up to `limit` blobs last stored before a time, the oldest first; returns how many."""
        old = sorted((info.create_time, key) for key, (info, _) in self._blobs.items() if info.create_time < before)
        for _, key in old[:limit]:
            del self._blobs[key]
        return len(old[:limit])

    async def ping(self) -> float:
        """Return 0: memory is always there."""
        return 0.0

    @property
    def writable(self) -> str:
        """Empty: every commit succeeds."""
        return ""

    @property
    def in_doubt(self) -> str:
        """Empty: what became of a commit is always known."""
        return ""

    def give_up(self) -> None:
        """Do nothing: there is no doubt."""

    @property
    def free_bytes(self) -> int | None:
        """None: memory has no such bound."""
        return None

    @property
    def syncs(self) -> Histogram:
        """Nothing: memory is not durable."""
        return Histogram()
