"""What a session's worker is told: gathered, numbered, written as frames by a task that lives only while it has to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from agenthive.v1 import worker_service_pb2 as pb

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import KernelError, Overloaded
from agenthive_server.kernel.session_items import (
    Assign,
    Bye,
    Delivery,
    Mail,
    MessagesDelivered,
    Reconnect,
    Refusal,
    Welcome,
)

from .convert.deliveries import fill_delivery, fill_refused, fill_welcome
from .wire import Duplex

MOST: Final = 10_000
"""Deliveries that may wait for a worker that does not read. It is told again from the records when it comes back."""

FRAME_ITEMS: Final = 1_024
FRAME_BYTES: Final = 1024 * 1024
LAST_WORDS: Final = 1.0
"""Seconds a stream that ends waits for its last frame to be taken."""


class Outbox:
    """Frames to one worker. `stop` is called with what ends the stream: an error; None after a Reconnect or Goodbye."""

    __slots__ = (
        "_acknowledged",
        "_clock",
        "_deliveries",
        "_ended",
        "_mail",
        "_open",
        "_owes",
        "_refused",
        "_stop",
        "_stream",
        "_writer",
        "sent",
        "sent_away",
    )

    def __init__(self, stream: Duplex, clock: Clock, stop: Callable[[BaseException | None], None]) -> None:
        self._stream = stream
        self._clock = clock
        self._stop = stop
        self._deliveries: deque[Delivery] = deque()
        self._refused: list[tuple[int, Refusal]] = []
        # Mail that was written and not acknowledged yet, by frame.
        self._mail: list[tuple[int, MessagesDelivered]] = []
        self._writer: asyncio.Task[None] | None = None
        self._acknowledged = 0
        self._owes = self._open = self._ended = False
        self.sent = 0
        self.sent_away = False

    async def open(self, welcome: Welcome, acknowledged: int, sent: int) -> None:
        """Write the welcome; what was queued before follows it. Raises what writing to the stream raises."""
        self._acknowledged, self.sent = acknowledged, sent
        frame = self._frame()
        fill_welcome(frame.items.add().welcome, welcome, acknowledged)
        await self._stream.write(frame)
        self._open = True
        self._write_soon()

    def say(self, delivery: Delivery) -> None:
        """Queue one thing to say."""
        if self._ended:
            return
        if len(self._deliveries) >= MOST:
            self._ended = True
            self._stop(Overloaded("the worker does not read what it is told; connect again", retry_after=1.0))
            return
        self._deliveries.append(delivery)
        if self._writer is None:
            self._write_soon()

    def refuse(self, frame: int, refusal: Refusal) -> None:
        """Queue that an item was not applied; it goes out with the acknowledgement of its frame."""
        self._refused.append((frame, refusal))

    def acknowledge(self, number: int) -> None:
        """Tell the worker that everything up to a frame is dealt with, with whatever goes out next or at once."""
        self._acknowledged = max(self._acknowledged, number)
        self._owes = True
        self._write_soon()

    def delivered(self, acknowledged: int) -> list[MessagesDelivered]:
        """Return the mail that has arrived, as the worker has acknowledged frames up to a number."""
        arrived = [mail for number, mail in self._mail if number <= acknowledged]
        if arrived:
            self._mail = [entry for entry in self._mail if entry[0] > acknowledged]
        return arrived

    async def finish(self) -> None:
        """Write what is still to be said, if the worker takes it within a second; nothing is written afterwards."""
        writer = self._writer
        if writer is not None:
            _, pending = await asyncio.wait((writer,), timeout=LAST_WORDS)
            if pending:
                writer.cancel()
                await asyncio.wait((writer,))
        self._ended = True

    def abandon(self) -> None:
        """Say nothing more: nobody listens."""
        self._ended = True
        if self._writer is not None:
            self._writer.cancel()

    def _write_soon(self) -> None:
        if self._writer is None and self._open and not self._ended:
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while (self._deliveries or self._refused or self._owes) and not self._ended:
                frame = self._next_frame().SerializeToString()
                try:
                    await self._stream.write(frame)
                except Exception as error:  # whatever gRPC says: nobody is there any more
                    raise KernelError("the connection broke", reason="CANCELLED") from error
            if self._ended:
                self._stop(None)
        except asyncio.CancelledError:
            self._ended = True
        except Exception as error:  # noqa: BLE001 - it ends the stream, which answers with it or logs it
            self._ended = True
            self._stop(error)
        finally:
            self._writer = None

    def _frame(self) -> pb.ConnectResponse:
        self.sent += 1
        self._owes = False
        return pb.ConnectResponse(frame_number=self.sent, acknowledged_frame=self._acknowledged)

    def _next_frame(self) -> pb.ConnectResponse:
        """Return a frame with as much of what is to be said as fits. The last words of a stream end it."""
        frame = self._frame()
        refused, self._refused = self._refused[:FRAME_ITEMS], self._refused[FRAME_ITEMS:]
        for number, refusal in refused:
            fill_refused(frame.items.add().refused, number, refusal)
        size, room = 0, FRAME_ITEMS - len(refused)
        now, add = self._clock.now(), frame.items.add
        while self._deliveries and room and size < FRAME_BYTES and not self._ended:
            said = self._deliveries.popleft()
            item = add()
            fill_delivery(item, said, now)
            size += item.ByteSize()
            room -= 1
            if not isinstance(said, Assign):
                self._note(said)
        return frame

    def _note(self, said: Delivery) -> None:
        """Remember what was written that matters later: mail, and last words."""
        if isinstance(said, Mail):
            ids = tuple(message.id for message in said.messages)
            self._mail.append((self.sent, MessagesDelivered(said.agent_id, ids)))
        elif isinstance(said, Reconnect | Bye):
            self._ended = True
            self.sent_away = isinstance(said, Reconnect)
