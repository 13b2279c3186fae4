"""One reader of the event log: where it begins, what it is sent, when it ends."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Self

from agenthive_server.kernel.errors import BadRequest, StoreUnavailable
from agenthive_server.kernel.events import Event

from .cursor import Cursor, invalid_cursor, parse_cursor
from .filter import EventFilter
from .frames import BYTES, EVENTS, Frame, join_frame
from .notifier import NEVER
from .output_reader import OutputPosition, OutputReader
from .snapshot import Packing

if TYPE_CHECKING:
    from .subscriptions import Subscriptions

MAX_BOOKMARK_INTERVAL = 15.0
MIN_BOOKMARK_INTERVAL = 1.0

FIRST_BACKOFF = 0.25
MAX_BACKOFF = 5.0


class Start(IntEnum):
    """Where a subscription begins; numbers as in the protos."""

    NOW = 1
    EARLIEST = 2
    AFTER = 3
    AT_TIME = 4
    SNAPSHOT_THEN_TAIL = 5


class EventClass(IntEnum):
    """What kind of events it carries; numbers as in the protos."""

    LIFECYCLE = 1
    OUTPUT = 2
    ALL = 3


TakenSnapshot = tuple[int, Sequence[Event]]
"""The sequence the records stood at, and an AGENT_SNAPSHOT or TASK_SNAPSHOT event for each."""

Snapshot = Callable[[], TakenSnapshot | Awaitable[TakenSnapshot]]
"""Takes a snapshot of the agents and open tasks, all as of one sequence."""


@dataclass(frozen=True, kw_only=True)
class SubscriptionSpec:
    """What a reader asks for. `cursor` is for AFTER, `time` for AT_TIME, `offsets` for class OUTPUT."""

    start: Start = Start.NOW
    cursor: str = ""
    time: float = 0.0
    filter: EventFilter = field(default_factory=EventFilter)
    event_class: EventClass = EventClass.LIFECYCLE
    follow: bool = True
    bookmark_interval: float = MAX_BOOKMARK_INTERVAL
    offsets: tuple[OutputPosition, ...] = ()


class Subscription:
    """An async iterator of frames: bytes of one `StreamEventsResponse` each. Made by `Subscriptions.open`.

    Iterating raises `CursorCompacted` when the reader has become too late. It ends normally at the head when it does
    not follow, and with a last cursor after `end` or when the hub drains. A store that cannot be read delays it, no
    more. All it keeps is a position, so a reader that does not ask for the next frame costs nothing. Cancelling a wait
    for the next frame ends the iteration; resume by cursor.
    """

    def __init__(self, hub: Subscriptions, spec: SubscriptionSpec, snapshot: Snapshot | None) -> None:
        self._hub = hub
        self._log = hub.log
        self._clock = hub.clock
        self._spec = spec
        self._snapshot = snapshot
        self._wanted = spec.filter
        self._lifecycle = spec.event_class is not EventClass.OUTPUT
        self._output: OutputReader | None = None
        # What it wants of other servers' output.
        self._brought_in: object = None
        interval = min(max(spec.bookmark_interval, MIN_BOOKMARK_INTERVAL), MAX_BOOKMARK_INTERVAL)
        # A little early, for the wheel that wakes us is coarse.
        self._interval = interval - min(0.5, interval / 4)
        self._position = 0
        self._before_snapshot = False
        # The position a reader knows of, and when it last heard of us.
        self._told = -1
        self._told_time = 0.0
        self._backoff = FIRST_BACKOFF
        self._retry_time = 0.0
        self._ended = False
        self._waiting: asyncio.Future[bool] | None = None
        self._frames = self._run()

    @property
    def cursor(self) -> str:
        """The cursor after the last frame."""
        return str(Cursor(self._log.log_id, None if self._before_snapshot else self._position))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        return await self._frames.__anext__()

    def end(self) -> None:
        """Let the stream end soon, with its cursor in a last frame."""
        self._ended = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(False)

    async def aclose(self) -> None:
        """Stop at once."""
        if self._brought_in is not None and self._hub.output is not None and self._hub.output.exchange is not None:
            self._hub.output.exchange.close(self._brought_in)
        await self._frames.aclose()

    async def begin(self) -> None:
        """Find the start; raises `BadRequest`, `CursorCompacted` and `StoreUnavailable`."""
        spec, log = self._spec, self._log
        if spec.start is Start.EARLIEST:
            await log.refresh()
            self._position = log.oldest - 1
        elif spec.start is Start.AFTER:
            await self._begin_after(parse_cursor(spec.cursor))
        elif spec.start is Start.AT_TIME:
            self._position = await log.sequence_at(spec.time)
        else:
            self._position = log.head
            self._before_snapshot = spec.start is Start.SNAPSHOT_THEN_TAIL
        if self._before_snapshot and self._snapshot is None:
            raise BadRequest("this stream cannot begin with a snapshot", field="start")
        if not self._lifecycle:
            self._position, self._before_snapshot = log.head, False
        await self._open_output()

    async def _begin_after(self, cursor: Cursor) -> None:
        log = self._log
        if cursor.log_id != log.log_id:
            raise await log.too_old()
        if cursor.sequence is None:
            self._position, self._before_snapshot = log.head, True
            return
        if cursor.sequence > log.head:
            # Another replica may have told it; the store knows.
            await log.refresh()
            if cursor.sequence > log.head:
                raise invalid_cursor("after_cursor is beyond the end of the event log")
        if cursor.sequence + 1 < log.oldest:
            raise await log.too_old(cursor.sequence)
        self._position = cursor.sequence

    async def _open_output(self) -> None:
        hub, spec = self._hub.output, self._spec
        if hub is None or spec.event_class is EventClass.LIFECYCLE:
            return
        after = spec.start is Start.AFTER and self._lifecycle and not self._before_snapshot
        early = after or spec.start in (Start.EARLIEST, Start.AT_TIME)
        since = self._position if after else -1 if early else self._log.head
        if hub.exchange is not None:
            offsets = {wish.key: wish.offset for wish in spec.offsets}
            self._brought_in = await hub.exchange.open(self._wanted, since, offsets, backlog=early)
        time = None
        position = hub.next
        if spec.start is Start.EARLIEST:
            position = 0
        elif spec.start is Start.AT_TIME:
            time = spec.time
            position = hub.position_at(time=time)
        elif after:
            position = hub.position_at(sequence=self._position)
        self._output = OutputReader(hub, self._wanted, position, spec.offsets, time=time, sequence=since)

    async def _run(self) -> AsyncGenerator[bytes, None]:
        yield self._bookmark()
        if self._before_snapshot:
            async for frame in self._send_snapshot():
                yield frame
        while not self._ended:
            data = await self._next_lifecycle() or self._next_output()
            if data is not None:
                yield data
            elif not self._spec.follow and self._caught_up:
                break
            elif self._bookmark_due:
                yield self._bookmark()
            else:
                await self._wait()
        if self._told != self._position or self._ended:
            yield self._bookmark()

    @property
    def _caught_up(self) -> bool:
        if self._output is not None and self._output.behind:
            return False
        return not self._lifecycle or (self._position >= self._log.head and not self._retry_time)

    @property
    def _bookmark_due(self) -> bool:
        return self._clock.monotonic() >= self._told_time + self._interval

    async def _next_lifecycle(self) -> bytes | None:
        """Return what follows in the log, None at the head. Over what is not wanted it passes, with bookmarks."""
        if not self._lifecycle or self._hub.notifier.gathering(self._position):
            return None
        while (frame := await self._read_frame()) is not None:
            self._backoff = FIRST_BACKOFF
            self._position = frame.end
            if frame.count:
                return self._sent(frame.data, frame.count)
            if self._ended or self._bookmark_due:
                return self._bookmark()
            if frame.end < self._log.head:
                await asyncio.sleep(0)
        return None

    async def _read_frame(self) -> Frame | None:
        """Return the next frame, None at the head and while the store has to be left alone."""
        if self._retry_time:
            if self._clock.monotonic() < self._retry_time:
                return None
            self._retry_time = 0.0
        try:
            return await self._hub.framer.frame(self._wanted, self._position)
        except StoreUnavailable:
            self._hub.store_errors += 1
            self._retry_time = self._clock.monotonic() + self._backoff
            self._backoff = min(2 * self._backoff, MAX_BACKOFF)
            return None

    def _next_output(self) -> bytes | None:
        if self._output is None or not self._output.behind:
            return None
        events = self._output.read(EVENTS, BYTES)
        wires = [self._log.wire(event) for event in events]
        return self._sent(join_frame(wires, self.cursor), len(wires)) if wires else None

    async def _send_snapshot(self) -> AsyncGenerator[bytes, None]:
        """Send the snapshot. Until its end mark the cursor stands before it: who resumes there gets a new one."""
        if self._snapshot is None:
            return
        taken = self._snapshot()
        sequence, events = await taken if inspect.isawaitable(taken) else taken
        packing = Packing(events, self._wanted, self._hub.encode)
        async for wires in packing.groups():
            if self._ended:
                return
            yield self._sent(join_frame(wires, self.cursor), len(wires))
        self._before_snapshot = False
        self._position = sequence
        mark = self._hub.encode(packing.end_mark(self._clock.now()))
        yield self._sent(join_frame((mark,), self.cursor), 1)

    def _bookmark(self) -> bytes:
        if not self._lifecycle:
            self._position = self._log.head
        self._hub.bookmarks += 1
        return self._sent(join_frame((), self.cursor), 0)

    def _sent(self, data: bytes, count: int) -> bytes:
        self._told = self._position
        self._told_time = self._clock.monotonic()
        hub = self._hub
        hub.frames += 1
        hub.events += count
        hub.bytes += len(data)
        return data

    async def _wait(self) -> None:
        """Wait for something to send, for the next bookmark, or for the time to try the store again."""
        hub, now = self._hub, self._clock.monotonic()
        beyond, wake_time = self._position, self._told_time + self._interval
        if self._retry_time:
            beyond, wake_time = NEVER, min(wake_time, self._retry_time)
        elif not self._lifecycle:
            beyond = NEVER
        future = self._waiting = asyncio.get_running_loop().create_future()
        hub.notifier.enlist(future, beyond, wake_time - now)
        if self._output is not None and hub.output is not None:
            hub.output.notifier.enlist(future, self._output.position)
        if future.done():
            await asyncio.sleep(0)
        await future
        self._waiting = None
