"""Idle workers: `python -m tests.bench.idle sessions TARGET COUNT` opens as many sessions, each on its own connection;
`... agents TARGET COUNT` opens one session that hosts as many agents. Prints READY and holds them until stdin ends.
"""

from __future__ import annotations

import asyncio
import resource
import sys

import grpc
from agenthive.v1 import worker_service_pb2 as pb
from agenthive.v1 import worker_service_pb2_grpc as worker_grpc

from tests.bench.load import OPTIONS

BEAT = 10.0
"""Seconds between two beats of a session, the default; sessions do not beat all at once."""

AT_ONCE = 64


class Session:
    """A session that only beats."""

    def __init__(self, target: str, agents: list[str]) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        self._agents = agents
        self._frame = 0

    async def open(self) -> None:
        """Say hello and wait for the welcome."""
        self._stream = worker_grpc.WorkerServiceStub(self._channel).Connect()
        hello = pb.Hello()
        for agent in self._agents:
            hello.agents.add(agent_id=agent).spec.capabilities.append("idle")
        await self._stream.write(pb.ConnectRequest(items=[pb.WorkerItem(hello=hello)]))
        await self._stream.read()

    async def beat(self) -> None:
        """Send a heartbeat and read its answer."""
        self._frame += 1
        item = pb.WorkerItem(heartbeat=pb.Heartbeat())
        await self._stream.write(pb.ConnectRequest(frame_number=self._frame, items=[item]))
        await self._stream.read()


async def hold(kind: str, target: str, count: int) -> None:
    """Open, say so, and beat until stdin ends."""
    if kind == "agents":
        sessions = [Session(target, [f"idle-{n}" for n in range(count)])]
    else:
        sessions = [Session(target, [f"idle-{n}"]) for n in range(count)]
    for start in range(0, len(sessions), AT_ONCE):
        await asyncio.gather(*(session.open() for session in sessions[start : start + AT_ONCE]))
    sys.stdout.write("READY\n")
    sys.stdout.flush()
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    pause = BEAT * AT_ONCE / max(len(sessions), AT_ONCE)
    while not ended.done():
        for start in range(0, len(sessions), AT_ONCE):
            await asyncio.gather(*(session.beat() for session in sessions[start : start + AT_ONCE]))
            await asyncio.wait([ended], timeout=pause)


def main() -> None:
    """Hold idle workers."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kind, target, count = sys.argv[1:]
    asyncio.run(hold(kind, target, int(count)))


if __name__ == "__main__":
    main()
