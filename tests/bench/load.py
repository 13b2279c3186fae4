"""The load: a client process that prints what it measured as one JSON line.

`python -m tests.bench.load KIND TARGET SECONDS IN_FLIGHT [BATCH]`. Stubs are used bare, without the client library,
so that
the server is what is measured; the worker of `delegate` and `batch` lives in this process too.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive.v1 import orchestrator_service_pb2_grpc as orchestrator_grpc
from agenthive.v1 import payload_pb2, task_pb2, worker_service_pb2
from agenthive.v1 import worker_service_pb2_grpc as worker_grpc

CONNECTIONS = 4
SLOTS = 1_000
MOST_RESULTS = 500
"""Results in a frame, each with its acceptance: a frame holds 1,024 items."""

OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]

Call = Callable[[int], Awaitable[int]]
"""Does one unit with a number; returns how many operations it was."""


def request(number: int, prefix: str) -> pb.DelegateTaskRequest:
    """Return a request of about 135 bytes."""
    spec = task_pb2.TaskSpec(type="bench", title="a task of the benchmark")
    spec.input.CopyFrom(payload_pb2.Payload(content_type="application/json", data=b'{"path": "server/kernel"}'))
    return pb.DelegateTaskRequest(request_id=f"{prefix}-{number:012d}", spec=spec)


async def closed_loop(call: Call, seconds: float, in_flight: int, warm: float = 0.5) -> dict[str, float]:
    """Keep `in_flight` units under way; measure after the warm-up."""
    numbers = itertools.count()
    latencies: list[float] = []
    done = 0
    clock = time.perf_counter
    begin = clock() + warm
    end = begin + seconds

    async def flight() -> None:
        nonlocal done
        while (start := clock()) < end:
            operations = await call(next(numbers))
            now = clock()
            if start >= begin and now <= end:
                latencies.append(now - start)
                done += operations

    await asyncio.gather(*(flight() for _ in range(in_flight)))
    ordered = sorted(latencies) or [0.0]
    return {
        "operations": done,
        "seconds": seconds,
        "rate": done / seconds,
        "p50": statistics.median(ordered),
        "p99": ordered[int(len(ordered) * 0.99)],
        "maximum": ordered[-1],
    }


def channels(target: str) -> list[grpc.aio.Channel]:
    """Return connections of their own, spread over the targets where there are several (`A,B`)."""
    targets = itertools.cycle(target.split(","))
    return [grpc.aio.insecure_channel(next(targets), options=OPTIONS) for _ in range(CONNECTIONS)]


async def echo(target: str, seconds: float, in_flight: int) -> dict[str, float]:
    """Measure the yardstick."""
    methods = [
        channel.unary_unary(
            "/bench.Echo/Echo",
            request_serializer=pb.DelegateTaskRequest.SerializeToString,
            response_deserializer=pb.DelegateTaskRequest.FromString,
        )
        for channel in channels(target)
    ]

    async def call(number: int) -> int:
        await methods[number % CONNECTIONS](request(number, "echo"))
        return 1

    return await closed_loop(call, seconds, in_flight)


class Results:
    """The tasks whose results were acknowledged, whichever worker had them."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._finished: set[str] = set()

    def note(self, names: list[str]) -> None:
        """Note that the results of tasks were acknowledged."""
        for name in names:
            future = self._waiting.pop(name, None)
            if future is None:
                self._finished.add(name)
            elif not future.done():
                future.set_result(None)

    async def of(self, task_id: str) -> None:
        """Wait until the result of a task was acknowledged."""
        if task_id in self._finished:
            self._finished.discard(task_id)
            return
        self._waiting[task_id] = asyncio.get_running_loop().create_future()
        await self._waiting[task_id]


class Worker:
    """A worker that answers every assignment with accept and result in the next frame."""

    def __init__(self, channel: grpc.aio.Channel, agent_id: str, slots: int, results: Results) -> None:
        self._stub = worker_grpc.WorkerServiceStub(channel)
        self._agent_id = agent_id
        self._slots = slots
        self._results = results
        self._unacknowledged: dict[int, list[str]] = {}
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Serve one session until cancelled."""
        stream = self._stub.Connect()
        hello = worker_service_pb2.Hello()
        agent = hello.agents.add(agent_id=self._agent_id)
        agent.spec.slots = self._slots
        await stream.write(worker_service_pb2.ConnectRequest(items=[worker_service_pb2.WorkerItem(hello=hello)]))
        number = 0
        async for frame in stream:
            items: list[worker_service_pb2.WorkerItem] = []
            names: list[str] = []
            for control in frame.items:
                which = control.WhichOneof("item")
                if which == "assignment":
                    lease = control.assignment
                    task_id, epoch = lease.task_id, lease.lease_epoch
                    accept = worker_service_pb2.TaskAccept(task_id=task_id, lease_epoch=epoch)
                    done = payload_pb2.Payload(data=b"done")
                    result = worker_service_pb2.TaskResult(task_id=task_id, lease_epoch=epoch, result=done)
                    items.append(worker_service_pb2.WorkerItem(accept=accept))
                    items.append(worker_service_pb2.WorkerItem(result=result))
                    names.append(task_id)
                elif which == "welcome":
                    self.ready.set()
            for acknowledged in [n for n in self._unacknowledged if n <= frame.acknowledged_frame]:
                self._results.note(self._unacknowledged.pop(acknowledged))
            for start in range(0, len(names), MOST_RESULTS):
                number += 1
                self._unacknowledged[number] = names[start : start + MOST_RESULTS]
                await stream.write(
                    worker_service_pb2.ConnectRequest(
                        frame_number=number,
                        acknowledged_frame=frame.frame_number,
                        items=items[2 * start : 2 * (start + MOST_RESULTS)],
                    )
                )


async def delegate(target: str, seconds: float, in_flight: int, batch: int = 1) -> dict[str, float]:
    """Measure from DelegateTask(s) to the acknowledged result, tasks counted."""
    links = channels(target)
    stubs = [orchestrator_grpc.OrchestratorServiceStub(link) for link in links]
    run = f"{time.time_ns():x}"
    results = Results()
    sessions: list[asyncio.Task[None]] = []
    for place, each in enumerate(target.split(",")):
        worker = Worker(grpc.aio.insecure_channel(each, options=OPTIONS), f"bench-{run}-{place}", SLOTS, results)
        sessions.append(asyncio.create_task(worker.run()))
        await worker.ready.wait()

    async def one(number: int) -> int:
        response = await stubs[number % CONNECTIONS].DelegateTask(request(number, run))
        await results.of(response.task.task_id)
        return 1

    async def many(number: int) -> int:
        single = request(number, run)
        tasks = [pb.NewTask(spec=single.spec)] * batch
        response = await stubs[number % CONNECTIONS].DelegateTasks(
            pb.DelegateTasksRequest(request_id=single.request_id, tasks=tasks)
        )
        await asyncio.gather(*(results.of(task.task_id) for task in response.tasks))
        return batch

    measured = await closed_loop(one if batch == 1 else many, seconds, in_flight)
    for session in sessions:
        session.cancel()
    return measured


async def spawn(target: str, seconds: float, in_flight: int) -> dict[str, float]:
    """Measure durable SpawnAgent of remote agents."""
    stubs = [orchestrator_grpc.OrchestratorServiceStub(link) for link in channels(target)]
    run = f"{time.time_ns():x}"

    async def call(number: int) -> int:
        spawned = pb.SpawnAgentRequest(request_id=f"{run}-{number}")
        spawned.spec.role = "bench"
        await stubs[number % CONNECTIONS].SpawnAgent(spawned)
        return 1

    return await closed_loop(call, seconds, in_flight)


async def measure(kind: str, target: str, seconds: float, in_flight: int, batch: int) -> dict[str, float]:
    """Run one kind of load."""
    if kind == "echo":
        return await echo(target, seconds, in_flight)
    if kind == "spawn":
        return await spawn(target, seconds, in_flight)
    return await delegate(target, seconds, in_flight, batch)


def run(work: Coroutine[Any, Any, dict[str, float]]) -> None:
    """Run on uvloop where it is installed, and print what was measured."""
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        measured = runner.run(work)
    sys.stdout.write(json.dumps(measured) + "\n")


def main() -> None:
    """Measure and print."""
    kind, target, seconds, in_flight, *rest = sys.argv[1:]
    run(measure(kind, target, float(seconds), int(in_flight), int(rest[0]) if rest else 1))


if __name__ == "__main__":
    main()
