"""Garbage in, typed error out: whatever a caller sends, no answer is INTERNAL or UNKNOWN and nothing breaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from agenthive.v1 import worker_service_pb2 as worker_pb
from agenthive_server.rpc.policy import POLICIES
from agenthive_server.testing.hive import open_hive
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships without types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Edge

PATHS = sorted(path for path in POLICIES if path.startswith("/agenthive."))
CONNECT = "/agenthive.v1.WorkerService/Connect"
ENOUGH = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

TEXTS = st.one_of(
    st.sampled_from(
        ["", "a", "t", "t-1", "\x00", "a b", "../..", "x" * 129, "x" * 5_000, "c1.x.0", "sha256:" + "0" * 64]
    ),
    st.text(max_size=20),
)
WHOLE = st.one_of(st.sampled_from([0, 1, -1, 5, 2**31 - 1, -(2**31)]), st.integers(-5, 5))
LONG = st.one_of(WHOLE, st.sampled_from([2**63 - 1, -(2**63), 315_576_000_000, 253_402_300_800, 10**9]))
REAL = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e308, 5e-324]), st.floats(allow_nan=True, allow_infinity=True))
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: st.one_of(st.binary(max_size=20), st.just(bytes(70_000))),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: WHOLE,
    FieldDescriptor.TYPE_INT64: LONG,
    FieldDescriptor.TYPE_DOUBLE: REAL,
    FieldDescriptor.TYPE_ENUM: st.one_of(st.integers(0, 12), st.sampled_from([-1, 99, 2**31 - 1])),
}


def values(draw: Any, field: FieldDescriptor, depth: int) -> Any:
    """Draw a value of a field that is no map."""
    if field.message_type is not None:
        return message(draw, field.message_type, depth - 1)
    return draw(SCALARS[field.type])


def message(draw: Any, kind: Descriptor, depth: int = 4) -> Message:
    """Draw a message with some of its fields set, each to something a careless or hostile caller might send."""
    made = GetMessageClass(kind)()
    if depth <= 0:
        return made
    fields = sorted(kind.fields, key=lambda field: field.number)
    if not fields:
        return made
    if kind.name == "TaskSpec":
        # Else hardly any would be accepted.
        made.type = "work"  # type: ignore[attr-defined]  # it has a type
    for field in draw(st.lists(st.sampled_from(fields), max_size=5, unique_by=lambda field: field.name)):
        target = getattr(made, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for _ in range(draw(st.integers(0, 2))):
                key, value = field.message_type.fields
                drawn = values(draw, value, depth)
                if value.message_type is not None:
                    target[draw(SCALARS[key.type])].CopyFrom(drawn)
                else:
                    target[draw(SCALARS[key.type])] = drawn
        elif field.is_repeated:
            target.extend(values(draw, field, depth) for _ in range(draw(st.integers(0, 3))))
        elif field.message_type is not None:
            target.CopyFrom(values(draw, field, depth))
        else:
            setattr(made, field.name, values(draw, field, depth))
    return made


class Aborted(Exception):
    """The call was ended with an error."""


class Context:
    """What gRPC gives a handler, without gRPC."""

    def __init__(self, frames: list[bytes]) -> None:
        self.frames = iter(frames)
        self.status: tuple[grpc.StatusCode, str, Any] | None = None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:40000"

    def time_remaining(self) -> float:
        return 0.005

    def set_trailing_metadata(self, metadata: Any) -> None:
        pass

    async def read(self) -> Any:
        await asyncio.sleep(0)
        return next(self.frames, grpc.aio.EOF)

    async def write(self, message: bytes) -> None:
        assert isinstance(message, bytes)
        await asyncio.sleep(0)

    async def abort(self, code: grpc.StatusCode, text: str, trailing: Any) -> None:
        self.status = (code, text, dict(trailing))
        raise Aborted


class Fuzzed:
    """A server without port, on a loop of its own."""

    def __init__(self, edge: Edge, loop: asyncio.AbstractEventLoop) -> None:
        self.edge = edge
        self.loop = loop

    def call(self, path: str, *frames: bytes) -> grpc.StatusCode:
        """Call a method and check that the answer is one of those a caller can do something with."""
        return self.loop.run_until_complete(self._call(path, list(frames)))

    async def _call(self, path: str, frames: list[bytes]) -> grpc.StatusCode:
        handler: Any = self.edge.adapter.service(Details(path))
        context = Context(frames)
        if handler.request_streaming:
            answer = (handler.stream_stream or handler.stream_unary)(None, context)
        else:
            answer = (handler.unary_stream or handler.unary_unary)(frames[0], context)
        try:
            # A stream that follows the log has no end.
            await asyncio.wait_for(answer, 0.01)
        except TimeoutError:
            return grpc.StatusCode.OK
        except Aborted:
            assert context.status is not None
            code, text, trailing = context.status
            status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
            info = error_details_pb2.ErrorInfo()
            assert status.details[0].Unpack(info)
            assert info.domain == "agenthive"
            assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), text
            assert sum(len(value) for value in trailing.values()) < 6_000
            return code
        return grpc.StatusCode.OK


class Details:
    """What gRPC says of a call."""

    invocation_metadata: tuple[tuple[str, str | bytes], ...] = ()

    def __init__(self, method: str) -> None:
        self.method = method


@pytest.fixture(scope="module")
def fuzzed(request: pytest.FixtureRequest) -> Iterator[Fuzzed]:
    logging.getLogger("agenthive_server").setLevel(logging.WARNING)
    make: Any = request.getfixturevalue("make_edge")
    loop = asyncio.new_event_loop()
    stack = AsyncExitStack()

    async def build() -> Edge:
        hive = await stack.enter_async_context(open_hive())
        edge: Edge = make(hive)
        await edge.log.open()
        worker = await hive.worker("a")
        await hive.delegate("t")
        assert worker.assignments()
        return edge

    edge = loop.run_until_complete(build())
    yield Fuzzed(edge, loop)
    loop.run_until_complete(edge.channel.close())
    loop.run_until_complete(stack.aclose())
    loop.close()


def request_of(path: str) -> Descriptor:
    service, method = path[1:].split("/")
    return Default().FindServiceByName(service).methods_by_name[method].input_type


@pytest.mark.parametrize("path", PATHS)
@given(raw=st.binary(max_size=200))
@ENOUGH
def test_any_bytes(fuzzed: Fuzzed, path: str, raw: bytes) -> None:
    fuzzed.call(path, raw)


@pytest.mark.parametrize("path", PATHS)
@given(data=st.data())
@ENOUGH
def test_any_field_values(fuzzed: Fuzzed, path: str, data: st.DataObject) -> None:
    fuzzed.call(path, message(data.draw, request_of(path)).SerializeToString())


@pytest.mark.parametrize("path", PATHS)
@given(data=st.data())
@ENOUGH
def test_messages_with_a_few_bytes_changed(fuzzed: Fuzzed, path: str, data: st.DataObject) -> None:
    raw = bytearray(message(data.draw, request_of(path)).SerializeToString())
    for _ in range(data.draw(st.integers(0, 3)) if raw else 0):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    fuzzed.call(path, bytes(raw))


@given(data=st.data())
@ENOUGH
def test_any_frames_of_a_worker(fuzzed: Fuzzed, data: st.DataObject) -> None:
    hello = worker_pb.Hello(agents=[worker_pb.HostedAgent(agent_id="a")])
    frames = [worker_pb.ConnectRequest(items=[worker_pb.WorkerItem(hello=hello)])]
    for number in range(data.draw(st.integers(1, 4))):
        items = [message(data.draw, worker_pb.WorkerItem.DESCRIPTOR) for _ in range(data.draw(st.integers(0, 4)))]
        frames.append(worker_pb.ConnectRequest(frame_number=number + 1, items=items))  # type: ignore[arg-type]  # items
    fuzzed.call(CONNECT, *(frame.SerializeToString() for frame in frames))


@given(data=st.data())
@ENOUGH
def test_any_hello(fuzzed: Fuzzed, data: st.DataObject) -> None:
    item = worker_pb.WorkerItem()
    item.hello.CopyFrom(message(data.draw, worker_pb.Hello.DESCRIPTOR))  # type: ignore[arg-type]  # a hello
    fuzzed.call(CONNECT, worker_pb.ConnectRequest(items=[item]).SerializeToString())
