"""The event stream is one unbroken iterator: ordered, each event once, none skipped."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from agenthive import Client
from agenthive.errors import CursorCompacted, InvalidArgument, SequenceGap, Unavailable
from agenthive.events import EventStream
from agenthive.v1 import event_pb2
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.waiting import Backoff

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from google.protobuf.message import Message

    from tests.clients.python.conftest import Refusal, Server


class Reader:
    """The server's end of one event stream."""

    def __init__(self, request: orchestrator.StreamEventsRequest, metadata: dict[str, str]) -> None:
        self.request = request
        self.metadata = metadata
        self.over = asyncio.Event()
        self.answers: asyncio.Queue[Message | Refusal | None] = asyncio.Queue()

    def send(self, cursor: str, *events: event_pb2.Event) -> None:
        self.answers.put_nowait(orchestrator.StreamEventsResponse(events=events, cursor=cursor))

    def finish(self, with_: Refusal | None = None) -> None:
        self.answers.put_nowait(with_)


class Log:
    """StreamEvents, whose streams a test takes one by one and feeds by hand."""

    def __init__(self) -> None:
        self._readers: asyncio.Queue[Reader] = asyncio.Queue()

    def register(self, server: grpc.aio.Server) -> None:
        handler = grpc.unary_stream_rpc_method_handler(
            self._stream,
            request_deserializer=orchestrator.StreamEventsRequest.FromString,
            response_serializer=orchestrator.StreamEventsResponse.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler("agenthive.v1.OrchestratorService", {"StreamEvents": handler})
        server.add_generic_rpc_handlers((service,))

    async def reader(self) -> Reader:
        async with asyncio.timeout(20):
            return await self._readers.get()

    async def _stream(self, request: orchestrator.StreamEventsRequest, context: Any) -> AsyncIterator[Any]:
        reader = Reader(request, dict(context.invocation_metadata() or ()))
        self._readers.put_nowait(reader)
        try:
            while (answer := await reader.answers.get()) is not None:
                if isinstance(answer, tuple):
                    await answer.abort(context)
                yield answer
        finally:
            reader.over.set()


@pytest.fixture
async def log(server: Server) -> Log:
    made = Log()
    await server.start(made.register)
    return made


@pytest.fixture
async def client(server: Server, log: Log) -> AsyncIterator[Client]:
    async with Client(server.target) as made:
        yield made


@pytest.fixture
def broken(refusal: Callable[..., Refusal]) -> Refusal:
    return refusal(grpc.StatusCode.UNAVAILABLE, "DRAINING")


def events(*sequences: int) -> list[event_pb2.Event]:
    return [event_pb2.Event(sequence=sequence, task_id=f"t-{sequence}") for sequence in sequences]


def stream_of(client: Client, **arguments: Any) -> EventStream:
    """The client's stream, with waits too short to notice."""
    stream = client.events(**arguments)
    stream._backoff = Backoff(first=0.001, maximum=0.01)
    return stream


async def take(iterator: AsyncIterator[event_pb2.Event], count: int) -> list[int]:
    async with asyncio.timeout(20):
        return [(await anext(iterator)).sequence for _ in range(count)]


async def test_it_asks_for_what_was_asked_for(client: Client, log: Log) -> None:
    when = datetime(2026, 1, 2, tzinfo=UTC)
    async with client.events(
        start_time=when, types=[event_pb2.EVENT_TYPE_TASK_FAILED], labels={"team": "x"},
        event_class=orchestrator.EVENT_CLASS_ALL,
    ) as stream:  # fmt: skip
        reading = asyncio.ensure_future(anext(aiter(stream)))
        request = (await log.reader()).request
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    assert request.start == orchestrator.STREAM_START_AT_TIME
    assert request.start_time.ToDatetime(UTC) == when
    assert list(request.filter.types) == [event_pb2.EVENT_TYPE_TASK_FAILED]
    assert dict(request.filter.labels) == {"team": "x"}
    assert request.event_class == orchestrator.EVENT_CLASS_ALL


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, None])
async def test_after_a_broken_stream_it_goes_on_behind_its_cursor(
    client: Client, log: Log, refusal: Callable[..., Refusal], code: grpc.StatusCode | None
) -> None:
    stream = stream_of(client, start=orchestrator.STREAM_START_EARLIEST)
    iterator = aiter(stream)
    reading = asyncio.ensure_future(take(iterator, 4))
    first = await log.reader()
    assert first.request.start == orchestrator.STREAM_START_EARLIEST
    first.send("c0")
    first.send("c2", *events(1, 2))
    first.finish(refusal(code, "X") if code else None)
    second = await log.reader()
    assert second.request.start == orchestrator.STREAM_START_AFTER
    assert second.request.after_cursor == "c2"
    second.send("c2")
    second.send("c4", *events(3, 4))
    assert await reading == [1, 2, 3, 4]
    assert stream.cursor == "c4"
    await stream.aclose()


async def test_it_survives_a_killed_server(client: Client, log: Log, server: Server) -> None:
    stream = stream_of(client)
    iterator = aiter(stream)
    reading = asyncio.ensure_future(take(iterator, 1))
    (await log.reader()).send("c1", *events(1))
    assert await reading == [1]
    reading = asyncio.ensure_future(take(iterator, 1))
    await server.kill()
    await server.start()
    second = await log.reader()
    assert second.request.after_cursor == "c1"
    second.send("c2", *events(2))
    assert await reading == [2]
    await stream.aclose()


async def test_a_reset_stream_is_opened_again_but_a_defect_is_raised(
    client: Client, log: Log, refusal: Callable[..., Refusal]
) -> None:
    stream = stream_of(client, after="c7")
    reading = asyncio.ensure_future(take(aiter(stream), 1))
    reset = refusal(grpc.StatusCode.INTERNAL, "")
    (await log.reader()).finish(reset._replace(text="Received RST_STREAM with error code 2", status=b""))
    second = await log.reader()
    assert second.request.after_cursor == "c7"
    second.finish(refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CURSOR"))
    with pytest.raises(InvalidArgument):
        await reading


async def test_an_event_that_comes_again_is_dropped(client: Client, log: Log, broken: Refusal) -> None:
    stream = stream_of(client)
    reading = asyncio.ensure_future(take(aiter(stream), 3))
    first = await log.reader()
    first.send("c2", *events(1, 2))
    first.finish(broken)
    (await log.reader()).send("c3", *events(2, 3))
    assert await reading == [1, 2, 3]
    await stream.aclose()


async def test_a_hole_in_an_unfiltered_stream_of_all_namespaces_is_an_error(client: Client, log: Log) -> None:
    stream = stream_of(client, all_namespaces=True)
    iterator = aiter(stream)
    reading = asyncio.ensure_future(take(iterator, 2))
    reader = await log.reader()
    reader.send("c2", *events(1, 2))
    reader.send("c4", *events(4))
    assert await reading == [1, 2]
    with pytest.raises(SequenceGap):
        await anext(iterator)


async def test_a_filtered_stream_may_skip_numbers(client: Client, log: Log) -> None:
    stream = stream_of(client, all_namespaces=True, roles=["reviewer"])
    reading = asyncio.ensure_future(take(aiter(stream), 2))
    (await log.reader()).send("c9", *events(1, 9))
    assert await reading == [1, 9]
    await stream.aclose()


async def test_a_compacted_cursor_is_raised_with_the_oldest(
    client: Client, log: Log, refusal: Callable[..., Refusal]
) -> None:
    stream = stream_of(client, after="c1")
    reading = asyncio.ensure_future(take(aiter(stream), 1))
    compacted = refusal(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_COMPACTED", metadata={"oldest_cursor": "c5"})
    (await log.reader()).finish(compacted)
    with pytest.raises(CursorCompacted) as caught:
        await reading
    assert caught.value.oldest_cursor == "c5"
    assert stream.cursor == "c1"


async def test_the_cursor_never_passes_an_event_that_was_not_handed_out(client: Client, log: Log) -> None:
    stream = stream_of(client, after="c0")
    iterator = aiter(stream)
    reading = asyncio.ensure_future(take(iterator, 1))
    (await log.reader()).send("c3", *events(1, 2, 3))
    await reading
    assert stream.cursor == "c0"
    await take(iterator, 1)
    assert stream.cursor == "c0"
    await take(iterator, 1)
    assert stream.cursor == "c3"
    await stream.aclose()


async def test_a_later_iteration_goes_on_where_the_last_stopped(client: Client, log: Log) -> None:
    stream = stream_of(client, after="c0")

    async def read_until(last: int) -> list[int]:
        read = []
        async for event in stream:
            read.append(event.sequence)
            if event.sequence == last:
                break
        return read

    reading = asyncio.ensure_future(read_until(2))
    (await log.reader()).send("c3", *events(1, 2, 3))
    assert await reading == [1, 2]
    reading = asyncio.ensure_future(read_until(4))
    second = await log.reader()
    assert second.request.after_cursor == "c3"
    second.send("c4", *events(4))
    assert await reading == [3, 4]
    await stream.aclose()


async def test_without_follow_it_ends_at_the_head(client: Client, log: Log, broken: Refusal) -> None:
    stream = stream_of(client, start=orchestrator.STREAM_START_EARLIEST, follow=False)

    async def read() -> list[int]:
        return [event.sequence async for event in stream]

    reading = asyncio.ensure_future(read())
    first = await log.reader()
    assert first.request.no_follow
    first.send("c1", *events(1))
    first.finish(broken)
    second = await log.reader()
    assert second.request.no_follow
    second.send("c2", *events(2))
    second.finish()
    assert await reading == [1, 2]


async def test_batches_bring_the_cursor_and_bookmarks(client: Client, log: Log) -> None:
    stream = stream_of(client)
    batches = stream.batches()
    reading = asyncio.ensure_future(anext(batches))
    reader = await log.reader()
    reader.send("c0")
    assert await reading == ([], "c0")
    reader.send("c2", *events(1, 2))
    batch, cursor = await anext(batches)
    assert ([event.sequence for event in batch], cursor) == ([1, 2], "c2")
    await stream.aclose()


async def test_a_snapshot_that_broke_begins_again(client: Client, log: Log, broken: Refusal) -> None:
    def agent(name: str) -> event_pb2.Event:
        return event_pb2.Event(agent_id=name, agent_snapshot=event_pb2.AgentSnapshot())

    stream = stream_of(client, start=orchestrator.STREAM_START_SNAPSHOT_THEN_TAIL)
    batches = stream.batches()

    async def names() -> list[str]:
        async with asyncio.timeout(20):
            batch, _ = await anext(batches)
        return [event.agent_id or str(event.sequence) for event in batch]

    reading = asyncio.ensure_future(names())
    first = await log.reader()
    first.send("c5", agent("a"))
    assert await reading == ["a"]
    assert (stream.cursor, stream.snapshot_round) == ("", 1)
    reading = asyncio.ensure_future(names())
    first.finish(broken)
    second = await log.reader()
    assert second.request.start == orchestrator.STREAM_START_SNAPSHOT_THEN_TAIL
    assert second.request.after_cursor == ""
    second.send("c7", agent("a"), agent("b"), event_pb2.Event(snapshot_end=event_pb2.SnapshotEnd(agent_count=2)))
    assert await reading == ["a", "b", "0"]
    assert (stream.cursor, stream.snapshot_round) == ("c7", 2)
    reading = asyncio.ensure_future(names())
    second.finish(broken)
    third = await log.reader()
    assert third.request.start == orchestrator.STREAM_START_AFTER
    assert third.request.after_cursor == "c7"
    third.send("c8", *events(8))
    assert await reading == ["8"]
    await stream.aclose()


def output(offset: int, data: bytes, attempt: int = 1) -> event_pb2.Event:
    return event_pb2.Event(task_id="t", task_output=event_pb2.TaskOutput(attempt=attempt, offset=offset, data=data))


async def test_output_goes_on_at_the_next_byte(client: Client, log: Log, broken: Refusal) -> None:
    stream = stream_of(client, event_class=orchestrator.EVENT_CLASS_OUTPUT)
    iterator = aiter(stream)

    async def chunks(count: int) -> list[bytes]:
        async with asyncio.timeout(20):
            return [(await anext(iterator)).task_output.data for _ in range(count)]

    reading = asyncio.ensure_future(chunks(5))
    first = await log.reader()
    gap = event_pb2.Event(task_id="t", output_gap=event_pb2.OutputGap(attempt=1, from_offset=3, to_offset=10))
    first.send("c0", output(0, b"abc"), gap, output(10, b"klm"), output(0, b"xy", attempt=2))
    first.finish(broken)
    second = await log.reader()
    positions = {(each.task_id, each.attempt): each.offset for each in second.request.output_positions}
    assert positions == {("t", 1): 13, ("t", 2): 2}
    second.send("c0", output(10, b"klm"), output(12, b"mno"))
    assert await reading == [b"abc", b"", b"klm", b"xy", b"no"]
    await stream.aclose()


async def test_it_gives_up_when_asked_to(client: Client, log: Log, server: Server) -> None:
    await server.kill()
    stream = stream_of(client, give_up_after=0.05)
    with pytest.raises(Unavailable):
        await take(aiter(stream), 1)


async def test_a_silent_stream_is_opened_again(client: Client, log: Log) -> None:
    stream = stream_of(client, after="c1")
    stream._silence = 0.02
    reading = asyncio.ensure_future(take(aiter(stream), 1))
    first = await log.reader()
    second = await log.reader()
    assert second.request.after_cursor == "c1"
    await first.over.wait()
    second.send("c2", *events(2))
    assert await reading == [2]
    await stream.aclose()


async def test_closing_ends_the_call(client: Client, log: Log) -> None:
    async with stream_of(client) as stream:
        reading = asyncio.ensure_future(take(aiter(stream), 1))
        reader = await log.reader()
        reader.send("c1", *events(1))
        await reading
    await reader.over.wait()


async def test_a_stream_that_is_opened_again_shows_the_token_of_that_time(
    server: Server, log: Log, broken: Refusal, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    async with Client(server.target, token_file=token) as client, stream_of(client) as stream:
        reading = asyncio.ensure_future(take(aiter(stream), 1))
        reader = await log.reader()
        assert reader.metadata["authorization"] == "Bearer first"
        token.write_text("renewed")
        reader.finish(broken)
        again = await log.reader()
        assert again.metadata["authorization"] == "Bearer renewed"
        again.send("c", *events(1))
        assert await reading == [1]
