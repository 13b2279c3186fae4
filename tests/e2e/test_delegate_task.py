"""The story of one task, over a real port: delegated, worked on by a process, told in events."""

from __future__ import annotations

from pathlib import Path

from agenthive.client import Client
from agenthive.payload import value
from agenthive.v1 import agent_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive_server.testing.harness import open_process, open_worker
from agenthive_server.testing.history import facts, fold, read_log
from agenthive_server.testing.waiting import eventually


async def test_a_task_is_delegated_worked_on_and_told_in_order(tmp_path: Path) -> None:
    async with (
        open_process(tmp_path / "data") as server,
        Client(server.target) as client,
        client.events(start=orchestrator.STREAM_START_NOW) as stream,
        open_worker(server.target, "reader", "--capability", "read", folder=tmp_path),
    ):
        events = stream.batches()
        await anext(events)  # the opening cursor: what comes now is seen

        task = await client.delegate("echo", {"path": "README.md"}, required_capabilities=["read"], request_id="once")
        done = await client.wait_task(task.task_id, timeout=20)

        assert done.state == task_pb2.TASK_STATE_SUCCEEDED
        answer = value(done.result)
        assert isinstance(answer, dict)
        assert answer["input"] == {"path": "README.md"}
        assert (answer["agent_id"], answer["attempt"]) == ("reader", 1)
        assert [(each.number, each.agent_id, each.counted) for each in done.attempts] == [(1, "reader", True)]

        again = await client.delegate("echo", {"path": "README.md"}, required_capabilities=["read"], request_id="once")
        assert (again.task_id, again.state) == (task.task_id, task_pb2.TASK_STATE_SUCCEEDED)

        log = await read_log(client)
        story = ["task_delegated", "task_assigned", "task_started", "task_succeeded"]
        assert facts(log, task.task_id) == story
        seen: list[str] = []
        async for batch, _ in events:
            seen += facts(batch, task.task_id)
            if seen == story:
                break
        assert fold(log).tasks["default", task.task_id].state == "SUCCEEDED"


async def test_a_task_waits_for_an_agent_that_can_do_it(tmp_path: Path) -> None:
    async with open_process(tmp_path / "data") as server, Client(server.target) as client:
        task = await client.delegate("echo", role="reviewer")
        why = await client.explain_routing(task.task_id)
        assert task.state == task_pb2.TASK_STATE_QUEUED
        assert not list(why.candidates)

        async with open_worker(server.target, "anyone", folder=tmp_path):
            await eventually(lambda: _idle(client, "anyone"))
            assert (await client.get_task(task.task_id)).state == task_pb2.TASK_STATE_QUEUED
            async with open_worker(server.target, "critic", "--role", "reviewer", folder=tmp_path):
                done = await client.wait_task(task.task_id, timeout=20)
        assert done.attempts[0].agent_id == "critic"


async def test_dependents_follow_and_children_are_canceled_with_their_parent(tmp_path: Path) -> None:
    async with (
        open_process(tmp_path / "data") as server,
        Client(server.target) as client,
        open_worker(server.target, "worker", "--slots", "4", folder=tmp_path),
    ):
        gate = tmp_path / "gate"
        waiting = {"file": str(gate)}
        first = await client.delegate("until", waiting, task_id="first")
        second = await client.delegate("echo", task_id="second", depends_on=["first"])
        child = await client.delegate("until", {"file": str(tmp_path / "never")}, parent_task_id=first.task_id)
        assert second.state == task_pb2.TASK_STATE_BLOCKED
        await eventually(lambda: _state(client, child.task_id, task_pb2.TASK_STATE_RUNNING))

        await client.cancel_task(child.task_id)
        gate.touch()

        assert (await client.wait_task("second", timeout=20)).state == task_pb2.TASK_STATE_SUCCEEDED
        assert (await client.wait_task("first", timeout=20)).state == task_pb2.TASK_STATE_SUCCEEDED
        assert (await client.wait_task(child.task_id, timeout=20)).state == task_pb2.TASK_STATE_CANCELED
        log = await read_log(client)
        assert facts(log, "second") == [
            "task_delegated",
            "task_released",
            "task_assigned",
            "task_started",
            "task_succeeded",
        ]
        assert facts(log, child.task_id)[-2:] == ["task_cancel_requested", "task_canceled"]


async def _idle(client: Client, agent_id: str) -> bool:
    return any([a.agent_id == agent_id async for a in client.list_agents(states=[agent_pb2.AGENT_STATE_IDLE])])


async def _state(client: Client, task_id: str, state: task_pb2.TaskState.ValueType) -> bool:
    return (await client.get_task(task_id)).state == state
