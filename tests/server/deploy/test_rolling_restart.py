"""Replicas that share a database, behind HAProxy as it is shipped: all are restarted, and nobody notices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agenthive import Client, TaskContext, Worker
from agenthive.v1 import event_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive_server.testing.harness import open_sdk_workers
from agenthive_server.testing.waiting import eventually

if TYPE_CHECKING:
    from agenthive_server.testing.postgres import PostgresServer

Opens = Callable[..., AbstractAsyncContextManager[Any]]

WORKERS = 4


def _worker(target: str, number: int, release: asyncio.Event) -> Worker:
    worker = Worker(target, agent_id=f"w{number}", capabilities=["hold", "quick"], slots=2)

    @worker.task("hold")
    async def hold(task: TaskContext) -> str:
        await release.wait()
        return "held"

    @worker.task("quick")
    async def quick(task: TaskContext) -> str:
        return "done"

    return worker


async def test_all_replicas_are_restarted_and_no_call_fails_and_no_attempt_is_lost(
    postgres: PostgresServer, open_replicas: Opens, open_haproxy: Opens, make_callers: Callable[..., Any]
) -> None:
    settings = {"server__store": postgres.url(f"rolling_{uuid4().hex}"), "server__maximum_connection_age_seconds": 6.0}
    async with (
        open_replicas(3, **settings) as servers,
        open_haproxy(*(server.target for server in servers)) as haproxy,
        Client(haproxy.target) as client,
    ):
        release = asyncio.Event()
        told: list[event_pb2.Event] = []
        done: list[task_pb2.Task] = []

        async def follow() -> None:
            async for event in client.events(start=pb.STREAM_START_EARLIEST, all_namespaces=True):
                told.append(event)  # noqa: PERF401 - it is looked at meanwhile

        async def work() -> None:
            while not release.is_set():
                task = await client.delegate("quick", required_capabilities=["quick"])
                done.append(await client.wait_task(task.task_id))

        following = asyncio.create_task(follow())
        async with (
            make_callers(haproxy.target) as callers,
            open_sdk_workers(client, *(_worker(haproxy.target, n, release) for n in range(WORKERS))),
        ):
            held = [await client.delegate("hold", required_capabilities=["hold"]) for _ in range(WORKERS)]
            working = asyncio.create_task(work())
            for server in servers:
                assert await server.stop() == 0
                await server.start()
                await eventually(lambda: _all_up(haproxy))
                wanted = len(done) + 3
                await eventually(lambda: working.done() or len(done) >= wanted, limit=40)  # noqa: B023 - awaited here
            release.set()
            await working
            done += [await client.wait_task(task.task_id) for task in held]
            await eventually(lambda: following.done() or _ended(told) >= {task.task_id for task in done})
        assert not following.done()
        following.cancel()
    assert callers.failures == []
    assert {task.state for task in done} == {task_pb2.TASK_STATE_SUCCEEDED}
    assert {task.attempt for task in done} == {1}
    assert [event.sequence for event in told] == list(range(1, len(told) + 1))


def _ended(told: list[event_pb2.Event]) -> set[str]:
    return {event.task_id for event in told if event.WhichOneof("fact") == "task_succeeded"}


async def _all_up(haproxy: Any) -> bool:
    return bool(await haproxy.states() == ["UP"] * 3)
