"""A server that asks who joins: a token lets a worker in once, and what it earns by that lets it in again."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from agenthive import TaskContext, Worker
from agenthive.client import Client
from agenthive.errors import PermissionDenied, Unauthenticated
from agenthive_server.app import App
from agenthive_server.kernel.records import Kind
from agenthive_server.plugin import api
from agenthive_server.plugin.api import Config, Failure, Hooks, Joining, Plugin, PluginContext, Registration
from agenthive_server.plugin.registry import Registry
from agenthive_server.testing.harness import open_served
from agenthive_server.testing.waiting import eventually


def digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def door(join: Joining) -> None:
    """Let in by a token that belongs to an agent and has not been used, or by what it has earned."""
    names = {agent.agent_id for agent in join.agents}
    if join.credential:
        owner = join.state.get(f"credential/{digest(join.credential)}")
    elif join.join_token:
        owner = join.state.get(f"token/{digest(join.join_token)}")
    else:
        owner = None
    if owner is None:
        raise api.Unauthenticated("neither a credential nor a token that is good")
    if names != {owner.decode()}:
        raise api.PermissionDenied("that is another's agent")
    if not join.credential:
        earned = f"earned by {join.join_token} at {join.now}"
        join.state.delete(f"token/{digest(join.join_token)}")
        join.state.put(f"credential/{digest(earned)}", owner)
        join.issue(earned)
    join.principal = f"agent:{owner.decode()}"


@asynccontextmanager
async def opening(ctx: PluginContext[Config]) -> AsyncIterator[Plugin]:
    for name in ("a", "b"):
        if await ctx.state.get(f"seen/{name}") is None:
            await ctx.state.put_many({f"seen/{name}": b"", f"token/{digest(f'token-{name}')}": name.encode()})
    yield Plugin(hooks=Hooks(before_join=door))


DOOR = Registration("door", open=opening, failure=Failure.CLOSED)


@asynccontextmanager
async def open_guarded(folder: Path) -> AsyncIterator[tuple[App, Client]]:
    async with open_served(folder, registry=Registry([DOOR]), plugins__enabled=["door"]) as both:
        yield both


@asynccontextmanager
async def at_work(app: App, agent_id: str, **secrets: str | Path) -> AsyncIterator[asyncio.Task[None]]:
    worker = Worker(f"127.0.0.1:{app.port}", agent_id=agent_id, capabilities=[agent_id], **secrets)  # type: ignore[arg-type]

    @worker.task("greet")
    async def greet(task: TaskContext) -> str:
        return f"hello from {agent_id}"

    running = asyncio.create_task(worker.run())
    try:
        yield running
    finally:
        await worker.stop(0.0)
        await asyncio.gather(running, return_exceptions=True)


async def test_a_token_is_good_once_and_what_it_earns_survives_restarts_of_both(tmp_path: Path) -> None:
    kept = tmp_path / "credential"
    async with open_guarded(tmp_path / "hive") as (app, client):
        async with at_work(app, "a", join_token="token-a", credential_file=kept):
            await client.delegate("greet", required_capabilities=["a"], wait=True)
            assert kept.read_text().startswith("earned by token-a")
            assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        async with at_work(app, "a", join_token="token-a") as thief:
            with pytest.raises(Unauthenticated):
                await thief
        stored = await app.store.scan(Kind.STATE)
        assert all(b"earned by" not in record.value for record in stored)  # type: ignore[attr-defined]  # bytes
    async with open_guarded(tmp_path / "hive") as (app, client):
        async with at_work(app, "a", credential_file=kept):
            await client.delegate("greet", required_capabilities=["a"], wait=True)
        async with at_work(app, "a", credential=kept.read_text()):
            await client.delegate("greet", required_capabilities=["a"], wait=True)


@pytest.mark.parametrize(
    ("agent_id", "secrets", "error"),
    [
        ("a", {}, Unauthenticated),
        ("a", {"join_token": "guessed"}, Unauthenticated),
        ("a", {"credential": "guessed"}, Unauthenticated),
        ("b", {"join_token": "token-a"}, PermissionDenied),
    ],
)
async def test_who_has_no_right_to_be_an_agent_is_sent_away_for_good(
    tmp_path: Path, agent_id: str, secrets: dict[str, str], error: type[Exception]
) -> None:
    async with open_guarded(tmp_path) as (app, client):
        async with at_work(app, agent_id, **secrets) as running:
            with pytest.raises(error):
                await running
        assert [agent async for agent in client.list_agents()] == []


async def test_while_the_door_is_stuck_workers_wait_and_nobody_gets_in(tmp_path: Path) -> None:
    stuck = True

    def moody(join: Joining) -> None:
        if stuck:
            raise LookupError("the door is stuck")
        door(join)

    @asynccontextmanager
    async def opening_moody(ctx: PluginContext[Config]) -> AsyncIterator[Plugin]:
        async with opening(ctx):
            yield Plugin(hooks=Hooks(before_join=moody))

    registry = Registry([Registration("door", open=opening_moody, failure=Failure.CLOSED)])
    async with (
        open_served(tmp_path, registry=registry, plugins__enabled=["door"]) as (app, client),
        at_work(app, "a", join_token="token-a"),
    ):
        await eventually(lambda: sum(act.failures for act in app.plugins.report("door").acts) > 1)
        assert [agent async for agent in client.list_agents()] == []
        stuck = False
        await client.delegate("greet", required_capabilities=["a"], wait=True)
