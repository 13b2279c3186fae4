"""Callers that go away while their changes are in flight: the committer lives, and memory and store agree."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from agenthive.client import Client
from agenthive.errors import HiveError
from agenthive.v1 import agent_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive_server.app import App
from agenthive_server.kernel.records import Kind
from agenthive_server.testing.harness import open_served
from agenthive_server.testing.history import fold, read_log
from agenthive_server.testing.waiting import eventually
from agenthive_server.testing.worker_program import build_worker

CALLERS = 24
CALLS = 60
"""Calls of each caller; every one of them is cancelled at some moment, if it lives that long."""


class Fickle:
    """A caller that changes its mind."""

    def __init__(self, client: Client, name: str, chance: random.Random) -> None:
        self._client = client
        self._name = name
        self._chance = chance
        self._number = 0
        self.cancelled = self.answered = self.refused = 0
        self.known: dict[str, str] = {}

    async def run(self) -> None:
        """Make calls and give up on them."""
        for _ in range(CALLS):
            self._number += 1
            call = asyncio.ensure_future(self._new_call())
            # Anything between not sent yet and answered long ago.
            await asyncio.wait({call}, timeout=self._chance.choice((0.0, 0.005, 0.02, 0.05, 0.1, 0.3)))
            call.cancel()
            try:
                await call
            except asyncio.CancelledError:
                self.cancelled += 1
            except HiveError:
                self.refused += 1  # the other call on the same task was first
            else:
                self.answered += 1

    def _new_call(self) -> Awaitable[object]:
        client, request_id = self._client, f"{self._name}-{self._number}"
        mine = self._chance.randrange(1, self._number + 1)
        task_id, agent_id = f"{self._name}-{mine}", f"agent-{self._name}-{mine}"
        many = [orchestrator.NewTask(task_id=f"{request_id}-{n}", spec=task_pb2.TaskSpec(type="echo")) for n in "abc"]
        makes: list[Callable[[], Awaitable[object]]] = [
            lambda: client.delegate("echo", task_id=request_id, request_id=request_id),
            lambda: client.delegate("echo", task_id=request_id, request_id=request_id, wait=True),
            lambda: client.delegate_many(many, request_id=request_id),
            lambda: client.cancel_task(task_id, request_id=request_id),
            lambda: client.pause_task(task_id, request_id=request_id),
            lambda: client.resume_task(task_id, request_id=request_id),
            lambda: client.retry_task(task_id, request_id=request_id),
            lambda: client.spawn(agent_id=f"agent-{request_id}", request_id=request_id),
            lambda: client.update_agent(agent_id, agent_pb2.AgentSpec(role="other"), request_id=request_id),
            lambda: client.shutdown_agent(agent_id, request_id=request_id),
            lambda: client.send_message(b"hello", agent_id=agent_id, request_id=request_id),
            lambda: client.wait_task(task_id, timeout=1),
        ]
        return self._chance.choice(makes)()


async def disagreements(app: App) -> list[str]:
    """Every record of which memory and store say different things."""
    memory, found = app.kernel.memory, []
    for kind in Kind:
        keys = [record.key for record in await app.store.scan(kind)]
        keys += [key for _, key in memory.refs(kind, "default") if key not in keys]
        for key, stored in zip(keys, await app.store.get(kind, keys), strict=True):
            kept = memory.committed((kind, key))
            if kept is not None and kept != stored:
                found.append(f"{kind} {key}: memory {kept}, store {stored}")
            if memory.flight((kind, key)) is not None:
                found.append(f"{kind} {key}: still in flight")
    for kind in (Kind.TASK, Kind.AGENT, Kind.SESSION, Kind.MESSAGE):
        records = await app.store.scan(kind, open_only=True)
        found += [f"{record.ref}: open, not in memory" for record in records if memory.committed(record.ref) != record]
    return found


@pytest.mark.parametrize("round_number", range(3))
async def test_memory_and_store_agree_after_calls_that_were_cancelled_in_flight(
    tmp_path: Path, soak_seed: int, round_number: int
) -> None:
    seed = soak_seed * 1000 + round_number
    async with open_served(tmp_path / "data") as (app, client):
        workers = [
            asyncio.create_task(build_worker(f"127.0.0.1:{app.port}", f"worker-{n}", slots=8).run()) for n in range(2)
        ]
        client_of = [Client(f"127.0.0.1:{app.port}") for _ in range(4)]
        callers = [Fickle(client_of[n % 4], f"c{n}", random.Random(seed * 100 + n)) for n in range(CALLERS)]
        await asyncio.gather(*(caller.run() for caller in callers))
        for each in client_of:
            await each.close()

        assert app._committing is not None
        assert not app._committing.done()
        done = await client.delegate("echo", wait=True, timeout=20)
        assert done.state == task_pb2.TASK_STATE_SUCCEEDED
        await eventually(lambda: quiet(app), what="nothing is in flight")
        assert await disagreements(app) == []
        fold(await read_log(client))

        cancelled = sum(caller.cancelled for caller in callers)
        answered, changes = sum(caller.answered for caller in callers), app.committer.change_sets
        print(f"{CALLERS * CALLS} calls, {cancelled} cancelled, {answered} answered, {changes} change sets")
        assert cancelled > 100
        assert answered > 100
        for worker in workers:
            worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*workers)


async def quiet(app: App) -> bool:
    """Whether nothing changes any more."""
    groups = app.committer.groups
    await asyncio.sleep(0.3)
    return app.committer.groups == groups


async def test_a_call_that_was_cancelled_is_repeated_under_its_request_id_without_a_second_effect(
    tmp_path: Path, soak_seed: int
) -> None:
    chance = random.Random(soak_seed)
    async with open_served(tmp_path / "data") as (app, client):
        made: dict[str, str] = {}
        for number in range(100):
            request_id = f"request-{number}"
            call = asyncio.ensure_future(client.delegate("any", request_id=request_id))
            await asyncio.wait({call}, timeout=chance.choice((0.0, 0.001, 0.002, 0.004)))
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
            made[request_id] = (await client.delegate("any", request_id=request_id)).task_id
        tasks = [task.task_id async for task in client.list_tasks(page_size=1000)]
        assert sorted(tasks) == sorted(made.values())
        assert await disagreements(app) == []
