"""A hive moves from SQLite to PostgreSQL below its workers, agents, callers and subscribers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agenthive import Worker
from agenthive.client import Client
from agenthive.payload import value
from agenthive.task_context import TaskContext
from agenthive.v1 import agent_pb2, task_pb2
from agenthive_server.testing.callers import Acknowledged, Caller
from agenthive_server.testing.followers import Follower
from agenthive_server.testing.harness import ServerProcess, open_worker
from agenthive_server.testing.history import difference, facts, fold, read_log
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.processes import list_agent_processes
from agenthive_server.testing.waiting import eventually

_PLACES = itertools.count()

SETTINGS: dict[str, object] = {
    "limits.reconnect_grace_seconds": 20,
    "limits.heartbeat_interval_seconds": 1,
    "server.drain_grace_seconds": 5,
    "runner.orphan_timeout_seconds": 60,
}


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.url(f"moved{next(_PLACES)}")


@asynccontextmanager
async def open_servers(folder: Path, url: str) -> AsyncIterator[tuple[ServerProcess, ServerProcess]]:
    """One on a file, which runs, and one on PostgreSQL, which does not yet: same address, same data directory. Whatever
    they leave behind is ended."""
    kept = ("--keep-runner",)
    before = ServerProcess(folder / "data", *kept, runner=True, settings=SETTINGS)
    after = ServerProcess(
        folder / "data", *kept, port=before.port, runner=True, settings={**SETTINGS, "server.store": url}
    )
    await before.start()
    try:
        yield before, after
    finally:
        lock = folder / "data" / "runner" / "lock"
        with contextlib.suppress(OSError, ValueError):
            runner = int(lock.read_text(encoding="ascii"))
            os.kill(runner, signal.SIGTERM)
            await eventually(lambda: not Path(f"/proc/{runner}").exists(), limit=30, what="the runner has ended")
        for server in (before, after):
            await server.kill()


async def move(server: ServerProcess, url: str, *words: str) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "agenthive_server", "migrate-store", *words]
    command += ["--from", f"sqlite:///{server.data_dir}/hive.db", "--to", url]
    return await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)


AGENT = """
import json, os, sys, time
print('{"ready": true}', flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if "task_id" in task and "input" in task:
        while not os.path.exists(task["input"]["file"]):
            time.sleep(0.02)
        print(json.dumps({"result": os.getpid(), "task_id": task["task_id"]}), flush=True)
"""


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_held_tasks_and_cursors_live_on(tmp_path: Path, url: str, end: str) -> None:
    gate = tmp_path / "gate"
    async with (
        open_servers(tmp_path, url) as (before, after),
        Client(before.target) as client,
        open_worker(before.target, "worker", "--capability", "sdk", folder=tmp_path) as worker,
    ):
        spec = agent_pb2.AgentSpec(capabilities=["process"])
        spec.process.command.extend([sys.executable, "-I", "-S", "-c", AGENT])
        spec.process.mode = agent_pb2.PROCESS_MODE_AGENT
        await client.spawn(agent_id="process", spec=spec)
        held = [
            await client.delegate("until", {"file": str(gate)}, required_capabilities=[each], request_id=each)
            for each in ("sdk", "process")
        ]
        waiting = await client.delegate("any", role="nobody")
        follower = Follower(before.target)
        following = asyncio.create_task(follower.run())
        for task in held:
            await eventually(lambda: running(client, task.task_id))  # noqa: B023 - awaited here
        await eventually(lambda: facts(follower.events, held[1].task_id)[-1:] == ["task_started"])
        processes = list_agent_processes(before.data_dir)

        await (before.stop() if end == "stop" else before.kill())
        seen = len(follower.events)
        assert await (await move(before, url)).wait() == 0
        await after.start()
        gate.touch()

        for task in held:
            done = await client.wait_task(task.task_id, timeout=30)
            assert (done.state, done.attempt) == (task_pb2.TASK_STATE_SUCCEEDED, 1)
            story = ["task_delegated", "task_assigned", "task_started", "task_succeeded"]
            assert facts(await read_log(client), task.task_id) == story
        assert [note["what"] for note in worker.journal()] == ["begins", "ends"]
        assert value((await client.get_task(held[1].task_id)).result) in processes
        again = await client.delegate("until", {"file": str(gate)}, required_capabilities=["sdk"], request_id="sdk")
        assert again.task_id == held[0].task_id
        assert (await client.get_task(waiting.task_id)).state == task_pb2.TASK_STATE_QUEUED
        log = await read_log(client)
        await eventually(lambda: len(follower.events) >= len(log))
        following.cancel()
        assert 0 < seen < len(log)
        assert difference(follower.events[: len(log)], log) == ""
        fold(log)
        assert "Traceback" not in after.log()


async def running(client: Client, task_id: str) -> bool:
    return (await client.get_task(task_id)).state == task_pb2.TASK_STATE_RUNNING


def worker(target: str) -> Worker:
    made = Worker(target, agent_id="sdk", capabilities=["sdk"], slots=4)

    @made.task("job")
    async def job(task: TaskContext) -> dict[str, object]:
        given = task.input
        assert isinstance(given, dict)
        await asyncio.sleep(float(str(given["seconds"])))
        return {"number": given["number"], "lease_epoch": task.assignment.lease_epoch}

    return made


async def test_a_hive_under_load_is_moved_and_nothing_acknowledged_is_lost(
    tmp_path: Path, url: str, soak_seed: int
) -> None:
    known = Acknowledged()
    async with (
        open_servers(tmp_path, url) as (before, after),
        Client(before.target) as client,
    ):
        follower = Follower(before.target)
        callers = [
            Caller(client, f"caller-{n}", ("", "sdk"), random.Random(soak_seed * 100 + n), known) for n in range(4)
        ]
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(each) for each in (follower.run(), worker(before.target).run())]
            calling = [group.create_task(caller.run()) for caller in callers]
            await eventually(lambda: len(known.ended) > 20)
            moving = await move(before, url, "--wait")
            assert moving.stderr is not None
            while b"stop the server now" not in (line := await moving.stderr.readline()):
                assert line, "the move has ended"
            some = len(known.ended) + 10
            await eventually(lambda: len(known.ended) > some)
            await before.stop()
            assert await moving.wait() == 0
            await after.start()
            more = len(known.ended) + 20
            await eventually(lambda: len(known.ended) > more)
            for caller in callers:
                caller.stopped = True
            await asyncio.gather(*calling)
            log = await read_log(client)
            await eventually(lambda: len(follower.events) >= len(log))
            for each in beside:
                each.cancel()
        final = {task_id: await client.get_task(task_id) for task_id in known.tasks}
    print(f"seed {soak_seed}: {len(final)} tasks, {known.calls} calls, {len(log)} events")
    assert known.wrong == []
    assert set(final) == set(known.ended)
    for task_id, told in known.ended.items():
        assert (final[task_id].state, final[task_id].result) == (told.state, told.result), task_id
    assert difference(follower.events[: len(log)], log) == ""
    fold(log)
