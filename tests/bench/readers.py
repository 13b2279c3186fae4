"""Readers of events: how many events reach many subscribers, and how soon.

`python -m tests.bench.readers burst TARGET SUBSCRIBERS TASKS` or `... pace TARGET SUBSCRIBERS SECONDS`.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import Any

import grpc
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive.v1 import orchestrator_service_pb2_grpc as orchestrator_grpc

from tests.bench.load import OPTIONS, channels, request, run

ONE_EVENT = b"\x1a\x07default"
"""The namespace field, which every event has once: counting it is much cheaper than parsing."""

STREAM = "/agenthive.v1.OrchestratorService/StreamEvents"
AT_ONCE = 250


async def burst(target: str, subscribers: int, tasks: int) -> dict[str, float]:
    """Delegate tasks that nobody takes; measure from the first call until every subscriber has every event."""
    links = channels(target)
    ready, done = asyncio.Barrier(subscribers + 1), asyncio.Barrier(subscribers + 1)

    async def subscribe(number: int) -> None:
        link = links[number % len(links)]
        # Without a deserializer: frames arrive as bytes.
        method: Any = link.unary_stream(STREAM, request_serializer=pb.StreamEventsRequest.SerializeToString)
        stream = method(pb.StreamEventsRequest(start=pb.STREAM_START_NOW))
        await stream.read()
        await ready.wait()
        seen = 0
        while seen < tasks:
            frame: bytes = await stream.read()
            seen += frame.count(ONE_EVENT)
        stream.cancel()
        await done.wait()

    readers = [asyncio.create_task(subscribe(number)) for number in range(subscribers)]
    await ready.wait()
    began = time.perf_counter()
    await _publish(links[0], tasks)
    published = time.perf_counter() - began
    await done.wait()
    seconds = time.perf_counter() - began
    await asyncio.gather(*readers)
    delivered = subscribers * tasks
    return {
        "operations": delivered,
        "seconds": seconds,
        "rate": delivered / seconds,
        "published_in": published,
        "p50": 0.0,
    }


async def _publish(link: grpc.aio.Channel, tasks: int) -> None:
    stub = orchestrator_grpc.OrchestratorServiceStub(link)
    spec = request(0, "burst").spec
    spec.required_capabilities.append("nobody-has-this")
    calls = [
        stub.DelegateTasks(pb.DelegateTasksRequest(tasks=[pb.NewTask(spec=spec)] * min(AT_ONCE, tasks - start)))
        for start in range(0, tasks, AT_ONCE)
    ]
    await asyncio.gather(*calls)


async def pace(target: str, subscribers: int, seconds: float) -> dict[str, float]:
    """Publish 1,000 events a second in groups of ten; measure from each event's commit until each subscriber has it.

    Of two targets (`A,B`) the first is published to, and the second read from.
    """
    writing, reading = target.split(",", maxsplit=1)[0], target.rsplit(",", maxsplit=1)[-1]
    links = channels(reading)
    latencies: list[float] = []
    begin = time.time() + 1.0

    async def subscribe(number: int) -> None:
        stub = orchestrator_grpc.OrchestratorServiceStub(links[number % len(links)])
        async for response in stub.StreamEvents(pb.StreamEventsRequest(start=pb.STREAM_START_NOW)):
            now = time.time()
            for event in response.events:
                at = event.time.seconds + event.time.nanos / 1e9
                if at >= begin:
                    latencies.append(now - at)

    readers = [asyncio.create_task(subscribe(number)) for number in range(subscribers)]
    await asyncio.sleep(0.5)
    spec = request(0, "pace").spec
    spec.required_capabilities.append("nobody-has-this")
    group = pb.DelegateTasksRequest(tasks=[pb.NewTask(spec=spec)] * 10)
    publisher = orchestrator_grpc.OrchestratorServiceStub(grpc.aio.insecure_channel(writing, options=OPTIONS))
    clock = asyncio.get_running_loop().time
    due, end = clock(), clock() + seconds + 0.5
    while due < end:
        await publisher.DelegateTasks(group)
        due += 0.01
        await asyncio.sleep(max(0.0, due - clock()))
    await asyncio.sleep(0.5)
    for reader in readers:
        reader.cancel()
    ordered = sorted(latencies)
    return {
        "operations": len(ordered),
        "seconds": seconds,
        "rate": len(ordered) / seconds,
        "p50": statistics.median(ordered),
        "p99": ordered[int(len(ordered) * 0.99)],
    }


def main() -> None:
    """Measure and print."""
    kind, target, subscribers, amount = sys.argv[1:]
    if kind == "burst":
        run(burst(target, int(subscribers), int(amount)))
    else:
        run(pace(target, int(subscribers), float(amount)))


if __name__ == "__main__":
    main()
