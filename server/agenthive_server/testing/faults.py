"""A store that fails when told to: wraps another one, so that tests can delay, refuse or lose a commit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from agenthive_server.kernel.changes import ChangeSet, Outcome
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.ports import BlobInfo, LogBounds, Query, Store
from agenthive_server.kernel.records import Key, Kind, Record
from agenthive_server.telemetry import Histogram

T = TypeVar("T")

Fault = Callable[[Sequence[ChangeSet]], Awaitable[None]]
"""Called around a commit; returns, waits, or raises `StoreUnavailable` or `OutcomeUnknown`."""


async def no_fault(group: Sequence[ChangeSet]) -> None:
    """Let the commit pass."""


class FaultyStore:
    """Behaves as the store it wraps, but for two hooks that may be replaced at any time.

    `before` runs before a commit: what it raises is raised and nothing is written. `after` runs when the group is
    written: what it raises is raised although everything is there. `reading` runs before reads of records or events,
    `answering` before their answer arrives, which may be out of date by then.
    """

    def __init__(self, store: Store, *, before: Fault = no_fault, after: Fault = no_fault) -> None:
        self._store = store
        self.before = before
        self.after = after
        self.reading: Callable[[], Awaitable[None]] | None = None
        self.answering: Callable[[], Awaitable[None]] | None = None
        self.unwritable = self.doubt = ""

    async def open(self) -> None:
        """Open the wrapped store."""
        await self._store.open()

    async def close(self) -> None:
        """Close the wrapped store."""
        await self._store.close()

    async def commit(self, group: Sequence[ChangeSet]) -> Sequence[Outcome]:
        """Commit between the two hooks."""
        await self.before(group)
        outcomes = await self._store.commit(group)
        await self.after(group)
        return outcomes

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Read between the two hooks of reads."""
        if self.reading is not None:
            await self.reading()
        answer = await question()
        if self.answering is not None:
            await self.answering()
        return answer

    async def get(self, kind: Kind, keys: Sequence[Key]) -> list[Record | None]:
        """As the wrapped store, between `reading` and `answering`."""
        return await self.ask(lambda: self._store.get(kind, keys))

    async def scan(self, kind: Kind, *, open_only: bool = False) -> list[Record]:
        """As the wrapped store, between `reading` and `answering`."""
        return await self.ask(lambda: self._store.scan(kind, open_only=open_only))

    async def query(self, kind: Kind, query: Query) -> list[Record]:
        """As the wrapped store, between `reading` and `answering`."""
        return await self.ask(lambda: self._store.query(kind, query))

    async def expired(self, kind: Kind, before: float, limit: int) -> list[Record]:
        """As the wrapped store, between `reading` and `answering`."""
        return await self.ask(lambda: self._store.expired(kind, before, limit))

    async def read_events(self, after: int, limit: int) -> list[Event]:
        """As the wrapped store, between `reading` and `answering`."""
        return await self.ask(lambda: self._store.read_events(after, limit))

    async def sequence_at(self, time: float) -> int:
        """As the wrapped store."""
        return await self._store.sequence_at(time)

    async def bounds(self) -> LogBounds:
        """As the wrapped store."""
        return await self._store.bounds()

    async def compact(self, before: int, limit: int = 5_000) -> int:
        """As the wrapped store."""
        return await self._store.compact(before, limit)

    async def put_blob(self, info: BlobInfo, chunks: AsyncIterator[bytes]) -> BlobInfo:
        """As the wrapped store."""
        return await self._store.put_blob(info, chunks)

    async def find_blob(self, namespace: str, blob_id: str) -> BlobInfo | None:
        """As the wrapped store."""
        return await self._store.find_blob(namespace, blob_id)

    def read_blob(self, namespace: str, blob_id: str, offset: int = 0) -> AsyncIterator[bytes]:
        """As the wrapped store."""
        return self._store.read_blob(namespace, blob_id, offset)

    async def expire_blobs(self, before: float, limit: int = 100) -> int:
        """As the wrapped store."""
        return await self._store.expire_blobs(before, limit)

    async def ping(self) -> float:
        """As the wrapped store, between `reading` and `answering`."""
        return await self.ask(self._store.ping)

    @property
    def writable(self) -> str:
        """`unwritable` when a test set it, else as the wrapped store."""
        return self.unwritable or self._store.writable

    @property
    def in_doubt(self) -> str:
        """`doubt` when a test set it, else as the wrapped store."""
        return self.doubt or self._store.in_doubt

    def give_up(self) -> None:
        """As the wrapped store."""
        self._store.give_up()

    @property
    def free_bytes(self) -> int | None:
        """As the wrapped store."""
        return self._store.free_bytes

    @property
    def syncs(self) -> Histogram:
        """As the wrapped store."""
        return self._store.syncs
