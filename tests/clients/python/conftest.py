"""Servers for the client's tests: fakes that speak the protocol over a real port, moved by hand."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import grpc
import pytest
from agenthive.session import Timing
from agenthive.v1 import worker_service_pb2 as pb
from agenthive.v1 import worker_service_pb2_grpc
from agenthive.waiting import Backoff
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # no py.typed in that wheel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from google.protobuf.message import Message

    Register = Callable[[grpc.aio.Server], None]

WAIT = 20.0  # seconds; nothing takes that long, a test that waits for ever fails


class Server:
    """A grpc.aio server on one port that can be killed and started again."""

    def __init__(self) -> None:
        self.port = 0
        self._registers: list[Register] = []
        self._server: grpc.aio.Server | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self, *registers: Register) -> str:
        self._registers += registers
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        for register in self._registers:
            register(self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        return self.target

    async def kill(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None


class Refusal(NamedTuple):
    """What the control plane aborts with: a code, a text, and a `google.rpc.Status` in the trailing metadata."""

    code: grpc.StatusCode
    text: str
    status: bytes

    async def abort(self, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        await context.abort(self.code, self.text, trailing_metadata=(("grpc-status-details-bin", self.status),))


def make_refusal(
    code: grpc.StatusCode, reason: str, *details: Message, metadata: dict[str, str] | None = None
) -> Refusal:
    status = status_pb2.Status(code=code.value[0], message=f"refused: {reason}")
    for detail in (error_details_pb2.ErrorInfo(domain="agenthive", reason=reason, metadata=metadata), *details):
        status.details.add().Pack(detail)
    return Refusal(code, status.message, status.SerializeToString())


class Stream:
    """The server's end of one stream of a worker."""

    def __init__(self) -> None:
        self.hello = pb.Hello()
        self.metadata: dict[str, str | bytes] = {}
        self.frames: asyncio.Queue[pb.ConnectRequest] = asyncio.Queue()
        self.answers: asyncio.Queue[pb.ConnectResponse | Refusal | None] = asyncio.Queue()
        self.received: list[pb.ConnectRequest] = []
        self.over = asyncio.Event()
        self.run: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rest: deque[pb.WorkerItem] = deque()
        self._number = 0

    async def frame(self) -> pb.ConnectRequest:
        """The next frame of the worker."""
        async with asyncio.timeout(WAIT):
            frame = await self.frames.get()
        self.received.append(frame)
        return frame

    async def item(self, kind: str, *, acknowledge: bool = True) -> pb.WorkerItem:
        """Skip to the next item of a kind; acknowledge the frames on the way."""
        while True:
            while self._rest:
                item = self._rest.popleft()
                if item.WhichOneof("item") == kind:
                    return item
            frame = await self.frame()
            self._rest.extend(frame.items)
            if acknowledge:
                self.send(acknowledged=frame.frame_number)

    def send(self, *items: pb.ControlItem, acknowledged: int = 0) -> None:
        self._number += 1
        self.answers.put_nowait(
            pb.ConnectResponse(frame_number=self._number, acknowledged_frame=acknowledged, items=items)
        )

    def welcome(
        self,
        session_id: str = "s-1",
        *,
        resumed: bool = False,
        valid: tuple[tuple[str, int], ...] = (),
        acknowledged: int = 0,
        heartbeat_interval: float = 10.0,
        reconnect_grace: float = 30.0,
        number: int | None = None,
    ) -> None:
        """Answer the hello."""
        welcome = pb.Welcome(session_id=session_id, resumed=resumed, acknowledged_frame=acknowledged)
        welcome.heartbeat_interval.FromNanoseconds(round(heartbeat_interval * 1e9))
        welcome.reconnect_grace.FromNanoseconds(round(reconnect_grace * 1e9))
        for task_id, epoch in valid:
            welcome.valid_leases.add(task_id=task_id, lease_epoch=epoch)
        if number is not None:
            self._number = number - 1
        self.send(pb.ControlItem(welcome=welcome), acknowledged=acknowledged)

    def assign(self, task_id: str, epoch: int = 1, **fields: object) -> None:
        assignment = pb.TaskAssignment(task_id=task_id, lease_epoch=epoch, attempt=1, **fields)  # type: ignore[arg-type]
        self.send(pb.ControlItem(assignment=assignment))

    def abort(self, code: grpc.StatusCode, reason: str) -> None:
        self.answers.put_nowait(make_refusal(code, reason))

    def end(self) -> None:
        self.answers.put_nowait(None)


class WorkerHive(worker_service_pb2_grpc.WorkerServiceServicer):
    """WorkerService, whose streams a test takes one by one and answers by hand."""

    def __init__(self) -> None:
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()

    def register(self, server: grpc.aio.Server) -> None:
        worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(self, server)

    async def stream(self) -> Stream:
        """The next stream of a worker, with its hello."""
        async with asyncio.timeout(WAIT):
            return await self._streams.get()

    async def Connect(
        self,
        request_iterator: AsyncIterator[pb.ConnectRequest],
        context: grpc.aio.ServicerContext[pb.ConnectRequest, pb.ConnectResponse],
    ) -> AsyncIterator[pb.ConnectResponse]:
        stream = Stream()
        stream.metadata = dict(context.invocation_metadata() or ())
        reading = asyncio.ensure_future(self._read(stream, request_iterator))
        try:
            while (answer := await stream.answers.get()) is not None:
                if isinstance(answer, pb.ConnectResponse):
                    yield answer
                else:
                    await answer.abort(context)
        finally:
            stream.over.set()
            reading.cancel()

    async def _read(self, stream: Stream, requests: AsyncIterator[pb.ConnectRequest]) -> None:
        async for request in requests:
            if request.items and request.items[0].HasField("hello"):
                assert request.frame_number == 0
                assert len(request.items) == 1
                stream.hello.CopyFrom(request.items[0].hello)
                self._streams.put_nowait(stream)
            else:
                stream.frames.put_nowait(request)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    yield made
    await made.kill()


@pytest.fixture
async def hive(server: Server) -> WorkerHive:
    """A WorkerService that is being served."""
    made = WorkerHive()
    await server.start(made.register)
    return made


@pytest.fixture
def refusal() -> Callable[..., Refusal]:
    """Make a status with the details the control plane gives."""
    return make_refusal


@pytest.fixture
def quick() -> Timing:
    """Waits too short to notice, and no heartbeat unless the server's Welcome asks for it."""
    return Timing(backoff=Backoff(first=0.005, maximum=0.02), close_timeout=5.0)
