"""Plugins that raise, hang, leak tasks, block or fail closed, on a server that is being called all the while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from agenthive.client import Client
from agenthive.errors import HiveError
from agenthive.v1 import plugin_service_pb2 as pb
from agenthive.v1.event_pb2 import SEVERITY_ERROR, Event
from agenthive.v1.orchestrator_service_pb2 import STREAM_START_EARLIEST, DelegateTaskRequest, DelegateTaskResponse
from agenthive.v1.task_pb2 import TaskSpec
from agenthive_server.plugin.api import (
    Background,
    Call,
    Delegating,
    Failure,
    Hooks,
    Interceptor,
    Outcome,
    Plugin,
    Registration,
    Stage,
)
from agenthive_server.testing.waiting import eventually

Make = Callable[..., Registration[Any]]
Serve = Callable[..., Any]

SOON = 10.0
"""Seconds within which an offender has to be off; far more than it takes, because this machine may be busy."""


class Passive:
    """Does nothing."""

    stage = Stage.OBSERVE

    def before(self, call: Call) -> Any:
        return None

    def after(self, call: Call, outcome: Outcome) -> Any:
        return None


class RaisesBefore(Passive):
    def before(self, call: Call) -> None:
        raise RuntimeError("secret text")


class RaisesAfter(Passive):
    def after(self, call: Call, outcome: Outcome) -> None:
        raise RuntimeError("secret text")


class Exits(Passive):
    def before(self, call: Call) -> None:
        raise SystemExit(3)


class Hangs(Passive):
    async def before(self, call: Call) -> None:
        await asyncio.Event().wait()


class HangsOnTheWayOut(Passive):
    async def after(self, call: Call, outcome: Outcome) -> None:
        await asyncio.Event().wait()


class ClingsOn(Passive):
    """Hangs, and does not let itself be cancelled."""

    async def before(self, call: Call) -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()


class Leaks(Passive):
    def __init__(self) -> None:
        self.kept: list[asyncio.Task[Any]] = []

    def before(self, call: Call) -> None:
        self.kept.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))


class LeaksLater(Passive):
    """Leaks from code that waits."""

    async def before(self, call: Call) -> None:
        await asyncio.sleep(0)
        self.task = asyncio.ensure_future(asyncio.Event().wait())


class TakesItsTime(Passive):
    """Is too slow, again and again, but never long enough to be a block."""

    def before(self, call: Call) -> None:
        time.sleep(0.06)


def kind(value: object) -> str:
    return type(value).__name__ if isinstance(value, Passive) else ""


def with_interceptor(make: Make, interceptor: Interceptor, **record: Any) -> Registration[Any]:
    return make("offender", lambda ctx: Plugin(interceptors=(interceptor,)), **record)


@asynccontextmanager
async def under_load(client: Client, callers: int = 8) -> AsyncIterator[list[BaseException]]:
    """Delegate tasks all the while; the list holds what failed."""
    failed: list[BaseException] = []
    stop = asyncio.Event()

    async def call() -> None:
        while not stop.is_set():
            try:
                await client.delegate("work", required_capabilities=["none"], timeout=30)
            except HiveError as error:
                failed.append(error)

    calling = [asyncio.create_task(call()) for _ in range(callers)]
    try:
        yield failed
    finally:
        stop.set()
        await asyncio.gather(*calling)


async def switched_off(client: Client) -> pb.Plugin:
    """Wait until the offender is off; returns how it stands."""

    async def off() -> pb.Plugin | None:
        plugin: pb.Plugin = await client.get_plugin("offender")
        return plugin if plugin.state == pb.PLUGIN_STATE_FAILED else None

    found = await eventually(off, limit=SOON)
    assert found is not None
    return found


async def told(client: Client, *, switched_off: bool | None = None) -> list[Event]:
    """Return the events that tell of failures, or of being switched off for them."""
    found = [event async for event in client.events(start=STREAM_START_EARLIEST, follow=False)]
    failed = [event for event in found if event.WhichOneof("fact") == "plugin_failed"]
    return [event for event in failed if switched_off in (None, event.plugin_failed.switched_off)]


@pytest.mark.parametrize(
    ("offender", "why"),
    [
        (RaisesBefore(), "RuntimeError at test_offenders.py:"),
        (RaisesAfter(), "RuntimeError at test_offenders.py:"),
        (Exits(), "SystemExit at test_offenders.py:"),
        (Hangs(), " ms"),
        (HangsOnTheWayOut(), " ms"),
        (ClingsOn(), " ms"),
        (Leaks(), "tasks at once"),
        (LeaksLater(), "tasks at once"),
        (TakesItsTime(), " ms"),
    ],
    ids=kind,
)
async def test_an_open_offender_is_off_within_seconds_and_named_and_no_call_fails(
    make: Make, serve: Serve, offender: Interceptor, why: str
) -> None:
    settings = {"plugins__call_seconds": 0.2, "plugins__maximum_tasks": 50}
    async with serve(with_interceptor(make, offender), **settings) as (_, client), under_load(client) as failed:
        await client.enable_plugin("offender")
        plugin = await switched_off(client)
        name = type(offender).__name__
        assert name in plugin.state_reason
        assert why in plugin.state_reason
        report = await client.health()
        (component,) = [each for each in report.components if each.name == "plugin/offender"]
        assert name in component.reason
        (event,) = await eventually(lambda: told(client, switched_off=True))
        assert (event.plugin_failed.plugin, event.severity) == ("offender", SEVERITY_ERROR)
        assert not any("secret" in str(event) for event in await told(client))
        assert failed == []
        failures = sum(metric.value for metric in await client.metrics("agenthive_plugin_failures_total"))
        assert failures >= (1 if "tasks" in why else 5)
        # By hand it is on again, and off again.
        await client.enable_plugin("offender")
        await switched_off(client)
    assert failed == []


class Blocks(Passive):
    def before(self, call: Call) -> None:
        if call.method.endswith("/DelegateTask"):
            time.sleep(1.5)


async def test_one_that_blocks_the_event_loop_is_named_and_off_after_the_first_block(make: Make, serve: Serve) -> None:
    async with serve(with_interceptor(make, Blocks()), plugins__block_seconds=0.5) as (_, client):
        await client.enable_plugin("offender")
        await client.delegate("work", required_capabilities=["none"])
        plugin = await switched_off(client)
        assert "blocked the event loop for" in plugin.state_reason
        assert "test_offenders.py:" in plugin.state_reason
        assert "Blocks" in plugin.state_reason
        assert len(await told(client)) >= 1


@pytest.mark.parametrize("where", ["task", "spawned", "handed on"])
async def test_one_that_blocks_in_the_background_is_named_too(make: Make, serve: Serve, where: str) -> None:
    async def block() -> None:
        await asyncio.sleep(0.01)
        time.sleep(1.5)  # noqa: ASYNC251 - the offence
        await asyncio.Event().wait()

    def acts(ctx: Any) -> Plugin:
        if where == "task":
            return Plugin(tasks=(Background("loop", block),))
        if where == "spawned":
            ctx.spawn(block(), "block")
            return Plugin()
        kept.append(asyncio.get_running_loop().create_task(block()))
        return Plugin()

    kept: list[object] = []
    async with serve(make("offender", acts), plugins__block_seconds=0.5) as (_, client):
        await client.enable_plugin("offender")
        assert "blocked the event loop for" in (await switched_off(client)).state_reason


async def test_a_hook_that_raises_is_skipped_and_off_and_what_it_did_is_undone(make: Make, serve: Serve) -> None:
    def hook(task: Delegating) -> None:
        task.amend(priority=1)
        task.state.put("seen", b"yes")
        raise ValueError("after it amended")

    amends = {"before_delegate": frozenset({"priority"})}
    offender = make("offender", lambda ctx: Plugin(hooks=Hooks(before_delegate=hook)), hooks_amend=amends)
    async with serve(offender) as (app, client):
        await client.enable_plugin("offender")
        task = await client.delegate("work", required_capabilities=["none"])
        assert task.spec.priority == 3
        assert await app.kernel.state.get("offender", "seen") is None
        async with under_load(client) as failed:
            await switched_off(client)
        assert failed == []


async def test_a_hook_may_amend_only_what_it_declared(make: Make, serve: Serve) -> None:
    def hook(task: Delegating) -> None:
        task.amend(title="mine", priority=2)

    amends = {"before_delegate": frozenset({"title"})}
    offender = make("offender", lambda ctx: Plugin(hooks=Hooks(before_delegate=hook)), hooks_amend=amends)
    async with serve(offender, plugins__enabled=["offender"]) as (_, client):
        task = await client.delegate("work", required_capabilities=["none"])
        assert (task.spec.title, task.spec.priority) == ("", 3)
        (act,) = (await client.get_plugin("offender")).acts
        assert act.failure_count == 1


@pytest.mark.parametrize("offender", [RaisesBefore(), Hangs(), ClingsOn()], ids=kind)
async def test_a_closed_one_that_fails_lets_nothing_through_and_stays(
    make: Make, serve: Serve, offender: Interceptor
) -> None:
    closed = with_interceptor(make, offender, failure=Failure.CLOSED)
    async with serve(closed, plugins__enabled=["offender"], plugins__call_seconds=0.05) as (app, client):
        calls = [plain(client, task_id=f"task-{n}") for n in range(12)]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "plugin offender" in str(error.details())
        assert app.kernel.pool.queued == 0
        assert app.plugins.report("offender").state.value == "ENABLED"
        reading = dict(app.plugins.overview.probe())["plugin/offender"]
        assert "refused" in reading.reason


async def plain(client: Client, task_id: str) -> Any:
    """Delegate without the retries of a client."""
    spec = TaskSpec(type="work", required_capabilities=["none"])
    method: Any = grpc.aio.insecure_channel(client.target).unary_unary(
        "/agenthive.v1.OrchestratorService/DelegateTask",
        request_serializer=DelegateTaskRequest.SerializeToString,
        response_deserializer=DelegateTaskResponse.FromString,
    )
    return await method(DelegateTaskRequest(task_id=task_id, spec=spec), timeout=10)


async def test_a_closed_one_with_too_many_tasks_gets_no_more_and_its_calls_are_refused(
    make: Make, serve: Serve
) -> None:
    closed = with_interceptor(make, Leaks(), failure=Failure.CLOSED)
    async with serve(closed, plugins__enabled=["offender"], plugins__maximum_tasks=3) as (app, client):
        found = await asyncio.gather(*(plain(client, f"task-{n}") for n in range(8)), return_exceptions=True)
        assert sum(isinstance(each, grpc.aio.AioRpcError) for each in found) == 5
        assert app.kernel.pool.queued == 3
        assert app.plugins.report("offender").tasks == 3


async def test_a_closed_hook_that_fails_vetoes(make: Make, serve: Serve) -> None:
    def hook(task: Delegating) -> None:
        raise ValueError("broken")

    offender = make("offender", lambda ctx: Plugin(hooks=Hooks(before_delegate=hook)), failure=Failure.CLOSED)
    async with serve(offender, plugins__enabled=["offender"]) as (app, client):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await plain(client, "task-1")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert app.kernel.pool.queued == 0


async def test_a_veto_is_no_failure_and_names_the_plugin(make: Make, serve: Serve) -> None:
    def hook(task: Delegating) -> None:
        raise task.refuse("not on Sundays", day="sunday")

    plugin = make("offender", lambda ctx: Plugin(hooks=Hooks(before_delegate=hook)))
    async with serve(plugin, plugins__enabled=["offender"]) as (_, client):
        for _ in range(10):
            with pytest.raises(HiveError, match="not on Sundays") as caught:
                await client.delegate("work", required_capabilities=["none"])
            assert caught.value.reason == "VETOED"
            assert caught.value.metadata == {"plugin": "offender", "day": "sunday"}
        assert (await client.get_plugin("offender")).state == pb.PLUGIN_STATE_ENABLED


async def test_after_a_restart_what_failed_stays_off_until_it_is_enabled(
    make: Make, serve: Serve, tmp_path: Any
) -> None:
    offender = with_interceptor(make, RaisesBefore())
    async with serve(offender, data_dir=tmp_path) as (_, client):
        await client.enable_plugin("offender")
        async with under_load(client):
            await switched_off(client)
    async with serve(offender, data_dir=tmp_path) as (_, client):
        plugin = await client.get_plugin("offender")
        assert plugin.state == pb.PLUGIN_STATE_FAILED
        assert "RaisesBefore" in plugin.state_reason
        # Who looks passes the interceptor, too: some calls are fine with it.
        assert (await client.enable_plugin("offender")).state == pb.PLUGIN_STATE_ENABLED
