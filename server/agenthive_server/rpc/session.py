"""One session's stream: a read loop, with an inbox and an outbox that work only while there is something to do.

An idle session is one waiting read. The writer never holds up the reader, nor does the store.
"""

from __future__ import annotations

import asyncio

from agenthive.v1 import worker_service_pb2 as pb

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import KernelError
from agenthive_server.kernel.session_items import Delivery, Welcome

from .inbox import Applied, Inbox, OutputSink
from .outbox import Outbox
from .wire import Duplex


class SessionStream:
    """The live stream of one session; the kernel knows it as its `Link`."""

    __slots__ = ("_failure", "_reader", "_reading", "_stopped", "_stream", "inbox", "outbox")

    def __init__(self, stream: Duplex, sessions: Applied, output: OutputSink, clock: Clock) -> None:
        self._stream = stream
        self._reader = asyncio.current_task()
        self._reading = False
        self._stopped = False
        self._failure: BaseException | None = None
        self.outbox = Outbox(stream, clock, self._stop)
        self.inbox = Inbox(sessions, output, self.outbox, clock, self._stop)

    def deliver(self, delivery: Delivery) -> None:
        """Queue one thing to say; it is written with what else is to be said in this turn of the event loop."""
        self.outbox.say(delivery)

    def fence(self, error: KernelError) -> None:
        """End the stream with an error."""
        self._stop(error)

    def _stop(self, error: BaseException | None) -> None:
        """End the read loop; the first error given is raised."""
        if self._failure is None:
            self._failure = error
        self._stopped = True
        if self._reading and self._reader is not None:
            self._reading = False
            self._reader.cancel()

    async def run(self, session: tuple[str, str, int], welcome: Welcome, dealt: int | None, sent: int) -> None:
        """Welcome the worker and serve the session (namespace, id, epoch) until its stream ends.

        `dealt` is the worker's last frame known to be dealt with, None when nobody knows; `sent` the last number used
        for a frame to it. Returns when the worker ended the stream, left, or was told to go on elsewhere. Raises what
        fenced it, `ProtocolViolation`, `BadRequest`. What was taken off the wire is applied also on cancellation.
        """
        self.inbox.open(session, dealt)
        broken = True
        try:
            await self.outbox.open(welcome, dealt or 0, sent)
            await self._read()
            broken = False
        except KernelError:
            broken = False
            raise
        finally:
            await self.inbox.finish()
            if broken:
                self.outbox.abandon()
            else:
                await self.outbox.finish()
        if self._failure is not None:
            raise self._failure

    async def _read(self) -> None:
        """Take frames until the worker ends the stream, or `_stop` does."""
        while not self._stopped:
            frame = await self._next()
            if frame is None:
                return
            self.inbox.take(frame)
            await self.inbox.room()

    async def _next(self) -> pb.ConnectRequest | None:
        self._reading = True
        try:
            frame: pb.ConnectRequest | None = await self._stream.read()
        except asyncio.CancelledError:
            # Cancelled by `_stop`, unless the whole call was.
            if not self._stopped or self._reader is None or self._reader.uncancel():
                raise
            return None
        finally:
            self._reading = False
        return frame
