"""One session on `WorkerService.Connect`, kept over any number of streams: the engine below workers and runners."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from agenthive.access import Access
from agenthive.credential import Credential
from agenthive.errors import HiveError, ProtocolViolation, SessionNotFound, Unavailable
from agenthive.outbox import Lease, Outbox, greeting, lease_of, split_heartbeat
from agenthive.service_config import CHANNEL_OPTIONS
from agenthive.session_call import SessionCall
from agenthive.session_host import Host, Timing
from agenthive.transport_errors import in_words
from agenthive.v1 import worker_service_pb2 as pb
from agenthive.waiting import final, first_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Host", "Lease", "Session", "Timing", "lease_of"]

_logger: Final = logging.getLogger(__name__)

CONTACT_LOST_AT: Final = 2 / 3
"""Share of the grace after which contact counts as lost here: exclusive work ends before the server's leases do."""


class Session:
    """Many agents, one session. `run()` holds it; everything else may be called before, during and between streams.

    Not thread-safe: call it in the event loop that runs it. After `run()` has returned a session is over.
    """

    def __init__(
        self,
        target: str | Access,
        host: Host,
        *,
        credential: Credential | None = None,
        channel_options: Sequence[tuple[str, str | int]] = CHANNEL_OPTIONS,
        timing: Timing | None = None,
    ) -> None:
        """Keep the settings; nothing is opened before `run()`. `credential` keeps what is earned by joining."""
        self.session_id = ""
        self.connected = False
        self._access = target if isinstance(target, Access) else Access(target)
        self._host = host
        self._credential = credential or Credential()
        self._options = channel_options
        self._timing = timing or Timing()
        self._backoff = self._timing.backoff
        self._interval = 10.0
        self._grace = 30.0
        self._greeted, self._told = False, ""
        self._outbox = Outbox()
        self._received = 0
        self._heard: float | None = None
        self._beat_due = False
        self._draining = False
        self._closing = False
        self._over = False
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._stop = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def lost_for(self) -> float:
        """Seconds since the server was last heard, zero while connected; before the first contact, since `run()`."""
        return 0.0 if self.connected or self._heard is None else self._now() - self._heard

    def send(self, item: pb.WorkerItem) -> None:
        """Queue an item; it is repeated until the server has acknowledged it, across streams and, while its lease is
        valid, across sessions.

        Raises ValueError for an item of more than 3 MiB. Of output, the oldest is dropped when more than 8 MiB waits.
        """
        self._outbox.put(item)
        self._wake.set()

    def beat_now(self) -> None:
        """Send a heartbeat at the next opportunity, instead of at the next interval."""
        self._beat_due = True
        self._wake.set()

    def refused_item(self, refused: pb.ItemRefused) -> pb.WorkerItem | None:
        """Return the item a refusal is about, or None when it is not known any more. Ask inside `Host.control`."""
        return self._outbox.find(refused.frame_number, refused.item_index)

    async def run(self) -> None:
        """Connect, and connect again with growing waits, until `close()` or the server's Goodbye; then return.

        Raises SessionFenced when a newer session has taken over, ProtocolViolation, any other HiveError that
        repeating would not cure, and what the host raises. Cancelled, it breaks the stream without a word: leases
        outlive that by the grace.
        """
        self._heard = self._now()
        try:
            await first_of(self._stay_connected(), self._watch_contact())
        finally:
            self.connected = False
            self._ended.set()
            self._settled.set()

    async def drain(self) -> None:
        """Say that nothing new is wanted, and return; `run()` returns after the server's Goodbye."""
        if not self._draining:
            self._draining = True
            self.send(pb.WorkerItem(drain=pb.Drain()))

    async def flushed(self) -> None:
        """Wait until everything sent so far is acknowledged. Raises Unavailable when the session ends before that."""
        serial = self._outbox.last_serial
        while not self._outbox.settled(serial):
            if self._ended.is_set():
                raise Unavailable("the session ended with items that were not acknowledged")
            await self._news()

    async def close(self, reason: str = "") -> None:
        """Say goodbye, wait at most `close_timeout` seconds for the server to have heard it, and end `run()`.

        What is still held goes back to the queue. Cancelled, it ends `run()` all the same.
        """
        if not self._closing:
            self._closing = True
            self.send(pb.WorkerItem(goodbye=pb.Goodbye(reason=reason)))
        try:
            with suppress(TimeoutError, Unavailable):
                if self.session_id and not self._ended.is_set():
                    async with asyncio.timeout(self._timing.close_timeout):
                        await self.flushed()
        finally:
            self._stop.set()

    # -- streams, one after the other

    async def _stay_connected(self) -> None:
        while not (self._over or self._stop.is_set()):
            try:
                delay = await self._one_stream()
            except SessionNotFound:
                if self._closing:
                    return
                if not self.session_id:
                    raise
                self.session_id, delay = "", 0.0
            except HiveError as error:
                if final(error) and not self._credential.yields(error, self._host.hello().join_token):
                    raise
                self._tell(error)
                delay = error.retry_after if error.retry_after is not None else self._backoff.next()
            finally:
                self.connected = False
            if not self._over:
                await self._pause(delay)

    def _tell(self, error: HiveError) -> None:
        """Log why there is no connection, once for each reason: it is tried for ever, perhaps in vain."""
        text = in_words(error, tls=self._access.tls)
        if not self.connected and text != self._told:
            _logger.warning("no session with %s: %s; trying again", self._access.target, text)
            self._told = text

    async def _one_stream(self) -> float:
        """Hold one stream to its end; return how long to wait before the next."""
        # A channel of its own: "go on elsewhere" must not end at the same connection again.
        async with self._access.open_channel(self._options) as channel:
            call = SessionCall(channel, self._access.metadata())
            try:
                return await first_of(self._converse(call), self._stopped())
            finally:
                call.cancel()

    async def _converse(self, call: SessionCall) -> float:
        first = await self._greet(call)
        return await first_of(self._read(call, first), self._write(call), self._beat())

    async def _greet(self, call: SessionCall) -> pb.ConnectResponse:
        ended = self._outbox.ended_leases()
        hello = greeting(self._host.hello(), self.session_id, self._received, ended, self._credential.value)
        try:
            async with asyncio.timeout(self._timing.welcome_timeout):
                await call.write(pb.ConnectRequest(items=[pb.WorkerItem(hello=hello)]))
                response = await call.read()
        except TimeoutError:
            raise Unavailable("no Welcome in time") from None
        if response is None:
            raise Unavailable("the stream ended before the Welcome")
        if not response.items or not response.items[0].HasField("welcome"):
            raise ProtocolViolation("the first item of the server is not a Welcome")
        await self._welcomed(response.items[0].welcome)
        return response

    async def _welcomed(self, welcome: pb.Welcome) -> None:
        timing = self._timing
        self._interval = timing.heartbeat_interval or welcome.heartbeat_interval.ToNanoseconds() / 1e9 or 10.0
        self._grace = timing.reconnect_grace or welcome.reconnect_grace.ToNanoseconds() / 1e9 or 30.0
        if welcome.resumed:
            self._outbox.resume(welcome.acknowledged_frame)
        else:
            self._received = 0
            self._outbox.restart({Lease(each.task_id, each.lease_epoch) for each in welcome.valid_leases})
        if welcome.credential:
            self._credential.earn(welcome.credential)
        self.session_id = welcome.session_id
        self.connected, self._greeted, self._told = True, True, ""
        self._heard = self._now()
        self._settled.set()
        await self._host.welcome(welcome)
        if self._draining and not welcome.resumed:
            self.send(pb.WorkerItem(drain=pb.Drain()))

    # -- one stream

    async def _read(self, call: SessionCall, first: pb.ConnectResponse) -> float:
        response: pb.ConnectResponse | None = first
        while response is not None:
            self._heard = self._now()
            delay = await self._deal_with(response)
            self._received = max(self._received, response.frame_number)
            if response is not first:
                self._backoff.reset()
            self._outbox.acknowledge(response.acknowledged_frame)
            self._settled.set()
            if delay is not None:
                return delay
            response = await call.read()
        if self._closing:
            self._over = True
        return self._backoff.next()

    async def _deal_with(self, response: pb.ConnectResponse) -> float | None:
        """Pass the items on; return a wait when one of them ends the stream."""
        for item in response.items:
            kind = item.WhichOneof("item")
            if kind == "reconnect":
                self._backoff.reset()
                return item.reconnect.delay.ToNanoseconds() / 1e9
            if kind != "welcome":
                await self._host.control(item)
            if kind == "goodbye":
                self._over = True
                return 0.0
        return None

    async def _write(self, call: SessionCall) -> float:
        while True:
            self._wake.clear()
            if self._beat_due:
                self._beat_due = False
                for beat in split_heartbeat(self._host.heartbeat()):
                    self._outbox.put(pb.WorkerItem(heartbeat=beat))
            frame = self._outbox.next_frame(self._received)
            if frame is None:
                await self._wake.wait()
            elif not await call.write(frame):
                await asyncio.Event().wait()  # the call is over; the reader learns why

    async def _beat(self) -> float:
        while True:
            await asyncio.sleep(self._interval)
            if self._now() - (self._heard or 0.0) >= self._timing.silent_intervals * self._interval:
                return 0.0  # a server that does not answer heartbeats: break the stream and connect again
            self.beat_now()

    # -- waiting

    async def _watch_contact(self) -> None:
        while not self._greeted:  # nothing is held before the first Welcome
            await self._news()
        while True:
            heard = self._heard
            silence = self._now() - (heard or 0.0)
            patience = CONTACT_LOST_AT * self._grace
            if silence < patience:
                await asyncio.sleep(patience - silence)
                continue
            await self._host.contact_lost(silence)
            while self._heard == heard:
                await self._news()

    async def _news(self) -> None:
        self._settled.clear()
        await self._settled.wait()

    async def _stopped(self) -> float:
        await self._stop.wait()
        return 0.0

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    def _now(self) -> float:
        return self._timing.clock() if self._timing.clock else asyncio.get_running_loop().time()
