"""Stopping and starting again: what a rolling restart looks like to callers, subscribers, workers and balancers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from agenthive.client import Client
from agenthive.payload import value
from agenthive.service_config import open_channel
from agenthive.v1 import agent_pb2, orchestrator_service_pb2_grpc, task_pb2, worker_service_pb2_grpc
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.v1 import worker_service_pb2 as pb
from agenthive_server.testing.followers import Follower
from agenthive_server.testing.harness import ServerProcess, end_process, open_process, open_worker
from agenthive_server.testing.history import difference, facts, fold, read_log
from agenthive_server.testing.processes import find_runner, list_agent_processes
from agenthive_server.testing.waiting import eventually
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # ships without types

RESTARTS = 4
AGENT = """
import json, sys, time
print('{"ready": true}', flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if "task_id" in task and "input" in task:
        time.sleep(0.05)
        print(json.dumps({"result": "done", "task_id": task["task_id"]}), flush=True)
"""


class Load:
    """Callers that never rest; a call that fails fails the test."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.calls = 0
        self.tasks: set[str] = set()
        self.stopped = False

    async def run(self, kind: str, capability: str) -> None:
        """Delegate one task after the other and wait for it, in the way of this kind of caller."""
        ways: dict[str, Callable[[str], Awaitable[task_pb2.Task]]] = {
            "wait": self._wait,
            "delegate and wait": self._delegate_and_wait,
            "look": self._look,
        }
        while not self.stopped:
            task = await ways[kind](capability)
            self.calls += 1
            self.tasks.add(task.task_id)
            assert task.state == task_pb2.TASK_STATE_SUCCEEDED, task

    async def _wait(self, capability: str) -> task_pb2.Task:
        task = await self.client.delegate("echo", required_capabilities=[capability])
        return await self.client.wait_task(task.task_id)

    async def _delegate_and_wait(self, capability: str) -> task_pb2.Task:
        return await self.client.delegate("echo", required_capabilities=[capability], wait=True)

    async def _look(self, capability: str) -> task_pb2.Task:
        task = await self.client.delegate("echo", required_capabilities=[capability])
        while task.state != task_pb2.TASK_STATE_SUCCEEDED:
            task = await self.client.get_task(task.task_id)
            self.calls += 1
        return task


async def test_a_graceful_restart_fails_no_call_and_costs_no_attempt(tmp_path: Path) -> None:
    async with (
        open_kept(tmp_path) as server,
        Client(server.target) as one,
        Client(server.target) as other,
        open_worker(server.target, "sdk-0", "--slots", "4", "--capability", "sdk", folder=tmp_path),
        open_worker(server.target, "sdk-1", "--slots", "4", "--capability", "sdk", folder=tmp_path),
    ):
        await spawn_agents(one)
        loads = [Load(one), Load(other)]
        follower, restless = Follower(server.target), Follower(server.target, pause=0.01)
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(each.run()) for each in (follower, restless)]
            calling = [
                group.create_task(load.run(kind, capability))
                for load in loads
                for kind in ("wait", "delegate and wait", "look")
                for capability in ("sdk", "process")
            ]
            for number in range(1, RESTARTS + 1):
                await more_tasks(loads)
                assert await server.stop() == 0, number
                await server.start()
            await more_tasks(loads)
            for load in loads:
                load.stopped = True
            await asyncio.gather(*calling)
            log = await read_log(one)
            await eventually(lambda: min(len(follower.events), len(restless.events)) >= len(log))
            for each in beside:
                each.cancel()

        print(f"{sum(load.calls for load in loads)} calls, {len(log)} events, {RESTARTS} restarts")
        stories = fold(log).tasks
        assert len(stories) == len(loads[0].tasks | loads[1].tasks)
        for (_, task_id), story in stories.items():
            assert story.told == ["task_delegated", "task_assigned", "task_started", "task_succeeded"], task_id
            assert story.attempt == 1
        assert difference(follower.events[: len(log)], log) == ""
        assert difference(restless.events[: len(log)], log) == ""
        assert "Traceback" not in server.log()


async def more_tasks(loads: list[Load]) -> None:
    """Wait until the load has come forward."""
    goal = sum(len(load.tasks) for load in loads) + 40
    await eventually(lambda: sum(len(load.tasks) for load in loads) >= goal, limit=30)


@asynccontextmanager
async def open_kept(folder: Path) -> AsyncIterator[ServerProcess]:
    """A server whose runner stays when it stops; the runner is stopped at the end."""
    settings: dict[str, object] = {"runner.orphan_timeout_seconds": 30}
    async with open_process(folder / "data", "--keep-runner", runner=True, settings=settings) as server:
        try:
            yield server
        finally:
            lock = server.data_dir / "runner" / "lock"
            with contextlib.suppress(OSError, ValueError):
                runner = int(lock.read_text(encoding="ascii"))
                await server.stop()
                os.kill(runner, signal.SIGTERM)
                await eventually(lambda: not Path(f"/proc/{runner}").exists(), limit=30, what="the runner has ended")


async def spawn_agents(client: Client) -> None:
    for number in range(3):
        spec = agent_pb2.AgentSpec(capabilities=["process"])
        spec.process.command.extend([sys.executable, "-I", "-S", "-c", AGENT])
        spec.process.mode = agent_pb2.PROCESS_MODE_AGENT
        await client.spawn(agent_id=f"process-{number}", spec=spec)
    await eventually(lambda: idle(client, 3), what="the process agents are there")


async def idle(client: Client, count: int) -> bool:
    states = [agent_pb2.AGENT_STATE_IDLE, agent_pb2.AGENT_STATE_BUSY]
    return len([a async for a in client.list_agents(states=states) if a.agent_id.startswith("process-")]) == count


SLOW_AGENT = """
import json, os, sys, time
print('{"ready": true}', flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if "task_id" in task and "input" in task:
        print(json.dumps({"checkpoint": "half", "task_id": task["task_id"]}), flush=True)
        while not os.path.exists(task["input"]["file"]):
            time.sleep(0.02)
        print(json.dumps({"result": task["checkpoint"], "task_id": task["task_id"]}), flush=True)
"""


async def test_a_server_that_stops_its_runner_hands_back_what_is_held_and_leaves_nothing(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with open_process(tmp_path / "data", runner=True) as server, Client(server.target) as client:
        spec = agent_pb2.AgentSpec()
        spec.process.command.extend([sys.executable, "-I", "-S", "-c", SLOW_AGENT])
        spec.process.mode = agent_pb2.PROCESS_MODE_AGENT
        spec.stop_grace.FromMilliseconds(300)
        await client.spawn(agent_id="slow", spec=spec)
        task = await client.delegate("any", {"file": str(gate)})
        await eventually(lambda: has_checkpoint(client, task.task_id))
        assert list_agent_processes(server.data_dir)

        assert await server.stop() == 0
        assert list_agent_processes(server.data_dir) == []
        await eventually(lambda: not find_runner(server.data_dir), limit=5)

        gate.touch()
        await server.start()
        done = await client.wait_task(task.task_id, timeout=30)
        assert facts(await read_log(client), task.task_id).count("task_assigned") == 2
        assert (done.state, done.attempt, done.counted_attempts) == (task_pb2.TASK_STATE_SUCCEEDED, 2, 1)
        assert value(done.result) == "half"  # the second attempt was given the checkpoint of the first
        assert [attempt.counted for attempt in done.attempts] == [False, True]
        assert "Traceback" not in server.log()


async def has_checkpoint(client: Client, task_id: str) -> bool:
    return bool((await client.get_task(task_id)).progress.checkpoint)


class Observer:
    """Writes down, in order, what a stopping server does to a balancer, a caller, a subscriber and a session."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.ready: list[str] = []

    async def balancer(self, channel: grpc.aio.Channel) -> None:
        async for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):
            name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
            self.ready.append("balancer")
            if name != "SERVING":
                self.seen.append(name)
        self.seen.append("watch ended")

    async def caller(self, channel: grpc.aio.Channel, task_id: str) -> None:
        request = orchestrator.WaitTaskRequest(task_id=task_id)
        request.wait_timeout.FromSeconds(25)
        self.ready.append("caller")
        answer = await orchestrator_service_pb2_grpc.OrchestratorServiceStub(channel).WaitTask(request, timeout=30)
        assert answer.task.state == task_pb2.TASK_STATE_QUEUED
        self.seen.append("wait answered")

    async def subscriber(self, channel: grpc.aio.Channel) -> None:
        request = orchestrator.StreamEventsRequest(start=orchestrator.STREAM_START_EARLIEST)
        cursor = ""
        async for answer in orchestrator_service_pb2_grpc.OrchestratorServiceStub(channel).StreamEvents(request):
            cursor = answer.cursor
            self.ready.append("subscriber")
        assert cursor
        self.seen.append("stream ended")

    async def session(self, channel: grpc.aio.Channel) -> None:
        call = worker_service_pb2_grpc.WorkerServiceStub(channel).Connect()
        hello = pb.Hello(agents=[pb.HostedAgent(agent_id="watcher", spec=agent_pb2.AgentSpec(role="watcher"))])
        await call.write(pb.ConnectRequest(items=[pb.WorkerItem(hello=hello)]))
        async for frame in call:
            self.ready.append("session")
            if any(item.HasField("reconnect") for item in frame.items):
                self.seen.append("reconnect")
                return


async def test_sigterm_drains_in_the_order_that_loses_nothing(tmp_path: Path) -> None:
    settings: dict[str, object] = {"server.drain_delay_seconds": 1.0}
    async with (
        open_process(tmp_path / "data", settings=settings) as server,
        open_channel(server.target) as channel,
        Client(server.target) as client,
    ):
        waiting = await client.delegate("nobody does this", role="nobody")
        observer = Observer()
        async with asyncio.TaskGroup() as group:
            group.create_task(observer.balancer(channel))
            group.create_task(observer.caller(channel, waiting.task_id))
            group.create_task(observer.subscriber(channel))
            group.create_task(observer.session(channel))
            await eventually(lambda: len(set(observer.ready)) == 4)

            assert server.process is not None
            server.process.terminate()
            await eventually(lambda: observer.seen == ["NOT_SERVING"])
            late = await client.delegate("nobody does this", role="nobody")  # still served while balancers notice
            assert (await client.health()).draining
            assert observer.seen == ["NOT_SERVING"]
        assert observer.seen[0] == "NOT_SERVING"
        assert set(observer.seen[1:]) == {"wait answered", "stream ended", "reconnect", "watch ended"}
        assert await server.process.wait() == 0

        await server.start()
        assert facts(await read_log(client), late.task_id) == ["task_delegated"]
        assert "Traceback" not in server.log()


async def test_a_second_signal_skips_the_waiting(tmp_path: Path) -> None:
    settings: dict[str, object] = {"server.drain_delay_seconds": 600}
    async with (
        open_process(tmp_path / "data", settings=settings) as server,
        open_channel(server.target) as channel,
    ):
        answers = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await answers.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert server.process is not None
        server.process.terminate()
        assert (await answers.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        async with asyncio.timeout(10):
            assert await end_process(server.process, signal.SIGINT) == 0
        answers.cancel()
