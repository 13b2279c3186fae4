"""Namespaces: the same ids side by side, and nobody sees, works for or disturbs the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from agenthive import Worker
from agenthive.client import Client
from agenthive.errors import NotFound
from agenthive.payload import value
from agenthive.task_context import TaskContext
from agenthive.v1 import event_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive_server.testing.harness import open_sdk_workers, open_served
from agenthive_server.testing.history import fold, read_log


def worker_in(namespace: str, target: str) -> Worker:
    worker = Worker(target, agent_id="worker", namespace=namespace)

    @worker.task("where")
    async def where(task: TaskContext) -> str:
        return namespace

    return worker


async def test_the_same_ids_live_side_by_side(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (app, default):
        target = f"127.0.0.1:{app.port}"
        async with (
            Client(target, namespace="red") as red,
            Client(target, namespace="blue") as blue,
            open_sdk_workers(red, worker_in("red", target)),
        ):
            waiting = await blue.delegate("where", task_id="same", request_id="same")
            done = await red.delegate("where", task_id="same", request_id="same", wait=True, timeout=20)
            assert (done.namespace, value(done.result)) == ("red", "red")
            assert waiting.namespace == "blue"
            assert (await blue.get_task("same")).state == task_pb2.TASK_STATE_QUEUED
            with pytest.raises(NotFound):
                await default.get_task("same")
            with pytest.raises(NotFound):
                await blue.get_agent("worker")
            assert not list((await blue.explain_routing("same")).candidates)
            with pytest.raises(NotFound):
                await default.cancel_task("same")

            async with open_sdk_workers(blue, worker_in("blue", target)):
                assert value((await blue.wait_task("same", timeout=20)).result) == "blue"
            assert [task.task_id async for task in red.list_tasks()] == ["same"]
            assert [agent.agent_id async for agent in red.list_agents()] == ["worker"]
            assert not [agent async for agent in default.list_agents()]

            log = await read_log(default)
            stories = fold(log).tasks
            assert {stories[name, "same"].state for name in ("red", "blue")} == {"SUCCEEDED"}
            for client in (red, blue):
                seen = [event async for event in client.events(start=orchestrator.STREAM_START_EARLIEST, follow=False)]
                assert seen == [event for event in log if event.namespace == client.namespace]
                numbers = [event.sequence for event in seen]
                assert numbers == sorted(set(numbers))


async def test_messages_and_blobs_stay_in_their_namespace(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (app, default):
        target = f"127.0.0.1:{app.port}"
        async with Client(target, namespace="red") as red:
            await red.spawn(agent_id="reader")
            await default.spawn(agent_id="reader")
            await red.broadcast("for red alone")
            async for message in red.messages("reader"):
                assert message.payload.data == b"for red alone"
                break
            assert not [m async for m in default.messages("reader", follow=False)]
            blob = await red.upload_blob(b"red")
            with pytest.raises(NotFound):
                await default.download_blob(blob.blob_id)
            assert await red.download_blob(blob.blob_id) == b"red"
            stream = default.events(start=orchestrator.STREAM_START_EARLIEST, follow=False)
            assert {event.namespace async for event in stream} == {"default"}
            kinds = [event_pb2.EVENT_TYPE_AGENT_SPAWNED]
            stream = default.events(
                start=orchestrator.STREAM_START_EARLIEST, follow=False, types=kinds, all_namespaces=True
            )
            assert [event.namespace async for event in stream] == ["red", "default"]
