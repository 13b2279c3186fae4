"""Instructions a task takes, counted by valgrind: the same to a thousandth on any day, where times are not.

`python -m tests.bench.counted [ACTS …]` prints them for no plugins and for ten with these acts: `idle` (none), `hooks`,
`interceptors`, `handlers`, `all`. Methods, kernel, plugins and a worker run in one process on the store in memory and a
clock that tasks move: gRPC, the disk and the time spent in the operating system are left out. Counted is the difference
between a run and one of twice its tasks, so that the start does not count.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, Final

from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive.v1 import payload_pb2
from agenthive.v1 import worker_service_pb2 as worker_pb
from agenthive_server.app import App
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.plugin.registry import Registry
from agenthive_server.settings import load

from tests.bench.load import request
from tests.bench.plugin_fleet import ACTS, NAMES, fleet
from tests.bench.side_by_side import ROOT

TASKS: Final = 1_000
IN_FLIGHT: Final = 64
SECONDS: Final = 0.0004
"""The clock moves on so much with each task."""

KINDS: Final = {"idle": frozenset[str](), **{act: frozenset({act}) for act in ACTS}, "all": ACTS}


class Transport:
    """What the server asks of gRPC."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what a client sends."""
        return (("user-agent", "bench"),)

    def time_remaining(self) -> None:
        """Return that there is no deadline."""

    def set_trailing_metadata(self, metadata: object) -> None:
        """Drop it."""

    def peer(self) -> str:
        """Return an address."""
        return "ipv4:127.0.0.1:1"

    async def abort(self, code: object, text: str, details: object) -> None:
        """End the bench: nothing is refused here."""
        raise RuntimeError(text)


class Worker(Transport):
    """The stream of a worker that answers every assignment with accept and result in its next frame."""

    def __init__(self) -> None:
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()
        self._number = 0
        self._sent: dict[int, list[str]] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self.ready = asyncio.Event()
        hello = worker_pb.ConnectRequest()
        hello.items.add().hello.agents.add(agent_id="bench").spec.slots = 1_000
        self._frames.put_nowait(hello.SerializeToString())

    async def read(self) -> bytes:
        """Return the next frame."""
        return await self._frames.get()

    async def write(self, raw: bytes) -> None:
        """Take a frame of the server."""
        self.ready.set()
        frame = worker_pb.ConnectResponse.FromString(raw)
        for number in [number for number in self._sent if number <= frame.acknowledged_frame]:
            for task_id in self._sent.pop(number):
                self.result(task_id).set_result(None)
        said, names = worker_pb.ConnectRequest(acknowledged_frame=frame.frame_number), []
        for control in frame.items:
            assert control.WhichOneof("item") != "refused"
            if control.WhichOneof("item") == "assignment":
                task_id, epoch = control.assignment.task_id, control.assignment.lease_epoch
                done = payload_pb2.Payload(data=b"done")
                said.items.add(accept=worker_pb.TaskAccept(task_id=task_id, lease_epoch=epoch))
                said.items.add(result=worker_pb.TaskResult(task_id=task_id, lease_epoch=epoch, result=done))
                names.append(task_id)
        if names:
            self._number += 1
            said.frame_number = self._number
            self._sent[self._number] = names
            self._frames.put_nowait(said.SerializeToString())

    def result(self, task_id: str) -> asyncio.Future[None]:
        """Return what is done when the result of a task has been acknowledged."""
        return self._waiting.setdefault(task_id, asyncio.get_running_loop().create_future())


async def run(kind: str, tasks: int, clock: ManualClock) -> None:
    """Do this many tasks, and end the process."""
    registrations = fleet(KINDS[kind]) if kind in KINDS else []
    flags = {"server.listen": "127.0.0.1:0", "server.runner": False, "server.store": "memory:"}
    # Valgrind is slow, which is no plugin's fault.
    patience = {"plugins.block_seconds": 1_000.0, "plugins.inline_seconds": 1_000.0}
    enabled = {"plugins.enabled": NAMES if registrations else []}
    app = App(load(flags={**flags, **patience, **enabled}, environ={}), clock=clock, registry=Registry(registrations))
    await app.open()
    worker, loop = Worker(), asyncio.get_running_loop()
    session = loop.create_task(_method(app, "WorkerService/Connect").stream_stream(None, worker))
    await worker.ready.wait()
    delegate, numbers = _method(app, "OrchestratorService/DelegateTask").unary_unary, itertools.count()

    async def flight() -> None:
        while (number := next(numbers)) < tasks:
            raw = request(number, "counted").SerializeToString()
            # As gRPC does it: a task for the call, and one that looks whether it is cancelled.
            answer = await loop.create_task(_awaited(loop.create_task(delegate(raw, Transport()))))
            await worker.result(pb.DelegateTaskResponse.FromString(answer).task.task_id)
            clock.move(SECONDS)

    await asyncio.gather(*(flight() for _ in range(IN_FLIGHT)))
    for _ in range(300):
        # What follows the events comes to their end.
        clock.move(0.02)
        await asyncio.sleep(0)
    assert not session.done()
    assert all(app.handlers.lag(name) == 0 for name in NAMES)
    os._exit(0)


def _method(app: App, name: str) -> Any:
    return app.adapter.service(SimpleNamespace(method=f"/agenthive.v1.{name}"))


async def _awaited(task: asyncio.Task[bytes]) -> bytes:
    return await task


def instructions(kind: str) -> int:
    """Return the instructions of one task."""

    def counted(tasks: int) -> int:
        command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
        command += [sys.executable, "-m", "tests.bench.counted", "run", kind, str(tasks)]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        found = re.search(r"I +refs: +([0-9,]+)", done.stderr)
        assert found is not None, done.stderr
        return int(found[1].replace(",", ""))

    return (counted(2 * TASKS) - counted(TASKS)) // TASKS


def _run_in_loop(kind: str, tasks: int) -> None:
    import uvloop

    clock = ManualClock()

    class Loop(uvloop.Loop):
        """A loop whose time is the clock's."""

        def time(self) -> float:
            return clock.monotonic()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(run(kind, tasks, clock))


def main() -> None:
    """Count and print."""
    if sys.argv[1:2] == ["run"]:
        _run_in_loop(sys.argv[2], int(sys.argv[3]))
    bare = instructions("none")
    sys.stdout.write(f"none {bare}\n")
    for kind in sys.argv[1:] or KINDS:
        sys.stdout.write(f"{kind} +{instructions(kind) - bare}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
