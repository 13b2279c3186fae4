"""A hive on PostgreSQL, over a real port: the story of a task, and what is killed under it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from agenthive import Worker
from agenthive.client import Client
from agenthive.errors import HiveError, Unavailable
from agenthive.payload import value
from agenthive.task_context import TaskContext
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.v1 import task_pb2
from agenthive_server.testing.callers import Acknowledged, Caller
from agenthive_server.testing.followers import Follower
from agenthive_server.testing.harness import ServerProcess, free_port, open_process, open_worker
from agenthive_server.testing.history import difference, facts, fold, read_log
from agenthive_server.testing.postgres import PostgresServer, open_postgres
from agenthive_server.testing.proxy import open_proxy
from agenthive_server.testing.waiting import eventually

_PLACES = itertools.count()

SETTINGS: dict[str, object] = {
    "limits.reconnect_grace_seconds": 20,
    "limits.heartbeat_interval_seconds": 1,
    "server.drain_grace_seconds": 5,
}


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.url(f"hive{next(_PLACES)}")


@pytest.fixture
async def server(tmp_path: Path, url: str) -> AsyncIterator[ServerProcess]:
    async with open_process(tmp_path / "data", settings={**SETTINGS, "server.store": url}) as server:
        yield server


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[Client]:
    async with Client(server.target) as client:
        yield client


async def test_a_task_is_delegated_worked_on_and_told_in_order(
    server: ServerProcess, client: Client, tmp_path: Path
) -> None:
    async with (
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
        again = await client.delegate("echo", {"path": "README.md"}, required_capabilities=["read"], request_id="once")
        assert (again.task_id, again.state) == (task.task_id, task_pb2.TASK_STATE_SUCCEEDED)
        story = ["task_delegated", "task_assigned", "task_started", "task_succeeded"]
        assert facts(await read_log(client), task.task_id) == story
        seen: list[str] = []
        async for batch, _ in events:
            seen += facts(batch, task.task_id)
            if seen == story:
                break
    # Another process, on the same database.
    assert await server.stop() == 0
    await server.start()
    kept = await client.get_task(task.task_id)
    assert (kept.state, kept.result) == (done.state, done.result)
    assert fold(await read_log(client)).tasks["default", task.task_id].state == "SUCCEEDED"
    assert [found.task_id async for found in client.list_tasks()] == [task.task_id]


async def test_the_password_shows_nowhere(server: ServerProcess, client: Client, url: str) -> None:
    password = url.partition("@")[0].rpartition(":")[2]
    assert server.process is not None
    health = await client.health()
    command = await asyncio.to_thread(Path(f"/proc/{server.process.pid}/cmdline").read_bytes)
    assert password not in f"{health}{server.log()}{command!r}"


def start(url: str, folder: Path) -> tuple[int, str]:
    """Run `agenthived serve` until it ends by itself; returns its exit code and the line a person reads."""
    command = [sys.executable, "-m", "agenthive_server", "serve", "--no-runner", "--store", url]
    command += ["--data-dir", str(folder), "--listen", f"127.0.0.1:{free_port()}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert "SERVING" not in ended.stdout
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    return ended.returncode, line


def test_a_database_that_is_not_there_is_told(tmp_path: Path) -> None:
    code, said = start(f"postgresql://me:secret@127.0.0.1:{free_port()}/hive", tmp_path)
    assert code == 1
    assert "cannot be opened: Connect" in said
    assert "secret" not in said


@pytest.fixture
def own_postgres(postgres_binaries: Path) -> Iterator[PostgresServer]:
    """A database server that may be harmed."""
    with open_postgres(postgres_binaries) as server:
        yield server


async def test_an_outage_of_the_database_is_told_and_costs_nothing_but_time(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "server.store": own_postgres.url()}
    async with (
        open_process(tmp_path / "data", settings=settings) as server,
        Client(server.target) as client,
        open_worker(server.target, "worker", folder=tmp_path),
    ):
        gate = tmp_path / "gate"
        task = await client.delegate("until", {"file": str(gate)})
        await eventually(lambda: _running(client, task.task_id))
        await asyncio.to_thread(own_postgres.stop)
        await eventually(lambda: _component_is(client, "store", orchestrator.HEALTH_STATUS_DOWN))
        await eventually(lambda: _component_is(client, "listener", orchestrator.HEALTH_STATUS_DEGRADED))
        with pytest.raises(HiveError) as caught:
            await client.delegate("any", task_id="refused", timeout=2)
        assert isinstance(caught.value, Unavailable)
        gate.touch()
        await asyncio.to_thread(own_postgres.start)
        await eventually(lambda: _component_is(client, "store", orchestrator.HEALTH_STATUS_OK))
        await eventually(lambda: _component_is(client, "listener", orchestrator.HEALTH_STATUS_OK))
        done = await client.wait_task(task.task_id, timeout=20)
        assert (done.state, done.attempt) == (task_pb2.TASK_STATE_SUCCEEDED, 1)
        fold(await read_log(client))


async def test_a_server_whose_database_is_lost_at_a_commit_refuses_what_comes_and_can_be_stopped(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    async with open_proxy(f"127.0.0.1:{postgres.port}") as proxy, contextlib.AsyncExitStack() as stack:
        url = postgres.url(f"hive{next(_PLACES)}", port=proxy.port)
        server = ServerProcess(tmp_path / "data", settings={**SETTINGS, "server.store": url})
        await server.start()
        stack.push_async_callback(server.kill)
        client = await stack.enter_async_context(Client(server.target))
        await client.delegate("any", task_id="before")
        proxy.cut_at = b"COMMIT"
        # Its session is what is not known to be committed, and nobody cancels that.
        joining = asyncio.create_task(worker(server.target, "late").run())

        async def leave() -> None:
            joining.cancel()
            await asyncio.wait((joining,))

        stack.push_async_callback(leave)

        async def refused() -> bool:
            with pytest.raises(HiveError) as caught:
                await client.delegate("any", task_id="refused", timeout=2)
            return isinstance(caught.value, Unavailable)

        await eventually(refused)
        assert await server.stop() == 0, server.log()


async def _running(client: Client, task_id: str) -> bool:
    return (await client.get_task(task_id)).state == task_pb2.TASK_STATE_RUNNING


async def _component_is(client: Client, name: str, status: orchestrator.HealthStatus.ValueType) -> bool:
    report = await client.health()
    return next(each for each in report.components if each.name == name).status == status


def worker(target: str, agent_id: str) -> Worker:
    made = Worker(target, agent_id=agent_id, capabilities=["sdk"], slots=2)

    @made.task("job")
    async def job(task: TaskContext) -> dict[str, object]:
        given = task.input
        assert isinstance(given, dict)
        await asyncio.sleep(float(str(given["seconds"])))
        return {"number": given["number"], "lease_epoch": task.assignment.lease_epoch}

    return made


@pytest.mark.crash
@pytest.mark.timeout(0)
async def test_nothing_acknowledged_is_lost_when_server_and_database_are_killed(
    own_postgres: PostgresServer, tmp_path: Path, soak_seed: int, soak_rounds: int | None
) -> None:
    chance = random.Random(soak_seed)
    known = Acknowledged()
    server = ServerProcess(tmp_path / "data", settings={**SETTINGS, "server.store": own_postgres.url()})
    await server.start()

    async def harm() -> None:
        victim = chance.choice(("server", "database", "database restart"))
        if victim == "server":
            await server.kill()
            await server.start()
            return
        await asyncio.to_thread(own_postgres.stop if victim == "database restart" else own_postgres.kill)
        await asyncio.sleep(chance.uniform(0, 1))
        await asyncio.to_thread(own_postgres.start)

    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.kill)
        clients = [await stack.enter_async_context(Client(server.target)) for _ in range(3)]
        follower = Follower(server.target)
        callers = [
            Caller(client, f"caller-{n}", ("", "sdk"), random.Random(soak_seed * 100 + n), known)
            for n, client in enumerate(clients * 2)
        ]
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(worker(server.target, f"sdk-{n}").run()) for n in range(5)]
            beside.append(group.create_task(follower.run()))
            calling = [group.create_task(caller.run()) for caller in callers]
            for _ in range(soak_rounds or 6):
                await asyncio.sleep(chance.uniform(0.2, 2.0))
                await harm()
            for caller in callers:
                caller.stopped = True
            async with asyncio.timeout(120):
                await asyncio.gather(*calling)
            for each in beside[:-1]:
                each.cancel()
            log = await read_log(clients[0])
            await eventually(lambda: len(follower.events) >= len(log), what="the subscriber has caught up")
            beside[-1].cancel()
        final = {task_id: await clients[0].get_task(task_id) for task_id in known.tasks}
        assert await server.stop() == 0

    print(f"seed {soak_seed}: {len(final)} tasks, {known.calls} calls, {known.repeated} repeated, {len(log)} events")
    assert known.wrong == []
    assert set(final) == set(known.ended)
    stories = fold(log).tasks
    for task_id, told in known.ended.items():
        assert (final[task_id].state, final[task_id].result) == (told.state, told.result), task_id
        assert task_pb2.TaskState.Name(final[task_id].state) == f"TASK_STATE_{stories['default', task_id].state}"
    assert difference(follower.events[: len(log)], log) == ""
    assert "Traceback" not in server.log()
