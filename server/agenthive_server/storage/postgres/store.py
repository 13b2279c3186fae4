"""The store of the scaled-out profile: one PostgreSQL database, for any number of replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Final

from agenthive_server.kernel.changes import ChangeSet, Outcome
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.ports import BlobInfo, Change, LogBounds, Query, StoreUnusable, Touched
from agenthive_server.kernel.records import Key, Kind, Record
from agenthive_server.storage.address import shown
from agenthive_server.telemetry import Histogram

from . import feed, reader
from .blobs import Blobs
from .database import Database
from .dial import BY_KEY, Dialer
from .ear import Ear, listen
from .link import Link, Links
from .roles import Leases
from .tenure import Tenure
from .writer import Writer

READERS: Final = 4
"""Connections on which questions are answered, at most; the others are for commits, for what takes long, for leases."""

SCAN_LIMIT: Final = 120.0

CHANGES_AT_ONCE: Final = 200


class PostgresStore:
    """Keeps everything in the database at `url`: `postgresql://USER@HOST:PORT/DATABASE`, parameters as libpq has them.

    With `?search_path=NAME` everything is in the schema of that name, which is made if need be. `now` says what time it
    is, for events and leases; None asks the database's clock. An object is opened once; before that and after `close`
    every method raises `StoreUnavailable`. A connection that is lost is made again by itself. With
    `notifies`, commits notify whoever listens on `channel`.
    """

    def __init__(
        self, url: str, *, clock: Clock, now: Callable[[], float] | None = None, notifies: bool = True
    ) -> None:
        self._clock = clock
        self._notifies = notifies
        self._dialer = dialer = Dialer(url, clock)
        self._database = Database(url, dialer.connect, clock)
        self._closing = asyncio.Event()
        self._writing = Link(dialer, "writer", **BY_KEY)
        self._readers = Links(dialer, "reader", READERS, **BY_KEY)
        self._keeper = Link(dialer, "keeper")
        self._leasing = Link(dialer, "lease")
        self._writer = Writer(self._writing, clock, now, self._closing)
        self._blobs = Blobs(self._keeper, clock)
        self.leases = Leases(self._leasing, now)
        self.tenure = Tenure(self.leases, clock)
        self._recover: Callable[[], Awaitable[None]] | None = None
        self.tenure.rejoined = self._rejoined

    async def open(self) -> None:
        """Make or migrate the tables, join the replicas, learn where the log stands. Raises `StoreUnusable`."""
        self._dialer.needed = await self._database.prepare()
        for link in self._links:
            link.start()
        try:
            await self.tenure.begin()
            self._writer.fence = self.tenure.fence
            await self._load()
        except StoreUnavailable as error:
            await self.close()
            raise StoreUnusable(error.message) from error
        except BaseException as error:
            await self.close()
            if isinstance(error, StoreUnusable):
                raise StoreUnusable(f"{shown(self._dialer.url)}: {error}") from error
            raise
        self._blobs.forget_dead_uploads()

    async def _load(self) -> None:
        log_id, _, _, group_count = await self._keeper.call(reader.position)
        self._writer.log_id, self._writer.group_count = log_id, group_count
        self._writer.channel = self.channel if self._notifies else ""

    def follow(
        self,
        *,
        caught_up: Callable[[], Awaitable[None]],
        went: Callable[[], None],
        recover: Callable[[], Awaitable[None]],
        facts: Callable[[], str],
        came: Callable[[], None] = lambda: None,
    ) -> None:
        """Name who takes part, before `open`: `caught_up` waits until everything committed is known here.

        `went` is called when this replica may have been replaced, `recover` before it commits again when it has been:
        it reads everything anew, and `came` when all is well again. `facts` is what this replica tells the others of
        itself, as JSON.
        """
        self.tenure.caught_up, self.tenure.facts = caught_up, facts
        self.tenure.went, self.tenure.came = went, came
        self._recover = recover

    async def _rejoined(self) -> None:
        # The row may be lost again meanwhile: without one nothing may be committed.
        fence = self.tenure.fence
        if self._recover is not None:
            await self._recover()
        self._writer.fence = fence

    @property
    def _links(self) -> tuple[Link | Links, ...]:
        return (self._writing, self._readers, self._keeper, self._leasing)

    async def close(self) -> None:
        """Finish what was handed in, leave the replicas and say goodbye."""
        self.give_up()
        for link in (self._writing, self._readers, self._keeper):
            await link.stop()
        await self.tenure.end()
        await self._leasing.stop()

    async def commit(self, group: Sequence[ChangeSet]) -> Sequence[Outcome]:
        """Write change sets in order in one transaction; returns one outcome for each.

        Raises `StoreUnavailable` when nothing was written and `OutcomeUnknown` when the store is closed before that
        could be found out. Cancelling it does not stop it.
        """
        return await self._writer.commit(group)

    # Records

    async def get(self, kind: Kind, keys: Sequence[Key]) -> list[Record | None]:
        """Return the committed records of these keys, None where there is none."""
        return await self._readers.call(partial(reader.get, kind=kind, keys=keys))

    async def scan(self, kind: Kind, *, open_only: bool = False) -> list[Record]:
        """Return all records of a kind (with `open_only`, tasks that are not terminal)."""
        work = partial(reader.scan, kind=kind, open_only=open_only)
        return await self._keeper.call(work, limit=SCAN_LIMIT)

    async def cut(self, kinds: Sequence[Kind]) -> tuple[int, list[list[Record]]]:
        """Return where the log stands, and all records of some kinds as of then; of tasks those that are not over."""
        return await self._keeper.call(partial(reader.cut, kinds=kinds), limit=SCAN_LIMIT)

    async def query(self, kind: Kind, query: Query) -> list[Record]:
        """Return a page; see `Query` for the order. A condition on what a kind does not have finds nothing."""
        return await self._readers.call(partial(reader.query, kind=kind, asked=query))

    async def expired(self, kind: Kind, before: float, limit: int) -> list[Record]:
        """Return records past their time, the longest past first; none of a kind that has no such time."""
        return await self._readers.call(partial(reader.expired, kind=kind, before=before, limit=limit))

    # Events

    async def read_events(self, after: int, limit: int) -> list[Event]:
        """Return events after a sequence, whole change sets. Raises `CursorCompacted` when `after + 1` is gone."""
        return await self._readers.call(partial(reader.read_events, after=after, limit=limit))

    async def sequence_at(self, time: float) -> int:
        """Return the sequence before the first kept event at or after a time (the head when there is none)."""
        return await self._readers.call(partial(reader.sequence_at, time=time))

    async def bounds(self) -> LogBounds:
        """Return the ends of the event log."""
        return await self._readers.call(reader.bounds)

    async def compact(self, before: int, limit: int = 5_000) -> int:
        """Remove whole change sets that end below `before`, about `limit` events but at least one set."""
        await self._keeper.call(feed.trim)
        return await self._keeper.call(partial(reader.compact, before=before, limit=limit))

    # What all replicas change

    @property
    def written(self) -> tuple[int, int]:
        """The number of groups before the last commit of this server, and with it; equal when it wrote nothing."""
        return self._writer.written

    async def position(self) -> tuple[int, int]:
        """Return how many groups were committed, and where the log stands."""
        _, head, _, group_count = await self._readers.call(reader.position)
        return group_count, head

    async def changes(self, after: int, without: Collection[int] = ()) -> Sequence[Change]:
        """Return some of the groups after one, in order; what is too long ago is not known any more."""
        return await self._readers.call(partial(feed.changes, after=after, without=without, limit=CHANGES_AT_ONCE))

    def record(self, touched: Touched, known: Record | None) -> Record | None:
        """Return a record as a group wrote it, given the state of it that is known; None when it has to be read."""
        return feed.record(touched, known)

    @property
    def channel(self) -> str:
        """The channel on which commits with events notify: the new head of the log, as a number."""
        return f"agenthive_{self._writer.log_id}"

    async def listen(self, heard: Callable[[int], None]) -> Ear:
        """Call back with the head of the log after every commit on the database, this server's and any other's.

        Raises `StoreUnavailable`, as a look by the ear that is returned does when it has gone deaf.
        """
        return await listen(self._dialer, self.channel, heard)

    # Blobs

    async def put_blob(self, info: BlobInfo, chunks: AsyncIterator[bytes]) -> BlobInfo:
        """Store a blob once `chunks` has ended; what `chunks` raises is raised, and nothing is stored.

        Where the blob is there already, `chunks` is not read. Cancelling it stores nothing.
        """
        return await self._blobs.put(info, chunks)

    async def find_blob(self, namespace: str, blob_id: str) -> BlobInfo | None:
        """Return what is known of a blob, or None."""
        return await self._blobs.find(namespace, blob_id)

    def read_blob(self, namespace: str, blob_id: str, offset: int = 0) -> AsyncIterator[bytes]:
        """Yield the content from an offset; raises `NotFound` when there is no such blob, or not any more."""
        return self._blobs.read(namespace, blob_id, offset)

    async def expire_blobs(self, before: float, limit: int = 100) -> int:
        """Remove up to `limit` blobs last stored before a time, the oldest first; returns how many."""
        return await self._blobs.expire(before, limit)

    # How it is doing

    async def ping(self) -> float:
        """Check that the database can be read; returns the seconds it took.

        Raises `StoreUnavailable` also while others may have taken this server's work over.
        """
        if self.tenure.lost:
            raise StoreUnavailable(self.tenure.lost)
        began = self._clock.monotonic()
        await self._readers.call(reader.position)
        return self._clock.monotonic() - began

    @property
    def writable(self) -> str:
        """Empty while commits succeed, else why the last one did not."""
        return self.tenure.lost or self._writer.trouble

    @property
    def in_doubt(self) -> str:
        """Why it is not known what became of the commit under way, and still looked up; empty otherwise."""
        return self._writer.in_doubt

    def give_up(self) -> None:
        """Look up commits in doubt once and no longer: who waits for one hears `OutcomeUnknown`. Before closing."""
        self._closing.set()

    @property
    def free_bytes(self) -> int | None:
        """None: the database does not say."""
        return None

    @property
    def syncs(self) -> Histogram:
        """How long the COMMITs took."""
        return self._writer.syncs
