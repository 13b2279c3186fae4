"""Server and runner are killed at random moments under load and started again: nothing that was said is taken back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agenthive import Worker
from agenthive.client import Client
from agenthive.payload import value
from agenthive.task_context import TaskContext, TaskFailed
from agenthive.v1 import agent_pb2, event_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive_server.testing.bookkeeper import Bookkeeper
from agenthive_server.testing.callers import Acknowledged, Caller
from agenthive_server.testing.followers import Follower
from agenthive_server.testing.harness import ServerProcess
from agenthive_server.testing.history import difference, fold, read_log
from agenthive_server.testing.processes import find_runner, list_agent_processes
from agenthive_server.testing.waiting import eventually

KILLS = 30
"""Kills of an ordinary run; `make soak ROUNDS=1000` asks for more."""

SETTINGS: dict[str, object] = {
    "limits.reconnect_grace_seconds": 3,
    "limits.heartbeat_interval_seconds": 1,
    "limits.accept_timeout_seconds": 2,
    "runner.orphan_timeout_seconds": 60,
    "server.drain_grace_seconds": 5,
}

PER_TASK = """
import json, sys, time
task = json.load(sys.stdin)
job = task["input"]
time.sleep(job["seconds"])
if job["fails"]:
    print(json.dumps({"error": {"reason": "AS_TOLD"}}))
else:
    print(json.dumps({"result": {"number": job["number"], "lease_epoch": task["lease_epoch"]}}))
"""

PER_AGENT = """
import json, sys, time
print('{"ready": true}', flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if "task_id" not in task or "input" not in task:
        continue
    job, name = task["input"], {"task_id": task["task_id"], "lease_epoch": task["lease_epoch"]}
    print(json.dumps({"progress": 0.5, **name}), flush=True)
    time.sleep(job["seconds"])
    if job["fails"]:
        print(json.dumps({"error": {"reason": "AS_TOLD"}, **name}), flush=True)
    else:
        print(json.dumps({"result": {"number": job["number"], "lease_epoch": task["lease_epoch"]}, **name}), flush=True)
"""


class Hive:
    """A server with its local runner, and the means to do them harm."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.server = ServerProcess(folder / "data", runner=True, settings=SETTINGS)
        self.kills = {"server": 0, "starting server": 0, "runner": 0, "both": 0}
        self._chance = chance

    async def harm(self) -> None:
        """Kill something, and see to it that the server serves again."""
        victim = self._chance.choices(list(self.kills), (10, 3, 4, 3))[0]
        runner = find_runner(self.server.data_dir)
        if victim in ("runner", "both") and not runner:
            victim = "server"
        self.kills[victim] += 1
        if victim in ("runner", "both"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(runner, signal.SIGKILL)
        if victim == "runner":
            return
        await self.server.kill()
        if victim == "starting server":
            starting = asyncio.create_task(self.server.start())
            await asyncio.sleep(self._chance.uniform(0.05, 0.6))
            await self.server.kill()
            with contextlib.suppress(RuntimeError):
                await starting
            await self.server.kill()
        await self.server.start()


@asynccontextmanager
async def open_hive(folder: Path, chance: random.Random) -> AsyncIterator[Hive]:
    hive = Hive(folder, chance)
    await hive.server.start()
    try:
        yield hive
    finally:
        await hive.server.kill()
        while pid := find_runner(hive.server.data_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.05)


def sdk_worker(target: str, agent_id: str) -> Worker:
    worker = Worker(target, agent_id=agent_id, capabilities=["sdk"], slots=2)

    @worker.task("job")
    async def job(task: TaskContext) -> dict[str, Any]:
        given: Any = task.input
        task.report(0.5, "half")
        await asyncio.sleep(given["seconds"])
        if given["fails"]:
            raise TaskFailed("as told", reason="AS_TOLD")
        return {"number": given["number"], "lease_epoch": task.assignment.lease_epoch}

    return worker


async def spawn_process_agents(client: Client, python: str) -> int:
    agents = []
    for mode, script, name, count in (
        (agent_pb2.PROCESS_MODE_TASK, PER_TASK, "task", 8),
        (agent_pb2.PROCESS_MODE_AGENT, PER_AGENT, "agent", 6),
    ):
        for number in range(count):
            spec = agent_pb2.AgentSpec(capabilities=["process", name])
            spec.process.command.extend([python, "-I", "-S", "-c", script])
            spec.process.mode = mode
            spec.restart_policy.mode = agent_pb2.RESTART_MODE_ALWAYS
            spec.restart_policy.initial_interval.FromMilliseconds(100)
            spec.restart_policy.maximum_interval.FromMilliseconds(500)
            spec.restart_policy.maximum_restarts = 1_000
            agents.append(orchestrator.NewAgent(agent_id=f"{name}-{number}", spec=spec))
    await client.spawn_many(agents, request_id="the fleet")
    return len(agents)


def followers(target: str, chance: random.Random) -> dict[str, Follower]:
    tasks_only = event_pb2.EventFilter(
        types=[event_pb2.EVENT_TYPE_TASK_DELEGATED, event_pb2.EVENT_TYPE_TASK_SUCCEEDED], all_namespaces=True
    )
    return {
        "all": Follower(target),
        "filtered": Follower(target, filter=tasks_only),
        "slow": Follower(target, pause=0.05),
        "restless": Follower(target, restless=chance),
    }


@pytest.mark.crash
@pytest.mark.timeout(0)
async def test_nothing_acknowledged_is_lost_when_server_and_runner_are_killed(
    tmp_path: Path, soak_seed: int, soak_rounds: int | None
) -> None:
    chance = random.Random(soak_seed)
    known = Acknowledged()
    async with open_hive(tmp_path, chance) as hive, contextlib.AsyncExitStack() as stack:
        target = hive.server.target
        clients = [await stack.enter_async_context(Client(target)) for _ in range(4)]
        await spawn_process_agents(clients[0], sys.executable)
        keepers = [Bookkeeper(f"books-{n}") for n in range(2)]
        subscribers = followers(target, random.Random(soak_seed + 1))
        wants = ("", "process", "task", "agent", "sdk", "books")
        callers = [
            Caller(client, f"caller-{n}", wants, random.Random(soak_seed * 100 + n), known)
            for n, client in enumerate(clients * 2)
        ]
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(keeper.run(target)) for keeper in keepers]
            beside += [group.create_task(sdk_worker(target, f"sdk-{n}").run()) for n in range(6)]
            beside += [group.create_task(each.run()) for each in subscribers.values()]
            calling = [group.create_task(caller.run()) for caller in callers]

            for _ in range(soak_rounds or KILLS):
                await asyncio.sleep(chance.uniform(0.1, 2.5))
                await hive.harm()

            for caller in callers:
                caller.stopped = True
            async with asyncio.timeout(120):
                await asyncio.gather(*calling)
            for each in beside[: len(keepers) + 6]:
                each.cancel()
            log = await read_log(clients[0])
            expected = {name: seen_by(name, log) for name in subscribers}
            await eventually(
                lambda: all(len(subscribers[name].events) >= len(events) for name, events in expected.items()),
                what="every subscriber has caught up",
            )
            for each in beside:
                each.cancel()

        final = {task_id: await clients[0].get_task(task_id) for task_id in known.tasks}
        assert await hive.server.stop() == 0
        assert list_agent_processes(hive.server.data_dir) == []
        await eventually(
            lambda: not find_runner(hive.server.data_dir),
            limit=5,
            what="the runner has ended",
        )

    agents = {attempt.agent_id for task in final.values() for attempt in task.attempts}
    streams = {name: each.streams for name, each in subscribers.items()}
    print(
        f"seed {soak_seed}: {hive.kills}, {len(final)} tasks, {known.calls} calls, {known.repeated} repeated,"
        f" {len(known.retries)} retried, {len(log)} events, {len(agents)} agents at work, streams {streams}"
    )
    assert known.wrong == []
    check_tasks(known, keepers, final)
    check_log(log, final)
    for name, events in expected.items():
        assert difference(subscribers[name].events[: len(events)], events) == "", name
    check_database(hive.server.data_dir / "hive.db")
    assert "Traceback" not in hive.server.log()


def seen_by(name: str, log: list[event_pb2.Event]) -> list[event_pb2.Event]:
    """What a subscriber of this name has to have seen of a log."""
    if name != "filtered":
        return log
    return [event for event in log if event.WhichOneof("fact") in ("task_delegated", "task_succeeded")]


def check_tasks(known: Acknowledged, keepers: list[Bookkeeper], final: dict[str, task_pb2.Task]) -> None:
    """Every task that was accepted is there and has ended; every end a caller or a worker was told of still stands."""
    assert set(final) == known.tasks == set(known.ended)
    for task_id, told in known.ended.items():
        task = final[task_id]
        assert (task.state, task.result) == (told.state, told.result), task_id
        if task.state == task_pb2.TASK_STATE_SUCCEEDED:
            check_result(task)
        if task.state == task_pb2.TASK_STATE_CANCELED:
            assert task_id in known.cancels
    acknowledged = [(task_id, *what) for keeper in keepers for task_id, what in keeper.acknowledged.items()]
    assert acknowledged
    for task_id, epoch, name in acknowledged:
        task = final[task_id]
        assert task.state == task_pb2.TASK_STATE_SUCCEEDED, f"{name} was acknowledged: {task}"
        assert (task.attempts[-1].lease_epoch, task.result.data.decode()) == (epoch, name)


def check_result(task: task_pb2.Task) -> None:
    """The result is the one of the attempt that was accepted, and of this task."""
    epoch = task.attempts[-1].lease_epoch
    if task.result.content_type == "text/plain":
        assert task.result.data.decode() == f"{task.task_id}/{epoch}"
    else:
        given: Any = value(task.spec.input)
        assert value(task.result) == {"number": given["number"], "lease_epoch": epoch}


def check_log(log: list[event_pb2.Event], final: dict[str, task_pb2.Task]) -> None:
    """The log is without hole, tells only what can happen, and ends where the records stand."""
    assert log[0].sequence == 1
    stories = {task_id: story for (_, task_id), story in fold(log).tasks.items()}
    assert set(stories) == set(final)
    for task_id, task in final.items():
        story = stories[task_id]
        assert task_pb2.TaskState.Name(task.state) == f"TASK_STATE_{story.state}", task_id
        assert story.attempt == task.attempt, task_id


def check_database(path: Path) -> None:
    """The file is whole."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
