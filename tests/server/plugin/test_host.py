"""Switching plugins on a running server, through its port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from agenthive.client import Client
from agenthive.errors import FailedPrecondition, InvalidArgument, NotFound, RevisionMismatch, Unavailable
from agenthive.v1 import plugin_service_pb2 as pb
from agenthive.v1.orchestrator_service_pb2 import STREAM_START_EARLIEST
from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.records import Kind
from agenthive_server.lifecycle import StartError
from agenthive_server.plugin.api import (
    Background,
    Call,
    Event,
    EventType,
    Failure,
    Hooks,
    Outcome,
    Plugin,
    PluginContext,
    Registration,
    Stage,
    Status,
)
from agenthive_server.plugin.registry import Broken, Registry
from agenthive_server.testing.faults import FaultyStore, no_fault
from agenthive_server.testing.harness import open_served
from agenthive_server.testing.waiting import eventually

if TYPE_CHECKING:
    from tests.server.plugin.conftest import Journal, Knobs

Make = Callable[..., Registration[Any]]
Serve = Callable[..., Any]

ANYBODY = Caller(namespace="default")


class Watch:
    """Writes down which calls it sees, with its level."""

    stage = Stage.OBSERVE

    def __init__(self, seen: list[str], level: int = 0) -> None:
        self.seen = seen
        self.level = level

    def before(self, call: Call) -> None:
        self.seen.append(f"{call.method.rpartition('/')[2]} {self.level}")

    def after(self, call: Call, outcome: Outcome) -> None:
        self.seen.append(f"{outcome.code} {self.level}")


async def plugin_events(client: Client) -> list[tuple[str, str]]:
    """Return what the log tells of plugins: the fact and the plugin."""
    found = []
    async for event in client.events(start=STREAM_START_EARLIEST, follow=False):
        fact = str(event.WhichOneof("fact"))
        if fact.startswith("plugin_"):
            found.append((fact, getattr(event, fact).plugin))
    return found


async def test_a_plugin_is_off_until_it_is_enabled_and_told_of_by_events(
    make: Make, serve: Serve, journal: Journal
) -> None:
    seen: list[str] = []
    watch = make("watch", lambda ctx: Plugin(interceptors=(Watch(seen, ctx.config.level),)))
    async with serve(watch) as (_, client):
        assert (await client.get_plugin("watch")).state == pb.PLUGIN_STATE_DISABLED
        assert (journal.lines, seen) == ([], [])
        plugin = await client.enable_plugin("watch")
        assert (plugin.state, plugin.revision) == (pb.PLUGIN_STATE_ENABLED, 1)
        await client.health()
        assert seen == ["HealthCheck 1", "OK 1"]
        (act,) = (await client.get_plugin("watch")).acts
        assert (act.kind, act.name, act.stage) == (pb.PLUGIN_ACT_KIND_INTERCEPTOR, "Watch", "OBSERVE")
        assert act.call_count == 2
        plugin = await client.disable_plugin("watch")
        assert (plugin.state, len(plugin.acts)) == (pb.PLUGIN_STATE_DISABLED, 0)
        seen.clear()
        await client.health()
        assert seen == []
        assert journal.lines == ["open watch 1", "close watch 1"]
        assert await plugin_events(client) == [("plugin_enabled", "watch"), ("plugin_disabled", "watch")]


async def test_settings_are_checked_shown_without_secrets_and_kept(make: Make, serve: Serve, journal: Journal) -> None:
    seen: list[str] = []
    watch = make("watch", lambda ctx: Plugin(interceptors=(Watch(seen, ctx.config.level),)))
    async with serve(watch) as (_, client):
        await client.enable_plugin("watch")
        plugin = await client.configure_plugin("watch", {"level": 3, "token": "hush"})
        assert dict(plugin.config) == {"level": 3, "name": "", "token": "***"}
        assert journal.lines == ["open watch 1", "open watch 3", "close watch 1"]
        seen.clear()
        await client.health()
        assert seen == ["HealthCheck 3", "OK 3"]
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"levle": 1}, "levle"),
            ({"level": 10}, "level"),
            ({"level": "x"}, "level"),
        ]
        for settings, name in wrong:
            with pytest.raises(InvalidArgument) as caught:
                await client.configure_plugin("watch", settings)
            assert [violation.field for violation in caught.value.field_violations] == [f"config.{name}"]
        # A secret that is given back as it was shown stays what it was.
        await client.configure_plugin("watch", {"level": 4, "token": "***"})
        assert journal.contexts["watch"].config.token == "hush"
        with pytest.raises(RevisionMismatch):
            await client.configure_plugin("watch", {}, revision=1)
        assert (await client.get_plugin("watch")).revision == 3


async def test_settings_of_one_that_is_off_count_when_it_is_enabled(make: Make, serve: Serve, journal: Journal) -> None:
    async with serve(make("watch")) as (_, client):
        plugin = await client.configure_plugin("watch", {"level": 7})
        assert (plugin.state, plugin.config["level"], journal.lines) == (pb.PLUGIN_STATE_DISABLED, 7, [])
        await client.enable_plugin("watch")
        assert journal.lines == ["open watch 7"]


async def test_what_was_switched_counts_after_a_restart_and_not_the_settings_file(
    make: Make, serve: Serve, journal: Journal, tmp_path: Path
) -> None:
    plugins = (make("one"), make("two"))
    first = {"plugins__enabled": ["one"], "plugins__one__level": 2}
    async with serve(*plugins, data_dir=tmp_path, **first) as (_, client):
        assert journal.lines == ["open one 2"]
        await client.disable_plugin("one")
        await client.configure_plugin("two", {"level": 5})
        await client.enable_plugin("two")
    assert journal.lines[-1] == "close two 5"
    journal.lines.clear()
    async with serve(*plugins, data_dir=tmp_path, **first) as (_, client):
        assert journal.lines == ["open two 5"]
        states = {plugin.name: plugin.state async for plugin in client.list_plugins()}
        assert states == {"one": pb.PLUGIN_STATE_DISABLED, "two": pb.PLUGIN_STATE_ENABLED}


async def test_plugins_open_in_order_and_close_in_reverse(make: Make, serve: Serve, journal: Journal) -> None:
    plugins = (make("a", after=("c",)), make("b", requires=("a",)), make("c"))
    async with serve(*plugins, plugins__enabled=["a", "b", "c"]):
        assert journal.lines == ["open c 1", "open a 1", "open b 1"]
        journal.lines.clear()
    assert journal.lines == ["close b 1", "close a 1", "close c 1"]


async def test_the_chain_is_always_in_the_declared_order_whoever_came_last(make: Make, serve: Serve) -> None:
    seen: list[str] = []

    def watching(level: int) -> Callable[[PluginContext[Knobs]], Plugin]:
        return lambda ctx: Plugin(interceptors=(Watch(seen, level),))

    plugins = (make("a", watching(1), after=("b",)), make("b", watching(2)), make("c", watching(3), after=("a",)))
    async with serve(*plugins) as (_, client):
        for name in ("c", "a", "b"):
            await client.enable_plugin(name)
        seen.clear()
        await client.health()
        assert seen == ["HealthCheck 2", "HealthCheck 1", "HealthCheck 3", "OK 3", "OK 1", "OK 2"]


async def test_what_requires_and_conflicts_is_refused_with_the_names(make: Make, serve: Serve) -> None:
    amends = {"before_delegate": frozenset({"priority"})}
    plugins = (make("a"), make("b", requires=("a",)), make("x", hooks_amend=amends), make("y", hooks_amend=amends))
    async with serve(*plugins) as (_, client):
        with pytest.raises(FailedPrecondition, match="enable a first") as caught:
            await client.enable_plugin("b")
        assert caught.value.reason == "PLUGIN_CONFLICT"
        await client.enable_plugin("a")
        await client.enable_plugin("b")
        with pytest.raises(FailedPrecondition, match="disable b first"):
            await client.disable_plugin("a")
        await client.enable_plugin("x")
        with pytest.raises(FailedPrecondition, match="plugins y and x both amend priority"):
            await client.enable_plugin("y")
        with pytest.raises(NotFound):
            await client.enable_plugin("z")


@asynccontextmanager
async def does_not_open(ctx: PluginContext[Any]) -> AsyncIterator[Plugin]:
    if ctx.name:
        raise OSError("no such place")
    yield Plugin()


@asynccontextmanager
async def opens_never(ctx: PluginContext[Any]) -> AsyncIterator[Plugin]:
    await asyncio.Event().wait()
    yield Plugin()


async def test_one_that_does_not_open_changes_nothing_and_says_why(make: Make, serve: Serve) -> None:
    broken = Registration("broken", open=does_not_open)
    slow = Registration("slow", open=opens_never)
    async with serve(broken, slow, plugins__open_seconds=0.05) as (_, client):
        with pytest.raises(FailedPrecondition, match="no such place") as caught:
            await client.enable_plugin("broken")
        assert caught.value.reason == "PLUGIN_CANNOT_OPEN"
        with pytest.raises(FailedPrecondition, match=r"did not open within 0\.05 seconds"):
            await client.enable_plugin("slow")
        assert {p.state async for p in client.list_plugins()} == {pb.PLUGIN_STATE_DISABLED}
        assert await plugin_events(client) == []


async def test_other_settings_that_do_not_open_leave_the_present_ones_in_effect(
    make: Make, serve: Serve, journal: Journal
) -> None:
    def acts(ctx: PluginContext[Knobs]) -> Plugin:
        if ctx.config.level > 5:
            raise ValueError("too high")
        return Plugin()

    for overlaps in (True, False):
        async with serve(make("p", acts, overlaps=overlaps), plugins__enabled=["p"]) as (_, client):
            journal.lines.clear()
            with pytest.raises(FailedPrecondition, match="too high"):
                await client.configure_plugin("p", {"level": 6})
            plugin = await client.get_plugin("p")
            assert (plugin.state, plugin.config["level"]) == (pb.PLUGIN_STATE_ENABLED, 1)
            inside = ["open p 6", "close p 6"]
            assert journal.lines == (inside if overlaps else ["close p 1", *inside, "open p 1"])


async def test_one_that_must_not_overlap_is_closed_before_it_is_opened_anew(
    make: Make, serve: Serve, journal: Journal
) -> None:
    async with serve(make("port", overlaps=False), plugins__enabled=["port"]) as (_, client):
        await client.configure_plugin("port", {"level": 2})
        assert journal.lines == ["open port 1", "close port 1", "open port 2"]


async def test_a_required_one_stops_the_start_and_an_optional_one_is_degraded(serve: Serve, tmp_path: Path) -> None:
    broken = Registration("broken", open=does_not_open)
    with pytest.raises(StartError, match="no such place"):
        async with serve(broken, plugins__broken__required=True):
            pass
    async with serve(broken, plugins__enabled=["broken"]) as (_, client):
        report = await client.health()
        (component,) = [each for each in report.components if each.name == "plugin/broken"]
        assert "no such place" in component.reason
        assert (await client.get_plugin("broken")).state == pb.PLUGIN_STATE_FAILED


async def test_what_the_settings_want_and_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    unreadable = Registry((), [Broken("guard", "ModuleNotFoundError: no such module")])
    with pytest.raises(StartError, match="plugin guard cannot be used: ModuleNotFoundError"):
        async with open_served(tmp_path, registry=unreadable, plugins__enabled=["guard"]):
            pass


@pytest.mark.parametrize("configured", [False, True])
async def test_one_that_lets_nothing_pass_is_missed_although_nobody_asked_for_it_in_the_settings(
    make: Make, serve: Serve, tmp_path: Path, configured: bool
) -> None:
    async with serve(make("guard", failure=Failure.CLOSED), make("open"), data_dir=tmp_path) as (_, client):
        await client.enable_plugin("guard")
        await client.enable_plugin("open")
        if configured:
            await client.configure_plugin("guard", {"level": 2})
    with pytest.raises(StartError, match="plugin guard cannot be used: it is not installed"):
        async with serve(data_dir=tmp_path):
            pass
    async with serve(make("guard", failure=Failure.CLOSED), data_dir=tmp_path) as (_, client):
        await client.disable_plugin("guard")
    async with serve(data_dir=tmp_path) as (_, client):
        assert (await client.health()).status


async def test_a_required_one_cannot_be_switched_off(make: Make, serve: Serve) -> None:
    async with serve(make("must"), plugins__must__required=True) as (_, client):
        plugin = await client.get_plugin("must")
        assert (plugin.state, plugin.required) == (pb.PLUGIN_STATE_ENABLED, True)
        with pytest.raises(FailedPrecondition, match="require plugin must"):
            await client.disable_plugin("must")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"plugins__enabled": ["gone"]}, "plugins.gone: no such plugin is installed; there are here"),
        ({"plugins__gone__level": 1}, "plugins.gone: no such plugin"),
        ({"plugins__here__levle": 1}, "plugins.here.levle: plugin here has no such setting; known are level, name"),
        ({"plugins__here__level": 11}, "plugins.here.level: Expected `int` <= 9"),
        ({"plugins__here__required": 1}, "plugins.here.required: expected true or false"),
    ],
)
async def test_settings_of_the_file_are_checked_before_anything_is_opened(
    make: Make, serve: Serve, settings: dict[str, object], sentence: str
) -> None:
    with pytest.raises(StartError, match=sentence):
        async with serve(make("here"), **settings):
            pass


async def test_a_repeat_with_its_request_id_has_one_effect(make: Make, serve: Serve, journal: Journal) -> None:
    async with serve(make("p")) as (_, client):
        await client.enable_plugin("p", request_id="r1")
        await client.disable_plugin("p", request_id="r2")
        # The same call again, late: it is answered as things stand, and changes nothing.
        assert (await client.enable_plugin("p", request_id="r1")).state == pb.PLUGIN_STATE_DISABLED
        assert (await client.get_plugin("p")).state == pb.PLUGIN_STATE_DISABLED
        assert len(await plugin_events(client)) == 2


async def test_a_caller_that_goes_away_takes_nothing_back(make: Make, serve: Serve) -> None:
    gate = asyncio.Event()

    @asynccontextmanager
    async def slow(ctx: PluginContext[Any]) -> AsyncIterator[Plugin]:
        await gate.wait()
        yield Plugin()

    async with serve(Registration("slow", open=slow)) as (app, client):
        asked = asyncio.create_task(client.enable_plugin("slow"))
        await eventually(lambda: app.plugins._work, what="the switch is under way")
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        gate.set()

        async def on() -> bool:
            return bool((await client.get_plugin("slow")).state == pb.PLUGIN_STATE_ENABLED)

        await eventually(on)


async def test_health_tells_how_a_plugin_says_it_is(make: Make, serve: Serve, journal: Journal) -> None:
    async with serve(make("p"), make("q"), plugins__enabled=["p"]) as (_, client):
        journal.contexts["p"].report(Status.DEGRADED, "the webhook does not answer")
        report = await client.health()
        found = {each.name: each.reason for each in report.components if each.name.startswith("plugin/")}
        assert found == {"plugin/p": "the webhook does not answer"}


async def test_loops_run_while_it_is_on_and_are_started_again_when_they_fail(make: Make, serve: Serve) -> None:
    turns: list[int] = []
    ended: list[str] = []

    def acts(ctx: PluginContext[Knobs]) -> Plugin:
        async def run() -> None:
            turns.append(ctx.config.level)
            if len(turns) == 1:
                raise RuntimeError("once")
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("ended")

        return Plugin(tasks=(Background("turn", run),))

    async with serve(make("p", acts), plugins__enabled=["p"]) as (_, client):
        await eventually(lambda: len(turns) == 2)
        (act,) = (await client.get_plugin("p")).acts
        assert (act.name, act.call_count, act.failure_count) == ("turn", 2, 1)
        await client.configure_plugin("p", {"level": 2})
        await eventually(lambda: turns == [1, 1, 2])
        assert ended == ["ended"]
        await client.disable_plugin("p")
        assert ended == ["ended", "ended"]


async def test_a_plugin_that_ends_by_itself_is_off_and_named(serve: Serve) -> None:
    @asynccontextmanager
    async def fragile(ctx: PluginContext[Any]) -> AsyncIterator[Plugin]:
        async with asyncio.TaskGroup() as group:

            async def fall() -> None:
                raise RuntimeError("fell")

            group.create_task(fall())
            yield Plugin()

    async with serve(Registration("fragile", open=fragile), plugins__enabled=["fragile"]) as (_, client):

        async def failed() -> pb.Plugin | None:
            plugin: pb.Plugin = await client.get_plugin("fragile")
            return plugin if plugin.state == pb.PLUGIN_STATE_FAILED else None

        plugin = await eventually(failed)
        assert plugin is not None
        assert "ended by itself" in plugin.state_reason


async def test_one_that_protects_cannot_be_switched_off_where_others_reach_the_server(make: Make, serve: Serve) -> None:
    guard = make("guard", lambda ctx: Plugin(protects=True), failure=Failure.CLOSED)
    async with serve(guard, plugins__enabled=["guard"]) as (app, client):
        assert app.plugins.protected
        app.plugins._switches._exposed = lambda: True
        with pytest.raises(FailedPrecondition, match="protects this server"):
            await client.disable_plugin("guard")


async def test_an_async_hook_is_refused_when_it_is_opened(make: Make, serve: Serve) -> None:
    async def hook(proposal: object) -> None:
        """Wait, which a hook may not."""

    plugin = make("p", lambda ctx: Plugin(hooks=Hooks(before_spawn=hook)))  # type: ignore[arg-type]  # the mistake
    async with serve(plugin) as (_, client):
        with pytest.raises(FailedPrecondition, match="before_spawn is async"):
            await client.enable_plugin("p")


async def test_a_server_that_stops_takes_no_switch_any_more(make: Make, serve: Serve) -> None:
    async with serve(make("p")) as (app, client):
        await app.plugins.close()
        with pytest.raises((Unavailable, FailedPrecondition)):
            await client.enable_plugin("p", timeout=2)


async def test_a_plugin_has_a_folder_a_clock_ids_and_a_view_of_the_server(
    make: Make, serve: Serve, journal: Journal, tmp_path: Path
) -> None:
    async with serve(make("p"), plugins__enabled=["p"]) as (_, client):
        ctx = journal.contexts["p"]
        assert ctx.data_dir == tmp_path / "plugins" / "p"
        assert ctx.data_dir.is_dir()
        assert ctx.new_id() != ctx.new_id()
        await client.delegate("nobody", required_capabilities=["none"])
        reading = ctx.vitals()
        assert (reading.queue_depth, dict(reading.open_tasks)) == (1, {"QUEUED": 1})
        assert reading.resident_bytes > 10_000_000
        assert reading.memory_bytes > reading.resident_bytes
        assert reading.cpu_seconds > 0
        assert reading.calls["/agenthive.v1.OrchestratorService/DelegateTask", "OK"] == 1
        assert {"store", "plugin/p"} <= {component.name for component in reading.components}
        await ctx.publish("alert_raised", "too warm", subject="room", attributes={"celsius": "41"})
        assert await plugin_events(client) == [("plugin_reported", "p")]
        await ctx.state.put("k", b"v")
        assert (await ctx.state.get("k")).value == b"v"  # type: ignore[union-attr]  # it is there


async def test_without_the_store_nothing_is_switched(make: Make, serve: Serve, journal: Journal) -> None:
    async with serve(make("on"), make("off"), plugins__enabled=["on"]) as (app, _):
        journal.lines.clear()
        faults = FaultyStore(app.store)
        app.committer._store = faults

        async def down(group: Sequence[ChangeSet]) -> None:
            raise StoreUnavailable("the disk is gone")

        faults.before = down
        for switch in (
            app.plugins.enable(ANYBODY, "off"),
            app.plugins.disable(ANYBODY, "on"),
            app.plugins.configure(ANYBODY, "on", {"level": 2}),
        ):
            with pytest.raises(StoreUnavailable):
                await switch
        assert [(report.name, report.state.value) for report in app.plugins.reports()] == [
            ("off", "DISABLED"),
            ("on", "ENABLED"),
        ]
        assert journal.lines == ["open off 1", "close off 1", "open on 2", "close on 2"]
        assert app.plugins.report("on").config["level"] == 1


async def test_handlers_begin_when_the_store_is_back(make: Make, serve: Serve) -> None:
    seen: list[str] = []

    async def handle(event: Event) -> None:
        seen.append(event.task_id)

    plugin = make("p", lambda ctx: Plugin(handlers={EventType.TASK_DELEGATED: handle}))
    async with serve(plugin) as (app, client):
        faults = FaultyStore(app.store)
        app.committer._store = faults

        async def no_cursors(group: Sequence[ChangeSet]) -> None:
            if any(kind is Kind.CURSOR for changes in group for kind, _ in changes.puts):
                raise StoreUnavailable("not now")

        faults.before = no_cursors
        await client.enable_plugin("p")
        faults.before = no_fault
        await eventually(lambda: "p" in app.handlers._followers)
        await client.delegate("work", task_id="t-1", required_capabilities=["none"])
        await eventually(lambda: seen == ["t-1"])


async def test_plugins_are_told_of_in_the_metrics(make: Make, serve: Serve, journal: Journal) -> None:
    seen: list[str] = []
    async with serve(make("w-1", lambda ctx: Plugin(interceptors=(Watch(seen),)))) as (_, client):
        for _ in range(2):
            await client.enable_plugin("w-1")
            journal.contexts["w-1"].metrics.counter("things").add()
            await client.health()
            await client.disable_plugin("w-1")
        found = {metric.name: metric.value for metric in await client.metrics("agenthive_plugin_")}
        # Counters never go back, whatever is switched.
        assert found["agenthive_plugin_calls_total"] >= 4
        assert found["agenthive_plugin_enabled"] == 0
        await client.enable_plugin("w-1")
        (things,) = await client.metrics("agenthive_w_1_things")
        assert things.value == 2
