"""A worker played by a test, frame by frame: it says exactly what it is told to, right or wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from agenthive.service_config import open_channel
from agenthive.v1 import agent_pb2, worker_service_pb2_grpc
from agenthive.v1 import worker_service_pb2 as pb

LIMIT = 20.0


class RawWorker:
    """One stream of a session."""

    def __init__(self, call: grpc.aio.StreamStreamCall[pb.ConnectRequest, pb.ConnectResponse]) -> None:
        self.call = call
        self.welcome = pb.Welcome()
        self.acknowledged = 0
        self.refused: list[pb.ItemRefused] = []
        self.received = 0
        self.items: list[pb.ControlItem] = []
        self._number = 0

    async def hello(self, hello: pb.Hello) -> pb.Welcome:
        """Open the session; returns the welcome."""
        await self.call.write(pb.ConnectRequest(items=[pb.WorkerItem(hello=hello)]))
        self.welcome = (await self.until(lambda item: item.HasField("welcome"))).welcome
        self._number = self.welcome.acknowledged_frame
        return self.welcome

    async def send(self, *items: pb.WorkerItem, number: int = 0) -> int:
        """Send a frame with the next number, or the one given; returns it."""
        self._number = number or self._number + 1
        frame = pb.ConnectRequest(frame_number=self._number, acknowledged_frame=self.received, items=items)
        await self.call.write(frame)
        return self._number

    async def say(self, *items: pb.WorkerItem) -> list[pb.ItemRefused]:
        """Send a frame and wait until it is acknowledged; returns what of it was refused."""
        number = await self.send(*items)
        await self.settled(number)
        return [each for each in self.refused if each.frame_number == number]

    async def settled(self, number: int) -> None:
        """Read until a frame is acknowledged."""
        while self.acknowledged < number:
            await self._read()

    async def until(self, wanted: Callable[[pb.ControlItem], bool]) -> pb.ControlItem:
        """Read until an item of this kind comes, and return it; items before it are dropped."""
        while True:
            while self.items:
                item = self.items.pop(0)
                if wanted(item):
                    return item
            await self._read()

    async def assignment(self) -> pb.TaskAssignment:
        """Read until the next assignment."""
        return (await self.until(lambda item: item.HasField("assignment"))).assignment

    async def end(self) -> grpc.StatusCode:
        """Read to the end of the stream; returns its code."""
        async with asyncio.timeout(LIMIT):
            while await self._next() is not None:
                pass
            return await self.call.code()

    async def _read(self) -> None:
        async with asyncio.timeout(LIMIT):
            frame = await self._next()
        if frame is None:
            raise EOFError(f"the server ended the stream: {await self.call.code()} {await self.call.details()}")
        self.acknowledged = max(self.acknowledged, frame.acknowledged_frame)
        self.received = max(self.received, frame.frame_number)
        self.items.extend(frame.items)
        self.refused.extend(item.refused for item in frame.items if item.HasField("refused"))

    async def _next(self) -> pb.ConnectResponse | None:
        try:
            frame: Any = await self.call.read()
        except grpc.aio.AioRpcError:
            return None
        return frame if isinstance(frame, pb.ConnectResponse) else None


def hello_of(
    agent_id: str,
    *,
    session_id: str = "",
    leases: Sequence[tuple[str, int]] = (),
    spec: agent_pb2.AgentSpec | None = None,
) -> pb.Hello:
    """Return the hello of a worker with one agent."""
    held = [pb.HeldLease(task_id=task_id, lease_epoch=epoch) for task_id, epoch in leases]
    agents = [pb.HostedAgent(agent_id=agent_id, spec=spec or agent_pb2.AgentSpec())]
    return pb.Hello(session_id=session_id, agents=agents, leases=held)


@asynccontextmanager
async def open_raw(
    target: str, hello: pb.Hello | None = None, *, namespace: str = "default"
) -> AsyncIterator[RawWorker]:
    """Open a stream; with a hello, the session too. The stream is broken at the end, without a goodbye."""
    async with open_channel(target) as channel:
        call = worker_service_pb2_grpc.WorkerServiceStub(channel).Connect(
            metadata=(("agenthive-namespace", namespace),)
        )
        worker = RawWorker(call)
        try:
            if hello is not None:
                await worker.hello(hello)
            yield worker
        finally:
            call.cancel()


def result(assignment: pb.TaskAssignment, text: str = "done", *, epoch: int = 0) -> pb.WorkerItem:
    """Return the result of an assignment."""
    made = pb.TaskResult(task_id=assignment.task_id, lease_epoch=epoch or assignment.lease_epoch)
    made.result.content_type, made.result.data = "text/plain", text.encode()
    return pb.WorkerItem(result=made)


def accept(assignment: pb.TaskAssignment) -> pb.WorkerItem:
    """Return the acceptance of an assignment."""
    return pb.WorkerItem(accept=pb.TaskAccept(task_id=assignment.task_id, lease_epoch=assignment.lease_epoch))
