"""Writes the journal in a thread of its own: what was committed is handed to it, and nobody waits for its disk.

What it is handed is with the system within milliseconds and on disk within a second. When its disk fails, or is slower
than the commits for long, it gives up the segment, because a journal with a hole is of no use; a new backup has to be
made then, from which a new segment goes on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec

from agenthive_server.kernel.changes import ChangeSet, Committed, Outcome
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.ports import BlobInfo

from .journal import Begin, Blob, Chunk, End, Entry, Group, Segment, entry_of, framed

MOST_WAITING = 100_000
"""Records and events that may wait for the disk: some 100 MiB."""

_CHUNK_WEIGHT = MOST_WAITING // 64
_SYNC_EVERY = 1.0
_AT_ONCE = 64

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Item:
    make: Callable[[], Entry]
    """Done in the thread, which has time."""
    weight: int
    sequence: int
    time: float


@dataclass(slots=True)
class _Turn:
    begin: Begin
    done: asyncio.Future[None]


@dataclass(slots=True)
class _Stop:
    done: asyncio.Future[None]
    clean: bool


class Recorder:
    """Takes what was committed, from the event loop, in order; `beside.Recorder` says when.

    `on`: whether it is recorded; `failure`: why not; `sequence`: the last event handed to the system; `size`: bytes of
    the segment.
    """

    def __init__(self, folder: Path, clock: Clock, *, most_waiting: int = MOST_WAITING) -> None:
        self._folder = folder
        self._clock = clock
        self._most_waiting = most_waiting
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: SimpleQueue[_Item | _Turn | _Stop] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="journal", daemon=True)
        self._segment: Segment | None = None
        self._group_count = 0
        # Counted by the loop and by the thread: the difference is what waits.
        self._taken = 0
        self._done = 0
        self._unsynced_since: float | None = None
        self.on = False
        self.failure = ""
        self.sequence = 0

    # In the event loop ------------------------------------------------------------------------------------------------

    def start(self, group_count: int) -> None:
        """Start the thread; `group_count` is the number of the last group that was committed."""
        self._group_count = group_count
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def group_count(self) -> int:
        """The number of the last group that was committed."""
        return self._group_count

    async def turn(self, begin: Begin) -> None:
        """Go on in a new segment, from the next group on; raises OSError when it cannot be made."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put(_Turn(begin, done))
        # What is committed meanwhile waits behind the turn, and is in the new segment.
        self.on, self.failure = True, ""
        try:
            await asyncio.shield(done)
        except OSError:
            self.on = False
            raise

    async def stop(self, limit: float = 5.0) -> None:
        """Write what waits, sync it, end the thread; a disk that hangs is waited for `limit` seconds."""
        if not self._thread.is_alive():
            return
        clean, self.on = self.on, False
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put(_Stop(done, clean))
        with suppress(TimeoutError):
            await asyncio.wait_for(done, limit)

    def group(self, group: Sequence[ChangeSet], outcomes: Sequence[Outcome], group_count: int) -> None:
        """Take a group that was committed; its events have their sequence."""
        before, self._group_count = self._group_count, group_count
        if not self.on or group_count == before:
            return
        if group_count != before + 1:
            self._give_up("a group was committed that was not handed over")
            return
        stood = [changes for changes, outcome in zip(group, outcomes, strict=True) if type(outcome) is Committed]
        weight = 1 + sum(len(changes.puts) + len(changes.events) for changes in stood)
        told = [changes.events for changes in stood if changes.events]
        time = told[-1][-1].time if told else 0.0

        def make() -> Entry:
            return Group(group_count, time, [entry_of(changes) for changes in stood])

        self._put(make, weight, told[-1][-1].sequence if told else 0)

    def chunk(self, upload_id: str, number: int, content: bytes) -> None:
        """Take a piece of an upload that was stored."""
        self._put(lambda: Chunk(upload_id, number, content), _CHUNK_WEIGHT, 0)

    def blob(self, info: BlobInfo, upload_id: str) -> None:
        """Take a blob that is there from now on, or (without an upload) was renewed."""
        entry = Blob(info.namespace, info.id, info.size, info.content_type, info.create_time, upload_id)
        self._put(lambda: entry, 1, 0)

    def _put(self, make: Callable[[], Entry], weight: int, sequence: int) -> None:
        if not self.on:
            return
        if self._taken - self._done > self._most_waiting:
            self._give_up("its disk is slower than what is written")
            return
        self._taken += weight
        self._queue.put(_Item(make, weight, sequence, self._clock.monotonic()))

    def _give_up(self, why: str) -> None:
        self.on, self.failure = False, why
        _log.error("the archive has a hole and needs a new backup", extra={"reason": why})

    @property
    def size(self) -> int:
        """Bytes of the segment."""
        segment = self._segment
        return segment.size if segment else 0

    @property
    def lag(self) -> float:
        """Seconds since the oldest change was taken that is not on disk yet; zero when all is."""
        since = self._unsynced_since
        return 0.0 if since is None else max(0.0, self._clock.monotonic() - since)

    # In the thread ----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while self._deal_with(self._wait()):
            pass

    def _wait(self) -> list[_Item | _Turn | _Stop]:
        timeout = None if self._unsynced_since is None else max(0.0, _SYNC_EVERY - self.lag)
        found: list[_Item | _Turn | _Stop] = []
        with suppress(Empty):
            found.append(self._queue.get(timeout=timeout))
            while len(found) < _AT_ONCE:
                found.append(self._queue.get_nowait())
        return found

    def _deal_with(self, found: Sequence[_Item | _Turn | _Stop]) -> bool:
        items: list[_Item] = []
        for each in found:
            if isinstance(each, _Item):
                items.append(each)
                continue
            self._write(items)
            items = []
            if isinstance(each, _Stop):
                if each.clean:
                    self._write([_Item(lambda: End(self._group_count), 0, 0, self._clock.monotonic())])
                self._end_segment()
                self._settle(each.done, None)
                return False
            self._turn_to(each)
        self._write(items)
        if self.lag >= _SYNC_EVERY:
            self._sync()
        return True

    def _turn_to(self, turn: _Turn) -> None:
        self._end_segment()
        try:
            self._segment = Segment(self._folder, turn.begin)
        except OSError as error:
            self._settle(turn.done, error)
        else:
            self._settle(turn.done, None)

    def _write(self, items: Sequence[_Item]) -> None:
        if items and self._segment is not None:
            if self._unsynced_since is None:
                self._unsynced_since = items[0].time
            try:
                self._segment.write([framed(item.make()) for item in items])
                self.sequence = max(self.sequence, *(item.sequence for item in items))
            except (OSError, TypeError, ValueError, msgspec.MsgspecError) as error:
                self._fail(error)
        self._done += sum(item.weight for item in items)

    def _sync(self) -> None:
        if self._segment is not None:
            try:
                self._segment.sync()
            except OSError as error:
                self._fail(error)
        self._unsynced_since = None

    def _end_segment(self) -> None:
        self._sync()
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _fail(self, error: Exception) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.close()
        self._unsynced_since = None
        if self.on:
            self._give_up(f"the journal cannot be written: {error}")

    def _settle(self, done: asyncio.Future[None], error: OSError | None) -> None:
        def settle() -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        # A loop that is closed has nobody left who waits.
        with suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(settle)
