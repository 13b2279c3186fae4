"""Several replicas of one hive, over real ports and a real database: any of them does for any call."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import grpc
import pytest
from agenthive.client import Client
from agenthive.errors import HiveError, NotFound
from agenthive.payload import value
from agenthive.v1 import event_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive_server.testing.harness import ServerProcess, open_worker
from agenthive_server.testing.history import difference, facts, fold, read_log
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.proxy import open_proxy
from agenthive_server.testing.waiting import eventually
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # ships without types

SERVING, NOT_SERVING = 1, 2

_PLACES = itertools.count()

SETTINGS: dict[str, object] = {
    "limits.reconnect_grace_seconds": 20,
    "limits.heartbeat_interval_seconds": 1,
    "server.drain_grace_seconds": 5,
    "server.drain_delay_seconds": 0,
}


class Fleet:
    """Three replicas, with a client of each."""

    def __init__(self, servers: list[ServerProcess], clients: list[Client]) -> None:
        self.servers = servers
        self.clients = clients

    @property
    def targets(self) -> list[str]:
        return [server.target for server in self.servers]


@pytest.fixture
async def fleet(postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[Fleet]:
    settings = {**SETTINGS, "server.store": postgres.url(f"fleet{next(_PLACES)}")}
    servers = [ServerProcess(tmp_path / f"replica{number}", settings=settings) for number in range(3)]
    async with AsyncExitStack() as stack:
        for server in servers:
            stack.push_async_callback(server.kill)
        await asyncio.gather(*(server.start() for server in servers))
        clients = [await stack.enter_async_context(Client(server.target)) for server in servers]
        yield Fleet(servers, clients)
        for server in servers:
            assert "Traceback" not in server.log()


async def test_a_task_is_delegated_here_worked_on_there_and_waited_for_elsewhere(fleet: Fleet, tmp_path: Path) -> None:
    first, second, third = fleet.clients
    async with open_worker(fleet.targets[0], "reader", "--capability", "read", folder=tmp_path):
        task = task_pb2.Task()
        for _ in range(20):
            task = await second.delegate("echo", {"a": 1}, required_capabilities=["read"], request_id="")
            # What one replica has acknowledged every other one knows.
            assert (await third.get_task(task.task_id)).task_id == task.task_id
            done = await third.wait_task(task.task_id, timeout=20)
            assert done.state == task_pb2.TASK_STATE_SUCCEEDED
            assert (await first.get_task(task.task_id)).state == task_pb2.TASK_STATE_SUCCEEDED
            answer = value(done.result)
            assert isinstance(answer, dict)
            assert answer["input"] == {"a": 1}
        logs = [await read_log(client) for client in fleet.clients]
        assert facts(logs[0], task.task_id) == ["task_delegated", "task_assigned", "task_started", "task_succeeded"]
        assert difference(logs[0], logs[1]) == difference(logs[0], logs[2]) == ""
        fold(logs[0])


async def test_a_repeated_call_has_the_same_outcome_on_every_replica(fleet: Fleet) -> None:
    made = [await client.delegate("any", role="nobody", request_id="once") for client in fleet.clients]
    assert len({task.task_id for task in made}) == 1
    async with asyncio.TaskGroup() as group:
        racing = [
            group.create_task(client.delegate("any", role="nobody", request_id="at once")) for client in fleet.clients
        ]
    assert len({task.result().task_id for task in racing}) == 1


async def test_a_cancel_anywhere_reaches_the_agent_where_its_session_is(fleet: Fleet, tmp_path: Path) -> None:
    first, second, third = fleet.clients
    async with open_worker(fleet.targets[2], "w", folder=tmp_path) as worker:
        task = await first.delegate("until", {"file": str(tmp_path / "never")})
        await eventually(lambda: _is(second, task.task_id, task_pb2.TASK_STATE_RUNNING))
        await second.cancel_task(task.task_id, reason="not wanted")
        done = await third.wait_task(task.task_id, timeout=10)
        assert done.state == task_pb2.TASK_STATE_CANCELED
        assert [entry["what"] for entry in worker.journal()] == ["begins", "stopped"]


async def test_a_worker_that_starts_elsewhere_takes_its_agent_with_it(fleet: Fleet, tmp_path: Path) -> None:
    first, second, third = fleet.clients
    async with open_worker(fleet.targets[0], "w", folder=tmp_path) as old:
        await eventually(partial(_hosted, third, "w"))
        session = (await third.get_agent("w")).session_id
        (tmp_path / "new").mkdir()
        async with open_worker(fleet.targets[1], "w", folder=tmp_path / "new"):
            await eventually(partial(_hosted, third, "w", session))
            assert old.process is not None
            # The older one is told at once that it was fenced, and does not try to come back.
            await asyncio.wait_for(old.process.wait(), 10)
            done = await second.wait_task((await first.delegate("echo", {})).task_id, timeout=10)
            assert (done.state, done.attempt) == (task_pb2.TASK_STATE_SUCCEEDED, 1)


async def _hosted(client: Client, agent_id: str, before: str = "") -> bool:
    try:
        return (await client.get_agent(agent_id)).session_id not in ("", before)
    except NotFound:
        return False


async def test_a_snapshot_on_any_replica_holds_what_was_acknowledged_by_another(fleet: Fleet) -> None:
    for number in range(6):
        here, there = fleet.clients[number % 3], fleet.clients[(number + 1) % 3]
        task = await here.delegate("any", role="nobody")
        async with there.events(start=orchestrator.STREAM_START_SNAPSHOT_THEN_TAIL, follow=False) as stream:
            events = [event async for batch, _ in stream.batches() for event in batch]
        shown = [event.task_snapshot.task.task_id for event in events if event.HasField("task_snapshot")]
        assert task.task_id in shown
        assert len(shown) == number + 1


async def _is(client: Client, task_id: str, state: task_pb2.TaskState.ValueType) -> bool:
    return (await client.get_task(task_id)).state == state


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_work_goes_on_when_the_dispatcher_is_gone(fleet: Fleet, tmp_path: Path, how: signal.Signals) -> None:
    async with open_proxy(*fleet.targets) as balancer, open_worker(balancer.target, "w", folder=tmp_path):
        number = await _dispatcher(fleet)
        there = fleet.clients[(number + 1) % 3]
        await there.wait_task((await there.delegate("echo", {})).task_id, timeout=20)
        await fleet.servers[number]._end(how)
        began = asyncio.get_running_loop().time()
        done = await there.wait_task((await there.delegate("echo", {})).task_id, timeout=20)
        assert (done.state, done.attempt) == (task_pb2.TASK_STATE_SUCCEEDED, 1)
        # Here its process can be seen to be gone; elsewhere its place is free after four seconds.
        assert asyncio.get_running_loop().time() - began < 5
        others = [client for client in fleet.clients if client is not fleet.clients[number]]
        # Whoever found it to be gone tells the others with its next renewal. One that stops has said so itself.
        killed = how is signal.SIGKILL
        await eventually(partial(_told, others, "was expelled" if killed else "2 are there"))


async def _told(clients: list[Client], what: str) -> bool:
    reports = [await client.health() for client in clients]
    said = [each.reason for report in reports for each in report.components if each.name == "replicas"]
    return len(said) == len(clients) and all(what in reason for reason in said)


async def _dispatcher(fleet: Fleet) -> int:
    found: list[int] = []

    async def look() -> bool:
        for number, client in enumerate(fleet.clients):
            report = await client.health()
            component = next(each for each in report.components if each.name == "dispatcher")
            if component.reason == "":
                found.append(number)
        return bool(found)

    await eventually(look)
    return found[0]


async def test_a_rolling_restart_burns_no_attempt_and_no_event(fleet: Fleet, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with (
        open_proxy(*fleet.targets) as balancer,
        Client(balancer.target) as client,
        open_worker(balancer.target, "a", folder=tmp_path) as one,
        open_worker(balancer.target, "b", folder=tmp_path) as two,
        client.events(start=orchestrator.STREAM_START_EARLIEST) as stream,
    ):
        tasks = [await client.delegate("until", {"file": str(gate)}) for _ in range(2)]
        for task in tasks:
            await eventually(partial(_is, client, task.task_id, task_pb2.TASK_STATE_RUNNING))
        for server in fleet.servers:
            assert await server.stop() == 0
            await server.start()
        gate.touch()
        for task in tasks:
            done = await client.wait_task(task.task_id, timeout=20)
            assert (done.state, done.attempt) == (task_pb2.TASK_STATE_SUCCEEDED, 1)
        assert [entry["what"] for worker in (one, two) for entry in worker.journal()] == ["begins", "ends"] * 2
        log = await read_log(client)
        seen: list[event_pb2.Event] = []
        async for batch, _ in stream.batches():
            seen += batch
            if len(seen) >= len(log):
                break
        assert difference(seen[: len(log)], log) == ""


async def test_a_replica_that_slept_too_long_was_replaced_and_joins_again(fleet: Fleet, tmp_path: Path) -> None:
    number = await _dispatcher(fleet)
    sleeper, other = fleet.servers[number], fleet.clients[(number + 1) % 3]
    async with (
        open_proxy(*fleet.targets) as balancer,
        open_worker(balancer.target, "w", folder=tmp_path),
        grpc.aio.insecure_channel(sleeper.target) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="readiness"))
        assert (await watch.read()).status == SERVING
        assert sleeper.process is not None
        sleeper.process.send_signal(signal.SIGSTOP)
        done = await other.wait_task((await other.delegate("any", role="nobody")).task_id, timeout=6)
        assert done.state == task_pb2.TASK_STATE_QUEUED
        assert await _dispatcher(Fleet([], [c for c in fleet.clients if c is not fleet.clients[number]])) in (0, 1)
        sleeper.process.send_signal(signal.SIGCONT)

        async def back() -> bool:
            try:
                task = await fleet.clients[number].delegate("echo", {}, timeout=2)
            except HiveError:
                return False
            return (await other.wait_task(task.task_id, timeout=10)).state == task_pb2.TASK_STATE_SUCCEEDED

        assert [(await watch.read()).status for _ in range(2)] == [NOT_SERVING, SERVING]
        await eventually(back, limit=40)
        assert "replica_joined_again" in sleeper.log()
        fold(await read_log(other))
