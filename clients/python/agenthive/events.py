"""`async for event in client.events(...)`: the event stream as one unbroken iterator that resumes by its cursor."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, TypedDict

import grpc

from agenthive.errors import DeadlineExceeded, HiveError, SequenceGap, Unavailable, error_from_rpc
from agenthive.output_positions import OutputPositions
from agenthive.v1 import event_pb2
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.waiting import Backoff, passing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from agenthive.access import Metadata
    from agenthive.v1.event_pb2 import Event, EventType, Severity
    from agenthive.v1.orchestrator_service_pb2 import StreamEventsRequest, StreamEventsResponse

    Method = grpc.aio.UnaryStreamMultiCallable[StreamEventsRequest, StreamEventsResponse]
    Call = grpc.aio.UnaryStreamCall[StreamEventsRequest, StreamEventsResponse]

SILENCE_SECONDS: Final = 45.0
"""Three times the longest silence the server allows itself; a stream quieter than this is opened again."""


class FilterFields(TypedDict, total=False):
    """Fields of EventFilter that can be given as keyword arguments; the comments of event.proto say what they mean."""

    types: Iterable[EventType.ValueType]
    agent_ids: Iterable[str]
    task_ids: Iterable[str]
    root_task_id: str
    roles: Iterable[str]
    labels: Mapping[str, str]
    minimum_severity: Severity.ValueType
    all_namespaces: bool


class EventStream:
    """Events in order, each once, across any number of disconnects.

    Iterate over it, or over `batches()`, one at a time; a later iteration goes on where the last stopped. It opens the
    stream again, from its cursor, when the server stops or cannot be reached, a stream is reset, silent for too long
    or, followed, ends; with growing random waits of at most 5 s. It raises CursorCompacted when events it has not
    seen are gone, any other HiveError that repeating would not cure, and with `give_up_after` the last failure after
    that many seconds without an answer. Cancelling a read or closing the stream ends the call; the cursor stays good.

    SNAPSHOT_THEN_TAIL: interrupted before its end mark, the snapshot begins again from its first event and
    `snapshot_round` grows; what an earlier round brought is to be forgotten. OUTPUT chunks go on at the byte after the
    last one seen, for up to 256 attempts; progress events have no position and may come again after a disconnect.
    """

    def __init__(
        self,
        method: Method,
        request: StreamEventsRequest,
        *,
        metadata: Callable[[], Metadata] = tuple,
        give_up_after: float | None = None,
        backoff: Backoff | None = None,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        """Keep what to ask for; the first read opens the stream. `metadata` is called whenever it is opened."""
        self.snapshot_round = 0
        self._method = method
        self._request = request
        self._metadata = metadata
        self._give_up_after = give_up_after
        self._backoff = backoff or Backoff()
        self._silence = silence_seconds
        self._cursor = request.after_cursor
        self._rest: deque[Event] = deque()
        self._rest_cursor = ""
        self._last_sequence = 0
        self._in_snapshot = request.start == orchestrator.STREAM_START_SNAPSHOT_THEN_TAIL
        self._resumable = False
        self._output = OutputPositions(request.output_positions)
        self._checks_for_holes = request.filter == event_pb2.EventFilter(all_namespaces=True)
        self._call: Call | None = None
        self._last_answer: float | None = None

    @property
    def cursor(self) -> str:
        """Where to resume so that nothing is missed: after the last batch all of whose events were handed out.

        Empty before the first answer and inside a snapshot. A reader that keeps it with the work done on each event,
        and starts again with `after=cursor`, sees every event at least once.
        """
        return self._cursor

    async def __aenter__(self) -> Self:
        """Return the stream; leaving the block closes it."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stream."""
        await self.aclose()

    async def aclose(self) -> None:
        """End the call, if one is open. A read that waits ends with CancelledError."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield the events one by one; `cursor` moves with the last event of each batch."""
        async for _ in self._received():
            while self._rest:
                event = self._rest.popleft()
                if not self._rest:
                    self._advance()
                yield event
            self._advance()

    async def batches(self) -> AsyncIterator[tuple[Sequence[Event], str]]:
        """Yield the events as they arrived together, with the cursor after them.

        Bookmarks come too, without events. Inside a snapshot the cursor is empty.
        """
        async for cursor in self._received():
            events = list(self._rest)
            self._rest.clear()
            self._advance()
            yield events, cursor

    def _advance(self) -> None:
        self._cursor = self._rest_cursor or self._cursor

    async def _received(self) -> AsyncIterator[str]:
        """Put what arrives into `_rest` and yield its cursor, beginning with what an earlier iteration left there."""
        if self._rest:
            yield self._rest_cursor
        loop = asyncio.get_running_loop()
        self._last_answer = loop.time()
        while True:
            failure: HiveError = Unavailable("the stream ended")
            try:
                async for response in self._open():
                    self._last_answer = loop.time()
                    self._take(response)
                    yield self._rest_cursor
                if self._request.no_follow:
                    return
            except grpc.aio.AioRpcError as error:
                failure = error_from_rpc(error)
            except DeadlineExceeded as error:
                failure = error
            if not passing(failure):
                raise failure
            wait = self._backoff.next() if failure.retry_after is None else failure.retry_after
            if self._give_up_after is not None and loop.time() + wait - self._last_answer > self._give_up_after:
                raise failure
            await asyncio.sleep(wait)

    async def _open(self) -> AsyncIterator[StreamEventsResponse]:
        call = self._call = self._method(self._next_request(), metadata=self._metadata())
        answers = 0
        try:
            while True:
                try:
                    async with asyncio.timeout(self._silence):
                        response = await call.read()
                except TimeoutError:
                    raise DeadlineExceeded("the stream is silent") from None
                if not isinstance(response, orchestrator.StreamEventsResponse):
                    return
                answers += 1
                # The opening cursor alone is no success: a draining server may send that and end, again and again.
                if answers > 1 or response.events:
                    self._backoff.reset()
                yield response
        finally:
            call.cancel()
            if self._call is call:
                self._call = None

    def _next_request(self) -> StreamEventsRequest:
        request = orchestrator.StreamEventsRequest()
        request.CopyFrom(self._request)
        if self._in_snapshot:
            self.snapshot_round += 1
        elif self._resumable:
            request.start = orchestrator.STREAM_START_AFTER
            request.after_cursor = self._cursor
            request.ClearField("start_time")
        del request.output_positions[:]
        request.output_positions.extend(self._output.positions())
        return request

    def _take(self, response: StreamEventsResponse) -> None:
        self._rest.extend(event for received in response.events if (event := self._new(received)) is not None)
        self._rest_cursor = "" if self._in_snapshot else response.cursor
        self._resumable = self._resumable or bool(self._rest_cursor)

    def _new(self, event: Event) -> Event | None:
        if event.sequence == 0:
            if event.HasField("snapshot_end"):
                self._in_snapshot = False
            return self._output.unseen(event)
        if event.sequence <= self._last_sequence:
            return None
        if self._checks_for_holes and self._last_sequence and event.sequence != self._last_sequence + 1:
            raise SequenceGap(f"event {event.sequence} followed event {self._last_sequence}")
        self._last_sequence = event.sequence
        return event
