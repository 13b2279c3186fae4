"""What both balancers must do: calls, errors, streams, sessions, fail-over, rolling restarts."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from agenthive import Client, TaskContext, Worker
from agenthive.errors import AlreadyExists, NotFound, Unavailable
from agenthive.payload import value
from agenthive.v1 import event_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive_server.testing.harness import open_sdk_workers
from agenthive_server.testing.waiting import eventually

Opens = Callable[..., AbstractAsyncContextManager[Any]]

EARLIEST = pb.STREAM_START_EARLIEST
BUF = Path(sys.executable).parent / "buf"


async def test_calls_errors_and_reflection_pass_as_they_are(open_replicas: Opens, open_balancer: Opens) -> None:
    async with (
        open_replicas(1) as (server,),
        open_balancer(server.target) as balancer,
        Client(balancer.target) as client,
    ):
        assert (await client.health()).status == pb.HEALTH_STATUS_OK
        with pytest.raises(NotFound) as caught:
            await client.get_task("no-such")
        # From the trailers.
        assert (caught.value.reason, caught.value.metadata["task_id"]) == ("TASK_NOT_FOUND", "no-such")
        command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--list-services"]
        listing = await asyncio.create_subprocess_exec(
            *command, f"http://{balancer.target}", stdout=asyncio.subprocess.PIPE
        )
        services = (await listing.communicate())[0].decode().split()
        assert "agenthive.v1.OrchestratorService" in services


async def test_a_session_and_an_event_stream_outlive_every_timeout_while_they_say_something(
    open_replicas: Opens, open_balancer: Opens
) -> None:
    # 25 hours become 5 seconds, so that silence would be seen; a heartbeat and a bookmark come every 0.7.
    swaps = (("25h", "5s"),)
    async with (
        open_replicas(1, limits__heartbeat_interval_seconds=0.7) as (server,),
        open_balancer(server.target, swaps=swaps) as balancer,
        Client(balancer.target) as client,
    ):
        worker = Worker(balancer.target, agent_id="a", capabilities=["x"])
        release = asyncio.Event()

        @worker.task("long")
        async def handle(task: TaskContext) -> str:
            await release.wait()
            return "done"

        request = pb.StreamEventsRequest()
        request.bookmark_interval.FromMilliseconds(700)
        stream = client._orchestrator.StreamEvents(request, metadata=client._metadata)
        bookmarks = 0
        async with open_sdk_workers(client, worker):
            task = await client.delegate("long")
            while bookmarks < 11:
                answer = await stream.read()
                assert isinstance(answer, pb.StreamEventsResponse)
                bookmarks += not answer.events
            release.set()
            done = await client.wait_task(task.task_id)
            facts = [event.WhichOneof("fact") async for event in client.events(start=EARLIEST, follow=False)]
        stream.cancel()
    assert (done.state, value(done.result), done.attempt) == (task_pb2.TASK_STATE_SUCCEEDED, "done", 1)
    assert "session_suspect" not in facts


async def test_silence_beyond_the_timeout_would_end_a_stream(open_replicas: Opens, open_balancer: Opens) -> None:
    """What the test above rests on: with two seconds for 25 hours, a stream that says nothing is cut."""
    async with (
        open_replicas(1) as (server,),
        open_balancer(server.target, swaps=(("25h", "2s"),)) as balancer,
        Client(balancer.target) as client,
    ):
        stream = client._orchestrator.StreamEvents(pb.StreamEventsRequest(), metadata=client._metadata)
        await stream.read()
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()


async def test_one_who_does_not_read_holds_up_nobody_not_even_himself(
    open_replicas: Opens, open_balancer: Opens
) -> None:
    async with (
        open_replicas(1) as (server,),
        open_balancer(server.target) as balancer,
        Client(balancer.target) as client,
    ):
        stream = client._orchestrator.StreamEvents(pb.StreamEventsRequest(), metadata=client._metadata)
        await stream.read()
        big = {f"label{n}": "y" * 100 for n in range(8)}
        # Megabytes of events, which nobody takes, by calls on the same channel.
        for _ in range(80):
            await client.delegate_many(
                [pb.NewTask(spec=task_pb2.TaskSpec(type="none", labels=big)) for _ in range(64)], timeout=10
            )
        assert (await client.health(timeout=5)).queued_tasks == 80 * 64
        stream.cancel()


async def test_an_upload_may_be_larger_than_any_message(open_replicas: Opens, open_balancer: Opens) -> None:
    data = os.urandom(6 * 2**20)
    async with (
        open_replicas(1) as (server,),
        open_balancer(server.target) as balancer,
        Client(balancer.target) as client,
    ):
        blob = await client.upload_blob(data)
        assert await client.download_blob(blob.blob_id) == data


async def test_a_replica_that_is_killed_fails_no_call(
    open_replicas: Opens, open_balancer: Opens, make_callers: Callable[..., Any]
) -> None:
    async with (
        open_replicas(3) as servers,
        open_balancer(*(server.target for server in servers)) as balancer,
        make_callers(balancer.target) as callers,
    ):
        await callers.more(50)
        await servers[0].kill()
        await callers.more(100)
        await servers[0].start()
        await servers[1].kill()
        await callers.more(100)
    assert callers.failures == []


async def test_a_rolling_restart_fails_no_call(
    open_replicas: Opens, open_balancer: Opens, make_callers: Callable[..., Any]
) -> None:
    async with (
        open_replicas(3) as servers,
        open_balancer(*(server.target for server in servers)) as balancer,
        make_callers(balancer.target) as callers,
    ):
        for server in servers:
            await callers.more(20)
            assert await server.stop() == 0
            await server.start()
            # As whoever restarts them would: the next one goes when this one is seen to serve.
            await callers.more(20)
            if hasattr(balancer, "states"):
                await eventually(lambda: _all_up(balancer))
        await callers.more(50)
    assert callers.failures == []


async def _all_up(balancer: Any) -> bool:
    return bool(await balancer.states() == ["UP"] * 3)


async def _delegated(client: Client, task_id: str) -> bool:
    """With its only replica gone a hive is away for longer than a client repeats a call."""
    try:
        await client.delegate("any", task_id=task_id)
    except AlreadyExists:
        return True
    except Unavailable:
        return False
    return True


async def test_events_go_on_after_their_replica_was_killed(open_replicas: Opens, open_balancer: Opens) -> None:
    async with (
        open_replicas(1) as (server,),
        open_balancer(server.target) as balancer,
        Client(balancer.target) as client,
    ):
        told: list[event_pb2.Event] = []

        async def follow() -> None:
            async for event in client.events(start=EARLIEST):
                told.append(event)  # noqa: PERF401 - it is looked at meanwhile

        following = asyncio.create_task(follow())
        await client.delegate("one", task_id="one")
        await eventually(lambda: "one" in {event.task_id for event in told})
        await server.kill()
        await server.start()
        await eventually(lambda: _delegated(client, "two"))
        await eventually(lambda: following.done() or "two" in {event.task_id for event in told})
        following.cancel()
        assert [event.sequence for event in told] == list(range(1, len(told) + 1))
