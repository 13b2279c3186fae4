"""What every plugin must survive. A test module subclasses `PluginSuite` and gives it a plugin and settings.

class TestMyPlugin(PluginSuite):
    @pytest.fixture
    def case(self) -> PluginCase:
        return PluginCase(registration, settings={"limit": 3}, others={"limit": 4})
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agenthive.client import Client
from agenthive.errors import HiveError

from agenthive_server.app import App
from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.health import Status
from agenthive_server.plugin.api import Registration
from agenthive_server.plugin.cell import Cell
from agenthive_server.plugin.instance import Instance
from agenthive_server.plugin.registry import Registry
from agenthive_server.plugin.standing import State
from agenthive_server.testing.harness import open_app
from agenthive_server.testing.waiting import eventually

ANYBODY = Caller(namespace="default", principal="suite")
TIMES = 200

HEAVY = (
    "aiohttp", "cryptography", "http.client", "httpx", "jwt", "numpy", "pandas", "prometheus_client", "starlette",
    "urllib.request", "uvicorn",
)  # fmt: skip
"""What a plugin that is off must not cost."""


async def as_anybody(app: App) -> Client:
    """Return a client that shows nothing."""
    return Client(f"127.0.0.1:{app.port}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginCase:
    """A plugin, and what it is opened with."""

    registration: Registration[Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)
    """Other settings it can be opened with."""
    needs: tuple[Registration[Any], ...] = ()
    """The plugins it requires."""
    server: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the server it needs, by dotted name with `__` for the dot."""
    client: Callable[[App], Awaitable[Client]] = as_anybody
    """Makes a client whose calls the plugin lets through while it is on."""


class Load:
    """Calls that are made all the while; `failed` holds those that should not have failed."""

    def __init__(self) -> None:
        self.made = 0
        self.failed: list[BaseException] = []


class PluginSuite:
    """The promises of a plugin, one test each."""

    @pytest.fixture
    def case(self) -> PluginCase:
        """The plugin under test; every subclass has its own."""
        raise NotImplementedError

    @pytest.fixture
    async def app(self, case: PluginCase, tmp_path: Path) -> AsyncIterator[App]:
        """A server that has the plugin installed, with everything it requires switched on."""
        async with open_case(case, tmp_path) as app:
            yield app

    def test_its_record_makes_sense(self, case: PluginCase) -> None:
        registry = Registry([case.registration, *case.needs])
        assert registry.broken == {}
        assert case.registration.summary

    def test_it_costs_next_to_nothing_while_it_is_off(self, case: PluginCase) -> None:
        module = case.registration.open.__module__
        program = (
            "import sys, importlib\n"
            "import agenthive_server.plugin.api\n"
            f"sys.path[:0] = {sys.path!r}\n"
            f"importlib.import_module({module!r})\n"
            f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
        )
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "[]"

    async def test_a_setting_nobody_knows_is_refused_and_named(self, case: PluginCase, app: App) -> None:
        name = case.registration.name
        for state in ("off", "on"):
            with pytest.raises(BadRequest) as refused:
                await app.plugins.configure(ANYBODY, name, {**case.settings, "no_such_setting": 1})
            assert refused.value.field == "config.no_such_setting", state
            await app.plugins.enable(ANYBODY, name)
        assert app.plugins.report(name).state is State.ENABLED

    async def test_its_services_are_there_while_it_is_on_and_only_then(self, case: PluginCase, app: App) -> None:
        services = set(case.registration.services)
        assert not services & app.adapter.services
        assert {app.board.find(service) for service in services} <= {False}
        await app.plugins.enable(ANYBODY, case.registration.name)
        assert services <= app.adapter.services
        assert {app.board.find(service) for service in services} <= {True}
        await app.plugins.disable(ANYBODY, case.registration.name)
        assert not services & app.adapter.services

    async def test_calls_go_on_while_it_is_on_and_it_fails_at_none(self, case: PluginCase, app: App) -> None:
        await app.plugins.enable(ANYBODY, case.registration.name)
        async with calling(case, app) as load:
            await turns(load, 50)
        assert load.failed == []
        report = app.plugins.report(case.registration.name)
        assert (report.state, [act for act in report.acts if act.failures]) == (State.ENABLED, [])
        reading = dict(app.plugins.overview.probe())[f"plugin/{case.registration.name}"]
        assert reading.status is not Status.DOWN

    async def test_other_settings_are_taken_while_calls_go_on(self, case: PluginCase, app: App) -> None:
        name = case.registration.name
        await app.plugins.enable(ANYBODY, name)
        async with calling(case, app) as load:
            for raw in (case.others, case.settings):
                await app.plugins.configure(ANYBODY, name, dict(raw))
                await turns(load, 10)
        assert load.failed == []
        assert app.plugins.report(name).state is State.ENABLED

    async def test_a_caller_that_goes_away_harms_nobody(self, case: PluginCase, app: App) -> None:
        await app.plugins.enable(ANYBODY, case.registration.name)
        client = await case.client(app)
        async with client:
            for delay in (0.0, 0.0005, 0.001, 0.002):
                call = asyncio.ensure_future(client.delegate("work", required_capabilities=["nobody"]))
                await asyncio.wait({call}, timeout=delay)
                call.cancel()
                with suppress(asyncio.CancelledError, HiveError):
                    await call
        report = app.plugins.report(case.registration.name)
        assert (report.state, [act for act in report.acts if act.failures]) == (State.ENABLED, [])

    async def test_switched_two_hundred_times_it_leaves_nothing(self, case: PluginCase, app: App) -> None:
        name = case.registration.name
        await app.plugins.enable(ANYBODY, name)
        await app.plugins.disable(ANYBODY, name)
        before = left_over(app)
        for turn in range(TIMES):
            await app.plugins.enable(ANYBODY, name)
            await app.plugins.configure(ANYBODY, name, dict(case.others if turn % 2 else case.settings))
            await app.plugins.disable(ANYBODY, name)
        # Other parts of the server have a task now and then: what a plugin has left would stay.
        await eventually(lambda: left_over(app) == before, limit=5.0, what=f"as before: {before}")

    async def test_it_stops_with_the_server_while_calls_are_made(self, case: PluginCase, tmp_path: Path) -> None:
        threads = threading.active_count()
        async with open_case(case, tmp_path, enabled=True) as app:
            client = await case.client(app)
            calls = [asyncio.ensure_future(client.health(timeout=5)) for _ in range(20)]
            await asyncio.wait(calls, timeout=0.001)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await client.close()
        assert app.plugins.reports()[0].tasks == 0
        assert threading.active_count() <= threads + 2

    async def test_it_is_on_again_after_a_restart(self, case: PluginCase, tmp_path: Path) -> None:
        name = case.registration.name
        async with open_case(case, tmp_path, keep=True) as app:
            await app.plugins.enable(ANYBODY, name)
        async with open_case(case, tmp_path, keep=True) as app:
            assert app.plugins.report(name).state is State.ENABLED
            async with calling(case, app) as load:
                await turns(load, 5)
            assert load.failed == []


@asynccontextmanager
async def open_case(case: PluginCase, folder: Path, *, enabled: bool = False, keep: bool = False) -> AsyncIterator[App]:
    """Run a server that has the plugin installed; with `keep` what it stores outlives it."""
    name, settings = case.registration.name, dict(case.server)
    on = [each.name for each in case.needs] + ([name] if enabled else [])
    settings |= {f"plugins__{name}__{key}": value for key, value in case.settings.items()}
    settings["server__data_dir"] = str(folder)
    registry = Registry([case.registration, *case.needs])
    async with open_app(folder if keep else None, registry=registry, plugins__enabled=on, **settings) as app:
        yield app


@asynccontextmanager
async def calling(case: PluginCase, app: App, callers: int = 4) -> AsyncIterator[Load]:
    """Make calls until the block is left."""
    load, stop = Load(), asyncio.Event()

    async def call(client: Client) -> None:
        while not stop.is_set():
            try:
                await client.delegate("work", required_capabilities=["nobody"])
                await client.health()
            except HiveError as error:
                load.failed.append(error)
            load.made += 1

    async with await case.client(app) as client:
        running = [asyncio.create_task(call(client)) for _ in range(callers)]
        try:
            yield load
        finally:
            stop.set()
            await asyncio.gather(*running)


async def turns(load: Load, count: int) -> None:
    """Let so many more calls be made."""
    end = load.made + count
    while load.made < end:  # noqa: ASYNC110 - whoever calls rings no bell
        await asyncio.sleep(0.001)


def left_over(app: App) -> dict[str, int]:
    """Count what a plugin that is off must not leave."""
    gc.collect()
    found = gc.get_objects()
    return {
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "instances": sum(isinstance(each, Instance) for each in found),
        "cells": sum(isinstance(each, Cell) for each in found),
        "interceptors": len(app.switch.current.entries),
        "handlers": len(app.handlers._followers),
        "services": len(app.adapter.services),
    }
