"""Plugins on several replicas: what is switched on one is so on all, whoever else switches at the same moment."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from agenthive.client import Client
from agenthive.errors import HiveError, Unavailable
from agenthive.v1 import plugin_service_pb2 as pb
from agenthive_server.app import App
from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import Refused
from agenthive_server.kernel.health import Status
from agenthive_server.plugin.api import (
    Background,
    Call,
    Failure,
    Outcome,
    PermissionDenied,
    Plugin,
    PluginContext,
    Registration,
    Stage,
)
from agenthive_server.plugin.registry import Registry
from agenthive_server.plugin.standing import State
from agenthive_server.testing.harness import open_served
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.waiting import eventually

Make = Callable[..., Registration[Any]]
Both = tuple[tuple[App, Client], tuple[App, Client]]

ANYBODY = Caller(namespace="default")
_PLACES = itertools.count()


@pytest.fixture
def replicas(postgres: PostgresServer, tmp_path: Path) -> Callable[..., Any]:
    """Open two servers on one database, with the plugins each has installed; keys are settings of both."""

    @asynccontextmanager
    async def opened(
        here: list[Registration[Any]], there: list[Registration[Any]] | None = None, **settings: object
    ) -> AsyncIterator[Both]:
        settings["server__store"] = postgres.url(f"switches{next(_PLACES)}")
        async with AsyncExitStack() as stack:
            made = [
                await stack.enter_async_context(
                    open_served(tmp_path / str(number), registry=Registry(plugins), **settings)
                )
                for number, plugins in enumerate((here, here if there is None else there))
            ]
            yield made[0], made[1]

    return opened


def on(app: App, name: str, state: State = State.ENABLED, **config: object) -> bool:
    report = app.plugins.report(name)
    return report.state is state and all(report.config[key] == value for key, value in config.items())


async def becomes(app: App, name: str, state: State = State.ENABLED, **config: object) -> None:
    await eventually(partial(on, app, name, state, **config), limit=10)


class Guard:
    """Refuses every call."""

    stage = Stage.IDENTIFY

    def before(self, call: Call) -> None:
        raise PermissionDenied("no")

    def after(self, call: Call, outcome: Outcome) -> None: ...


async def test_a_switch_on_one_is_followed_by_the_other_and_known_to_whoever_asks_there(
    make: Make, replicas: Callable[..., Any]
) -> None:
    async with replicas([make("a")]) as ((one, client), (two, other)):
        await client.enable_plugin("a")
        # Whoever has the answer of one and asks the other is told the same.
        assert (await other.get_plugin("a")).state == pb.PLUGIN_STATE_ENABLED
        assert on(two, "a")
        await other.disable_plugin("a")
        assert (await client.get_plugin("a")).state == pb.PLUGIN_STATE_DISABLED
        await client.enable_plugin("a")
        # The event tells it to those nobody asks.
        await becomes(two, "a")
        await client.configure_plugin("a", {"level": 5})
        await becomes(two, "a", level=5)
        await other.configure_plugin("a", {"level": 6})
        await becomes(one, "a", level=6)
        assert one.plugins.report("a").revision == two.plugins.report("a").revision


async def test_what_no_event_told_of_is_followed_all_the_same(
    make: Make, replicas: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive_server.plugin.host.FIRST_LOOK", 0.2)
    monkeypatch.setattr("agenthive_server.plugin.host.PluginHost.heard", lambda *_: None)
    async with replicas([make("a")]) as ((_, client), (two, _)):
        await client.enable_plugin("a")
        await becomes(two, "a")


async def test_two_operators_at_two_replicas_end_with_one_outcome_that_both_of_them_see(
    make: Make, replicas: Callable[..., Any]
) -> None:
    plugins = [make("a"), make("b", requires=("a",))]
    async with replicas(plugins) as ((one, client), (two, other)):
        for level in range(1, 6):
            # Of settings none are lost, whoever was first; what requires and what is required never part.
            await asyncio.gather(
                one.plugins.configure(ANYBODY, "a", {"level": level}),
                two.plugins.enable(ANYBODY, "a"),
            )
            assert (await other.get_plugin("a")).config["level"] == level
            assert (await client.get_plugin("a")).state == pb.PLUGIN_STATE_ENABLED
            both = await asyncio.gather(
                one.plugins.disable(ANYBODY, "a"), two.plugins.enable(ANYBODY, "b"), return_exceptions=True
            )
            assert sum(isinstance(each, Refused) for each in both) == 1
            shown = [{each.name: each.state async for each in c.list_plugins()} for c in (client, other)]
            assert shown[0] == shown[1]
            assert shown[0]["a"] == shown[0]["b"] or shown[0]["b"] == pb.PLUGIN_STATE_DISABLED
            await two.plugins.disable(ANYBODY, "b")
            await two.plugins.disable(ANYBODY, "a")


async def test_one_that_failed_on_one_is_off_on_all_and_says_where_and_why(
    make: Make, replicas: Callable[..., Any]
) -> None:
    def acts(ctx: PluginContext[Any]) -> Plugin:
        class Bad(Guard):
            def before(self, call: Call) -> None:
                if call.namespace == "bad":
                    raise ValueError

        return Plugin(interceptors=(Bad(),))

    async with replicas([make("a", acts)], plugins__maximum_failures=2) as ((one, client), (two, other)):
        await client.enable_plugin("a")
        await becomes(two, "a")
        async with Client(f"127.0.0.1:{two.port}", namespace="bad") as bad:
            for _ in range(3):
                await bad.health()
        await becomes(two, "a", State.FAILED)
        await becomes(one, "a", State.FAILED)
        reason = one.plugins.report("a").reason
        assert reason == two.plugins.report("a").reason
        assert two.kernel.replicas.me in reason
        assert "ValueError" in reason
        await client.enable_plugin("a")
        await becomes(two, "a")
        assert (await other.get_plugin("a")).state_reason == ""


@pytest.mark.parametrize("overlaps", [True, False])
async def test_one_without_which_nothing_passes_refuses_where_it_cannot_be_opened_until_it_can(
    make: Make, replicas: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, overlaps: bool
) -> None:
    monkeypatch.setattr("agenthive_server.plugin.host.FIRST_LOOK", 0.2)
    broken = [True]

    def acts(ctx: PluginContext[Any]) -> Plugin:
        if broken[0] and ctx.config.level == 2:
            raise ValueError("no such key here")
        return Plugin()

    here = make("guard", failure=Failure.CLOSED, overlaps=overlaps)
    there = make("guard", acts, failure=Failure.CLOSED, overlaps=overlaps)
    async with replicas([here], [there]) as ((_, client), (two, other)):
        await client.configure_plugin("guard", {"level": 2})
        for _ in range(2):
            await client.enable_plugin("guard")
            await becomes(two, "guard", State.FAILED)
            with pytest.raises(Unavailable, match="cannot be opened on this server"):
                await other.delegate("any", request_id="")
            await client.delegate("any")
            report = dict(two.plugins.overview.probe())["plugin/guard"]
            assert report.status is Status.DOWN
            assert "no such key here" in report.reason
            # Switched off elsewhere, it stands in nobody's way.
            await client.disable_plugin("guard")
            await becomes(two, "guard", State.DISABLED)
            await other.delegate("any")
        await client.enable_plugin("guard")
        await becomes(two, "guard", State.FAILED)
        broken[0] = False
        await becomes(two, "guard")
        await other.delegate("any")
        # And other settings that it cannot take while it is on.
        broken[0] = True
        await client.configure_plugin("guard", {"level": 1})
        await becomes(two, "guard", level=1)
        await client.configure_plugin("guard", {"level": 2})
        await becomes(two, "guard", State.FAILED)
        with pytest.raises(Unavailable, match="cannot be opened on this server"):
            await other.delegate("any", request_id="")
        await client.configure_plugin("guard", {"level": 3})
        await becomes(two, "guard", level=3)
        await other.delegate("any")


async def test_one_without_which_nothing_passes_refuses_where_it_is_not_installed(
    make: Make, replicas: Callable[..., Any]
) -> None:
    async with replicas([make("guard", failure=Failure.CLOSED)], []) as ((_, client), (two, other)):
        await client.enable_plugin("guard")
        with pytest.raises(Unavailable, match="cannot be opened on this server"):
            await eventually(partial(_delegates_not, other))
        report = two.plugins.report("guard")
        assert (report.state, report.reason) == (State.FAILED, "plugin guard cannot be used: it is not installed")
        with pytest.raises(Refused, match="not installed"):
            await two.plugins.disable(ANYBODY, "guard")
        await client.disable_plugin("guard")
        await eventually(lambda: not two.plugins.reports())
        await other.delegate("any")


async def _delegates_not(client: Client) -> bool:
    await client.delegate("any", request_id="")
    return False


async def test_one_that_cannot_be_opened_elsewhere_is_missing_there_and_tried_again(
    make: Make, replicas: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive_server.plugin.host.FIRST_LOOK", 0.2)
    broken = [True]

    def acts(ctx: PluginContext[Any]) -> Plugin:
        if broken[0]:
            raise ValueError("no such folder here")
        return Plugin()

    async with replicas([make("a")], [make("a", acts)]) as ((one, client), (two, other)):
        await client.enable_plugin("a")
        await becomes(two, "a", State.FAILED)
        await other.delegate("any")
        # What is so here only is nobody else's affair.
        assert on(one, "a")
        broken[0] = False
        await becomes(two, "a")


async def test_what_a_server_needs_to_be_protected_stays_on_there_and_what_replaces_it_comes_first(
    make: Make, replicas: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make("old", lambda ctx: Plugin(protects=True), failure=Failure.CLOSED)
    new = make("new", lambda ctx: Plugin(interceptors=(Guard(),), protects=True), failure=Failure.CLOSED)
    async with replicas([old, new]) as ((one, client), (two, other)):
        monkeypatch.setattr(two.plugins._switches, "_exposed", lambda: True)
        await client.enable_plugin("old")
        await becomes(two, "old")
        await client.disable_plugin("old")
        await eventually(lambda: two.plugins.report("old").revision == one.plugins.report("old").revision)
        assert on(two, "old")
        await one.plugins.enable(ANYBODY, "new")
        await becomes(two, "old", State.DISABLED)
        assert on(two, "new")
        with pytest.raises(HiveError):
            await other.delegate("any", request_id="")


async def test_handlers_and_loops_are_where_one_replica_is_and_loops_for_everywhere_are_everywhere(
    make: Make, replicas: Callable[..., Any]
) -> None:
    running: set[tuple[str, int]] = set()

    def acts(number: int) -> Callable[[PluginContext[Any]], Plugin]:
        def loop(name: str) -> Callable[[], Any]:
            async def run() -> None:
                running.add((name, number))
                try:
                    await asyncio.Event().wait()
                finally:
                    running.discard((name, number))

            return run

        def made(ctx: PluginContext[Any]) -> Plugin:
            return Plugin(
                tasks=(Background("each", loop("each"), everywhere=True), Background("one", loop("one"))),
            )

        return made

    async with replicas([make("a", acts(1))], [make("a", acts(2))]) as ((one, client), (two, _)):
        await client.enable_plugin("a")
        await becomes(two, "a")
        await eventually(lambda: len(running) == 3)
        assert {("each", 1), ("each", 2)} < running
        (where,) = [number for name, number in running if name == "one"]
        leaving, staying = (one, 2) if where == 1 else (two, 1)
        await leaving.plugins.hand_over()
        await eventually(lambda: ("one", staying) in running)
        # What runs everywhere goes on until the server has answered everybody.
        assert running == {("each", 1), ("each", 2), ("one", staying)}
        await client.disable_plugin("a")
        await eventually(lambda: not running)
