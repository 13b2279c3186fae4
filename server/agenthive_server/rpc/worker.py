"""WorkerService.Connect: opens or resumes a session, serves its stream, tells the kernel when contact is lost."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, NamedTuple

from agenthive.v1 import worker_service_pb2 as pb

from agenthive_server import telemetry
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import KernelError, ProtocolViolation
from agenthive_server.kernel.session_items import Hello, Welcome
from agenthive_server.kernel.session_verbs import SessionVerbs
from agenthive_server.plugin.api import Call
from agenthive_server.telemetry import Sample

from . import validate
from .convert.sessions import hello_from
from .inbox import OutputSink
from .session import SessionStream
from .wire import Duplex

HELLO_SECONDS: Final = 10.0
MARKS: Final = 50_000
"""Sessions whose frame numbers are remembered after their stream has ended."""

_log = logging.getLogger(__name__)


class Mark(NamedTuple):
    """Where the numbering of a session's frames stands after one of its streams."""

    epoch: int
    dealt: int
    sent: int


class WorkerMethods:
    """Serves sessions. The numbering of frames outlives a stream in memory only: every item can be repeated."""

    def __init__(
        self, sessions: SessionVerbs, output: OutputSink, clock: Clock, *, hello_seconds: float = HELLO_SECONDS
    ) -> None:
        self._sessions = sessions
        self._output = output
        self._clock = clock
        self.hello_seconds = hello_seconds
        self._marks: OrderedDict[tuple[str, str], Mark] = OrderedDict()
        self._open = 0

    async def Connect(self, stream: Duplex, call: Call) -> None:
        """Serve one stream of a session until it ends."""
        message = await self._hello(stream)
        hello = hello_from(message)
        link = SessionStream(stream, self._sessions, self._output, self._clock)
        welcome = await self._connect(call, hello, link)
        session = (call.namespace, welcome.session_id, welcome.epoch)
        mark = self._mark(session, resumed=welcome.resumed)
        reason = "the worker closed its stream"
        self._open += 1
        try:
            dealt = mark.dealt if mark else None if welcome.resumed else 0
            sent = max(mark.sent if mark else 0, message.acknowledged_frame)
            await link.run(session, welcome, dealt, sent)
            if link.outbox.sent_away:
                reason = "it was told to go on elsewhere"
        except asyncio.CancelledError:
            reason = "the connection broke"
            raise
        except KernelError as error:
            reason = error.reason
            raise
        finally:
            self._open -= 1
            if link.inbox.left:
                self._marks.pop(session[:2], None)
            else:
                self._remember(session, Mark(welcome.epoch, link.inbox.dealt, link.outbox.sent))
                await self._lost(session, reason)

    async def _hello(self, stream: Duplex) -> pb.Hello:
        try:
            async with asyncio.timeout(self.hello_seconds):
                frame: pb.ConnectRequest | None = await stream.read()
        except TimeoutError:
            raise ProtocolViolation(f"no hello within {self.hello_seconds:g} seconds") from None
        if frame is None or len(frame.items) != 1 or frame.items[0].WhichOneof("item") != "hello":
            raise ProtocolViolation("the first frame of a stream holds a hello and nothing else")
        hello = frame.items[0].hello
        validate.between(hello.acknowledged_frame, 0, 2**62, "hello.acknowledged_frame")
        return hello

    async def _connect(self, call: Call, hello: Hello, link: SessionStream) -> Welcome:
        """Open the session. A caller that goes away meanwhile leaves a session without contact, not one half open."""
        asked = self._sessions.connect(
            call.namespace, call.principal, hello, link, peer=call.transport.peer(), notes=call.notes
        )
        opening = asyncio.ensure_future(asked)
        try:
            welcome = await asyncio.shield(opening)
            # For the interceptors on the way out: who it was is known from its hello only.
            call.principal = welcome.principal
            return welcome
        except asyncio.CancelledError:
            try:
                welcome = await opening
            except KernelError:
                pass
            else:
                await self._lost((call.namespace, welcome.session_id, welcome.epoch), "the connection broke")
            raise

    async def _lost(self, session: tuple[str, str, int], reason: str) -> None:
        try:
            await self._sessions.lost(*session, reason)
        except KernelError as error:
            # Silence tells the reaper the same, a little later.
            fields = {telemetry.SESSION_ID: session[1], telemetry.REASON: error.reason}
            _log.warning("session: lost contact could not be recorded", extra=fields)

    def _mark(self, session: tuple[str, str, int], *, resumed: bool) -> Mark | None:
        """Return where the numbering stands, if the stream before this one was served here."""
        if not resumed:
            return Mark(0, 0, 0)
        mark = self._marks.get(session[:2])
        return mark if mark is not None and mark.epoch == session[2] - 1 else None

    def _remember(self, session: tuple[str, str, int], mark: Mark) -> None:
        known = self._marks.get(session[:2])
        if known is not None and known.epoch > mark.epoch:
            return
        self._marks[session[:2]] = mark
        self._marks.move_to_end(session[:2])
        if len(self._marks) > MARKS:
            self._marks.popitem(last=False)

    def metrics(self) -> Iterator[Sample]:
        """Yield how many sessions have a stream here."""
        yield Sample(telemetry.SESSIONS_OPEN, (), self._open)
