"""The store of the embedded profile: one SQLite file, one writing thread, reads that never wait for a sync."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

from agenthive_server.kernel.changes import ChangeSet, Outcome
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import OutcomeUnknown, StoreUnavailable
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.ports import BlobInfo, LogBounds, Query, StoreUnusable
from agenthive_server.kernel.records import Key, Kind, Record
from agenthive_server.telemetry import Histogram

from . import reader, statements
from .beside import Recorder, Visitors
from .blobs import Blobs
from .database import Connect, Database, Synchronous
from .lane import Lane
from .writer import Draft, GroupInDoubt, Writer, compact

# A thread that waits for the interpreter while the event loop is busy gets it after this long. With Python's own 5 ms
# a commit, which asks for it at every statement, was measured to take seconds behind a busy loop. With a tenth of this,
# the turns themselves cost a sixth of a task delegated in batches.
_SWITCH_SECONDS = 0.001

LOOK_EVERY = 8
"""Groups after which the length of the write-ahead log is looked at."""

_log = logging.getLogger(__name__)


class SqliteStore:
    """Keeps everything in one file at `path`, for one process at a time.

    `synchronous` FULL survives loss of power; NORMAL survives the end of the process. `connect` makes connections. An
    object is opened once; before that and after `close` every method raises `StoreUnavailable`.
    """

    def __init__(
        self, path: Path, *, clock: Clock, synchronous: Synchronous = "FULL", connect: Connect = sqlite3.connect
    ) -> None:
        self._clock = clock
        self._database = Database(path, synchronous, connect)
        self._log = Writer(clock)
        self._writer = Lane("writer", self._connect_writer)
        # The keeper does what may take long: scans, blobs, writing back the write-ahead log.
        self._reader = Lane("reader", self._database.connect)
        self._keeper = Lane("keeper", self._database.connect)
        self._blobs = Blobs(self._writer, self._keeper, lambda: self.recorder)
        self.recorder: Recorder | None = None
        self.visitors = Visitors()
        self._turn = asyncio.Lock()
        self._closing = asyncio.Event()
        self._writing_back: asyncio.Task[None] | None = None
        self._groups = 0
        self._trouble = self._doubt = ""
        self._free: tuple[float, int | None] = (float("-inf"), None)

    async def open(self) -> None:
        """Claim the file, make or migrate it, remove what dead uploads left; raises `StoreUnusable`."""
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))
        _bind_cheaply()
        self._writer.start()
        try:
            await self._writer.submit(self._database.claim)
            await self._writer.submit(self._writer.connection)
        except StoreUnavailable as error:
            await self._abandon()
            raise StoreUnusable(f"{self._database.path}: {error.message}") from error
        except BaseException:
            await self._abandon()
            raise
        self._reader.start()
        self._keeper.start()

    async def _abandon(self) -> None:
        await self._writer.stop()
        self._database.release()

    async def close(self) -> None:
        """Finish what was handed in, write everything into the one file and give it free."""
        self.give_up()
        async with self._turn:
            if self._writing_back is not None:
                await self._writing_back
            await self._reader.stop()
            await self._keeper.stop()
            # The last connection to close writes the log back and removes it.
            await self._writer.stop()
        self._database.release()

    def _connect_writer(self) -> sqlite3.Connection:
        connection = self._database.connect(writing=True)
        try:
            self._log.load(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    async def commit(self, group: Sequence[ChangeSet]) -> Sequence[Outcome]:
        """Write change sets in order in one transaction; returns one outcome for each.

        Raises `StoreUnavailable` when nothing was written and `OutcomeUnknown` when the store is closed before that
        could be found out. Cancelling it does not stop it.
        """
        async with self._turn:
            try:
                outcomes: Sequence[Outcome] = await self._writer.call(partial(self._log.commit, group=group))
            except GroupInDoubt as doubt:
                self._doubt = doubt.message
                try:
                    outcomes = (await self._look_up(doubt)).outcomes
                finally:
                    self._doubt = ""
            except StoreUnavailable as error:
                self._trouble = error.message
                raise
            self._trouble = ""
            if self.recorder is not None:
                self.recorder.group(group, outcomes, self._log.group_count)
        self._write_back_if_long()
        return outcomes

    # A commit whose outcome is not known

    async def _look_up(self, doubt: GroupInDoubt) -> Draft:
        """Return what was committed; raises `StoreUnavailable` when it was not. Tries until the store is closed."""
        pause = 0.05
        while (group_count := await self._try_reopen()) is None:
            if self._closing.is_set():
                raise OutcomeUnknown(f"the store was closed before it was known: {doubt.message}") from doubt
            await self._pause(pause)
            pause = min(2 * pause, 1.0)
        if group_count < doubt.group_count:
            self._trouble = doubt.message
            raise StoreUnavailable(doubt.message) from doubt
        doubt.draft.stamp()
        return doubt.draft

    async def _try_reopen(self) -> int | None:
        """Open the database with nobody in it, so that SQLite takes up what is on disk.

        Returns the group count, or None when it cannot be opened.
        """
        self.visitors.send_away()
        meeting = threading.Barrier(3)

        def step_aside(lane: Lane) -> None:
            lane.drop()
            meeting.wait()
            meeting.wait()

        def enter() -> int | None:
            self._writer.drop()
            meeting.wait()
            try:
                # Written back, what was found is as good as committed whatever became of the sync that failed.
                (busy, _, _) = self._writer.connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if busy:
                    # What is on disk cannot be told as long as somebody is in there.
                    self._trouble = "another program reads the database, so that the last commit cannot be looked up"
                return None if busy else self._log.group_count
            finally:
                meeting.wait()

        aside = [lane.submit(partial(step_aside, lane)) for lane in (self._reader, self._keeper)]
        try:
            return await self._writer.submit(enter)
        except StoreUnavailable as error:
            self._trouble = error.message
            return None
        finally:
            await asyncio.gather(*aside)

    async def _pause(self, seconds: float) -> None:
        sleep = asyncio.ensure_future(self._clock.sleep(seconds))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait((sleep, closing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            closing.cancel()

    # The write-ahead log

    def _write_back_if_long(self) -> None:
        if self._writing_back is not None or self._closing.is_set():
            return
        self._groups += 1
        if self._groups % LOOK_EVERY == 0 and self._database.wal_is_long():
            self._writing_back = asyncio.create_task(self._write_back())

    async def _write_back(self) -> None:
        """Copy the write-ahead log into the file beside the commits; the writer only does what came in meanwhile."""
        try:
            await self._keeper.call(_checkpoint)
            await self._writer.call(_checkpoint)
        except StoreUnavailable as error:
            _log.warning("store_checkpoint_failed", extra={"error": error.message})
        finally:
            self._writing_back = None

    # Records

    async def get(self, kind: Kind, keys: Sequence[Key]) -> list[Record | None]:
        """Return the committed records of these keys, None where there is none."""
        return await self._reader.call(partial(reader.get, kind=kind, keys=keys)) if keys else []

    async def scan(self, kind: Kind, *, open_only: bool = False) -> list[Record]:
        """Return all records of a kind (with `open_only`, tasks that are not terminal)."""
        return await self._keeper.call(partial(reader.scan, kind=kind, open_only=open_only))

    async def query(self, kind: Kind, query: Query) -> list[Record]:
        """Return a page; see `Query` for the order. A condition on what a kind does not have finds nothing."""
        return await self._reader.call(partial(reader.query, kind=kind, asked=query))

    async def expired(self, kind: Kind, before: float, limit: int) -> list[Record]:
        """Return records past their time, the longest past first; none of a kind that has no such time."""
        return await self._reader.call(partial(reader.expired, kind=kind, before=before, limit=limit))

    # Events

    async def read_events(self, after: int, limit: int) -> list[Event]:
        """Return events after a sequence, whole change sets. Raises `CursorCompacted` when `after + 1` is gone."""
        return await self._reader.call(partial(reader.read_events, after=after, limit=limit))

    async def sequence_at(self, time: float) -> int:
        """Return the sequence before the first kept event at or after a time (the head when there is none)."""
        return await self._reader.call(partial(reader.sequence_at, time=time))

    async def bounds(self) -> LogBounds:
        """Return the ends of the event log."""
        return await self._reader.call(reader.bounds)

    async def compact(self, before: int, limit: int = 5_000) -> int:
        """Remove whole change sets that end below `before`, about `limit` events but at least one set."""
        return await self._writer.call(partial(compact, before=before, limit=limit))

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

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    @property
    def size(self) -> int:
        """Bytes of the file, without its write-ahead log."""
        try:
            return self._database.path.stat().st_size
        except OSError:
            return 0

    @property
    def syncs(self) -> Histogram:
        """How long the syncs of commits took."""
        return self._log.syncs

    @property
    def position(self) -> tuple[str, int]:
        """The id of the log and the number of the last group committed, once the store is open."""
        return self._log.log_id, self._log.group_count

    async def ping(self) -> float:
        """Check that the database can be read; returns the seconds it took."""
        began = self._clock.monotonic()
        await self._reader.call(lambda db: db.execute(statements.SELECT_META).fetchone())
        return self._clock.monotonic() - began

    @property
    def writable(self) -> str:
        """Empty while commits succeed, else why the last one did not."""
        return self._trouble

    @property
    def in_doubt(self) -> str:
        """Why it is not known what became of the commit under way, and still looked up; empty otherwise."""
        return self._doubt

    def give_up(self) -> None:
        """Look up commits in doubt once and no longer: who waits for one hears `OutcomeUnknown`. Before closing."""
        self._closing.set()

    @property
    def free_bytes(self) -> int | None:
        """Free space where the file lies, looked up once a second; None when that is not known."""
        now = self._clock.monotonic()
        if now - self._free[0] >= 1:
            try:
                stat = os.statvfs(self._database.path.parent)
                self._free = (now, stat.f_bavail * stat.f_frsize)
            except OSError:
                self._free = (now, None)
        return self._free[1]


def _bind_cheaply() -> None:
    """Tell sqlite3 that None and bytes are written as they are.

    Otherwise it asks each, and raises and drops an exception within, before it takes the value as it is: that was an
    eighth of all the writer does.
    """
    sqlite3.register_adapter(bytes, bytes.__bytes__)
    sqlite3.register_adapter(type(None), {None: None}.get)


def _checkpoint(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
