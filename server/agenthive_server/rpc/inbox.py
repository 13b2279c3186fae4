"""What a session's worker says: checked, folded into as few changes as possible, acknowledged when it is durable.

Frames gather while the last ones are being applied, and are then applied together: one commit for all of them. The task
that does it lives only while there is something to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar

from agenthive.v1 import event_pb2
from agenthive.v1 import worker_service_pb2 as pb

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import (
    BadRequest,
    Conflict,
    OutcomeUnknown,
    Overloaded,
    ProtocolViolation,
    StoreUnavailable,
)
from agenthive_server.kernel.session_items import Beat, Bye, Item, Refusal

from . import validate
from .convert.deliveries import refusal_of
from .convert.sessions import READ, beat_from
from .outbox import Outbox

T = TypeVar("T")

MOST: Final = 64
"""Frames that may wait for the store; then the worker is not read from."""

FRAME_ITEMS: Final = 1_024
CHUNK: Final = 64 * 1024

_AGAIN: Final = (StoreUnavailable, Overloaded, Conflict, OutcomeUnknown)
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
_STREAMS: Final = {
    number: name.removeprefix("OUTPUT_STREAM_") if number else "" for name, number in event_pb2.OutputStream.items()
}


class Applied(Protocol):
    """What of the kernel's `SessionVerbs` the frames of a worker need."""

    def heard(self, namespace: str, session_id: str, epoch: int) -> None:
        """Note a sign of life."""

    async def apply(self, namespace: str, session_id: str, epoch: int, entries: Sequence[Item]) -> list[Refusal]:
        """Apply items; they are durable or refused when it returns."""

    def beat(self, namespace: str, session_id: str, epoch: int, beats: Sequence[Beat]) -> Awaitable[None] | None:
        """Renew leases; returns None, or what to await until the news is durable."""

    async def leave(self, namespace: str, session_id: str, epoch: int, reason: str) -> None:
        """End the session as its worker asks."""

    async def drain(self, namespace: str, session_id: str, epoch: int) -> None:
        """Hand nothing new to it."""

    def holds(self, namespace: str, session_id: str) -> int:
        """Return how many leases are held through it."""


class OutputSink(Protocol):
    """Where the output of attempts goes."""

    def append(
        self, namespace: str, session_id: str, task_id: str, epoch: int, offset: int, data: bytes, stream: str
    ) -> None:
        """Take a chunk at once; one of a lease that is over is dropped. `stream` is STDOUT, STDERR or empty."""


class _Batch:
    """Frames read into kernel items, with what could not be read."""

    def __init__(self, mail: Sequence[Item]) -> None:
        self.entries: list[Item] = [*mail]
        # Frame and index each entry came from; None for those the edge made.
        self.origins: list[tuple[int, int] | None] = [None] * len(self.entries)
        self.beats: list[Beat] = []
        self.chunks: list[tuple[str, int, int, bytes, str]] = []
        self.refused: list[tuple[int, Refusal]] = []
        self.drain = False
        self.goodbye: str | None = None

    def add(self, frame: pb.ConnectRequest) -> None:
        """Read a frame. Raises `ProtocolViolation` for a second hello."""
        number = frame.frame_number
        for index, item in enumerate(frame.items):
            kind = item.WhichOneof("item") or ""
            read = READ.get(kind)
            try:
                if read is None:
                    self._add_other(kind, item)
                    continue
                self.entries.append(read(getattr(item, kind), kind))
                self.origins.append((number, index))
            except BadRequest as error:
                task_id = getattr(getattr(item, kind, None), "task_id", "")
                self.refused.append((number, refusal_of(error, index, task_id)))

    def _add_other(self, kind: str, item: pb.WorkerItem) -> None:
        if kind == "heartbeat":
            self.beats += [beat_from(beat, f"heartbeat.tasks[{n}]") for n, beat in enumerate(item.heartbeat.tasks)]
        elif kind == "output":
            self.chunks.append(_chunk(item.output))
        elif kind == "drain":
            self.drain = True
        elif kind == "goodbye":
            self.goodbye = validate.text(item.goodbye.reason, "goodbye.reason", validate.REASON_TEXT)
        elif kind == "hello":
            raise ProtocolViolation("a stream has one hello, in its first frame")
        else:
            raise BadRequest("an item says one thing", field="item")


def _chunk(message: pb.TaskOutputChunk) -> tuple[str, int, int, bytes, str]:
    if len(message.data) > CHUNK:
        raise BadRequest(f"a chunk has more than {CHUNK} bytes", field="output.data")
    return (
        validate.required_id(message.task_id, "output.task_id"),
        validate.between(message.lease_epoch, 1, 2**62, "output.lease_epoch"),
        validate.between(message.offset, 0, 2**53, "output.offset"),
        message.data,
        _STREAMS.get(message.stream, ""),
    )


class Inbox:
    """Frames of one worker. `stop` is called with what ends the stream."""

    __slots__ = (
        "_applier",
        "_backlog",
        "_clock",
        "_closing",
        "_draining",
        "_mail",
        "_outbox",
        "_output",
        "_received",
        "_session",
        "_sessions",
        "_stop",
        "dealt",
        "left",
    )

    def __init__(
        self,
        sessions: Applied,
        output: OutputSink,
        outbox: Outbox,
        clock: Clock,
        stop: Callable[[BaseException | None], None],
    ) -> None:
        self._sessions = sessions
        self._output = output
        self._outbox = outbox
        self._clock = clock
        self._stop = stop
        self._session = ("", "", 0)
        # The last frame taken; None: the first one may have any number.
        self._received: int | None = None
        self._backlog: list[pb.ConnectRequest] = []
        self._mail: list[Item] = []
        self._applier: asyncio.Task[None] | None = None
        self._draining = self._closing = False
        self.dealt = 0
        self.left = False

    def open(self, session: tuple[str, str, int], dealt: int | None) -> None:
        """Begin, for a session (namespace, id, epoch); `dealt` is the last frame dealt with, None if nobody knows."""
        self._session = session
        self._received, self.dealt = dealt, dealt or 0

    def take(self, frame: pb.ConnectRequest) -> None:
        """Take a frame; one that was taken before is only acknowledged. Raises `ProtocolViolation`."""
        self._sessions.heard(*self._session)
        if frame.acknowledged_frame:
            self._mail += self._outbox.delivered(frame.acknowledged_frame)
        number = frame.frame_number
        if number or frame.items:
            self._check(number, len(frame.items))
            if self._received is not None and number <= self._received:
                self._outbox.acknowledge(self.dealt)
                return
            self._received = number
            self._backlog.append(frame)
        if self._applier is None and (self._backlog or self._mail):
            self._applier = asyncio.create_task(self._run())

    def _check(self, number: int, size: int) -> None:
        if number <= 0:
            raise ProtocolViolation("frames are numbered from 1")
        if size > FRAME_ITEMS:
            raise ProtocolViolation(f"a frame has at most {FRAME_ITEMS} items, this one has {size}")
        if self._received is not None and number > self._received + 1:
            raise ProtocolViolation(f"frame {number} came after frame {self._received}")

    async def room(self) -> None:
        """Wait until there is room for another frame."""
        while len(self._backlog) >= MOST and self._applier is not None:
            await asyncio.wait((self._applier,))

    async def finish(self) -> None:
        """Apply what was taken; what the store does not take now, the worker sends again."""
        self._closing = True
        if self._applier is not None:
            await asyncio.wait((self._applier,))

    async def _run(self) -> None:
        try:
            while (self._backlog or self._mail) and not self.left:
                frames, self._backlog = self._backlog, []
                await self._deal_with(frames)
        except Exception as error:  # noqa: BLE001 - it ends the stream, which answers with it or logs it
            self._backlog = []
            self._stop(error)
        finally:
            self._applier = None

    async def _deal_with(self, frames: Sequence[pb.ConnectRequest]) -> None:
        """Apply frames together and acknowledge the last. Raises what the kernel raises when nothing can be applied."""
        batch = _Batch(self._mail)
        self._mail = []
        for frame in frames:
            batch.add(frame)
        if batch.drain:
            # Before the rest: what is handed back beside it must not come back.
            self._draining = True
            await self._again(lambda: self._sessions.drain(*self._session))
        await self._apply(batch)
        for number, refusal in batch.refused:
            self._outbox.refuse(number, refusal)
        if frames:
            self.dealt = frames[-1].frame_number
            if any(frame.items for frame in frames):
                self._outbox.acknowledge(self.dealt)
        await self._maybe_leave(batch.goodbye)

    async def _apply(self, batch: _Batch) -> None:
        """Output and pulse first: what ends an attempt in these frames came after them."""
        namespace, session_id, _ = self._session
        for task_id, epoch, offset, data, stream in batch.chunks:
            self._output.append(namespace, session_id, task_id, epoch, offset, data, stream)
        if batch.beats:
            await self._again(lambda: self._beat(batch.beats))
        if not batch.entries:
            return
        for refusal in await self._again(lambda: self._sessions.apply(*self._session, batch.entries)):
            origin = batch.origins[refusal.index]
            if origin is not None:
                said = Refusal(origin[1], refusal.reason, refusal.message, refusal.task_id)
                batch.refused.append((origin[0], said))

    async def _beat(self, beats: Sequence[Beat]) -> None:
        news = self._sessions.beat(*self._session, beats)
        if news is not None:
            await news

    async def _maybe_leave(self, goodbye: str | None) -> None:
        """End the session when its worker says so, or when it wanted nothing new and holds nothing any more."""
        if goodbye is None and not (self._draining and not self._sessions.holds(*self._session[:2])):
            return
        reason = "drained" if goodbye is None else goodbye or "goodbye"
        await self._again(lambda: self._sessions.leave(*self._session, reason))
        self.left = True
        self._outbox.say(Bye(reason))

    async def _again(self, verb: Callable[[], Awaitable[T]]) -> T:
        """Call a verb until the store takes it: everything a worker says can be repeated."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return await verb()
            except _AGAIN as error:
                if self._closing:
                    raise
                await self._clock.sleep(max(pause, error.retry_after or 0.0))
                pause = min(2 * pause, _LONGEST_PAUSE)
