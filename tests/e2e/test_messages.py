"""Messages through real workers: from agent to agent, to the holder of a task, to a role and to all."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agenthive import Worker
from agenthive.client import Client
from agenthive.payload import value
from agenthive.task_context import TaskContext
from agenthive.v1 import message_pb2
from agenthive_server.testing.harness import open_process, open_sdk_workers, open_served
from agenthive_server.testing.history import read_log
from agenthive_server.testing.waiting import eventually


class Listener:
    """An agent that keeps what it is told."""

    def __init__(self, target: str, agent_id: str, role: str = "") -> None:
        self.heard: list[tuple[str, object]] = []
        self.worker = Worker(target, agent_id=agent_id, role=role)

        @self.worker.message
        async def hear(message: message_pb2.Message) -> None:
            self.heard.append((message.sender_agent_id, value(message.payload)))


async def test_agents_talk_to_agents_roles_and_all(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (app, client):
        target = f"127.0.0.1:{app.port}"
        listeners = [
            Listener(target, "critic-1", "critic"),
            Listener(target, "critic-2", "critic"),
            Listener(target, "x"),
        ]
        speaker = Worker(target, agent_id="speaker")

        @speaker.task("talk")
        async def talk(task: TaskContext) -> None:
            task.send_message("to one", agent_id="x")
            task.send_message("to the critics", role="critic")
            task.send_message("to all")

        async with open_sdk_workers(client, speaker, *(each.worker for each in listeners)):
            await client.delegate("talk", agent_id="speaker", wait=True, timeout=20)
            one, other, last = listeners
            await eventually(lambda: [len(each.heard) for each in listeners] == [2, 2, 2])
            for critic in (one, other):
                assert sorted(critic.heard) == [("speaker", "to all"), ("speaker", "to the critics")]
            assert sorted(last.heard) == [("speaker", "to all"), ("speaker", "to one")]
            # The one to "x" is a record of its own: sent, delivered, read.
            await eventually(lambda: receipts(client, "x"), what="it was read")


async def receipts(client: Client, agent_id: str) -> bool:
    told = [event.WhichOneof("fact") for event in await read_log(client) if event.agent_id == agent_id]
    return [fact for fact in told if fact and fact.startswith("message_")][-1:] == ["message_read"]


async def test_steering_reaches_whoever_holds_the_task(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (app, client):
        worker = Worker(f"127.0.0.1:{app.port}", agent_id="driver")

        @worker.task("drive")
        async def drive(task: TaskContext) -> list[object]:
            task.report(0.1, "listening")
            return [value((await task.steering.get()).payload) for _ in range(3)]

        task = await client.delegate("drive")
        await client.send_message("early", task_id=task.task_id)  # nobody holds it yet
        async with open_sdk_workers(client, worker):
            await client.send_message("left", task_id=task.task_id, urgency=message_pb2.MESSAGE_URGENCY_NOW)
            await client.send_message("right", task_id=task.task_id, request_id="once")
            await client.send_message("right", task_id=task.task_id, request_id="once")
            done = await client.wait_task(task.task_id, timeout=20)
        assert value(done.result) == ["early", "left", "right"]


async def test_a_message_outlives_the_server_and_comes_once(tmp_path: Path) -> None:
    async with open_process(tmp_path / "data") as server, Client(server.target) as client:
        await client.spawn(agent_id="reader")
        sent = await client.send_message({"about": "lunch"}, agent_id="reader")
        await server.kill()
        await server.start()
        listener = Listener(server.target, "reader")
        async with open_sdk_workers(client, listener.worker):
            await eventually(lambda: listener.heard == [("", {"about": "lunch"})])
            await eventually(lambda: receipts(client, "reader"))
            await server.kill()
            await server.start()
            await client.send_message("more", agent_id="reader")
            await eventually(lambda: len(listener.heard) == 2)
        assert listener.heard[1] == ("", "more")
        assert not [m async for m in client.messages("reader", follow=False) if m.message_id == sent.message_id]


async def test_a_caller_reads_for_an_agent_and_acknowledges(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (_, client):
        await client.spawn(agent_id="reader")
        await client.send_message("one", agent_id="reader")
        stream = client.messages("reader")
        first = await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await client.send_message("two", agent_id="reader")
        second = await asyncio.wait_for(waiting, 10)
        assert [value(m.payload) for m in (first, second)] == ["one", "two"]
        await client.acknowledge("reader", [first.message_id])
        await client.acknowledge("reader", [first.message_id])
        left = [m.message_id async for m in client.messages("reader", follow=False)]
        assert left == [second.message_id]
        await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
