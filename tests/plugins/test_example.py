"""A plugin of a distribution of its own: installed by pip, found by its entry point, switched on, used."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from agenthive.client import Client
from agenthive.errors import InvalidArgument, Vetoed
from agenthive.v1 import plugin_service_pb2 as pb
from agenthive.v1.orchestrator_service_pb2 import STREAM_START_EARLIEST
from agenthive_server.testing.harness import ServerProcess, open_process
from agenthive_server.testing.plugin_suite import PluginCase, PluginSuite
from agenthive_server.testing.waiting import eventually

EXAMPLE = Path(__file__).parent / "example"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder the example is installed in, without a network and without touching the environment."""
    target = tmp_path_factory.mktemp("site")
    arguments = ["--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--quiet", "--target", str(target)]

    async def install() -> None:
        pip = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pip", "install", *arguments, str(EXAMPLE), stderr=asyncio.subprocess.PIPE
        )
        _, errors = await pip.communicate()
        assert pip.returncode == 0, errors.decode()

    asyncio.run(install())
    return target


class TestBudget(PluginSuite):
    @pytest.fixture
    def case(self, installed: Path, monkeypatch: pytest.MonkeyPatch) -> PluginCase:
        monkeypatch.syspath_prepend(str(installed))
        registration = importlib.import_module("agenthive_budget.plugin").registration
        return PluginCase(registration=registration, settings={"tasks_a_day": 5}, others={"tasks_a_day": 6})


async def delegate(client: Client, team: str) -> None:
    """Delegate a task of a team that nobody can take."""
    await client.delegate("work", required_capabilities=["none"], labels={"team": team})


async def budgets(target: str) -> bytes:
    """Return the answer of its service, as it is."""
    async with grpc.aio.insecure_channel(target) as channel:
        method: Any = channel.unary_unary("/agenthive_budget.v1.BudgetService/ListBudgets")
        answer: bytes = await method(b"")
        return answer


async def reports(client: Client) -> list[tuple[str, str]]:
    """Return what the plugin has told: kind and subject."""
    return [
        (event.plugin_reported.kind, event.plugin_reported.subject)
        async for event in client.events(start=STREAM_START_EARLIEST, follow=False)
        if event.WhichOneof("fact") == "plugin_reported"
    ]


async def use(server: ServerProcess, client: Client) -> None:
    """Switch it on, spend a budget, and look at all that tells of it."""
    (plugin,) = [each async for each in client.list_plugins() if each.name == "budget"]
    assert (plugin.state, plugin.summary) == (pb.PLUGIN_STATE_DISABLED, "How many tasks a team may delegate a day.")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await budgets(server.target)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "plugin budget" in str(caught.value.details())
    with pytest.raises(InvalidArgument):
        await client.configure_plugin("budget", {"tasks_a_day": -1})
    await client.configure_plugin("budget", {"tasks_a_day": 2, "teams": {"core": 100}})
    await client.enable_plugin("budget")
    for _ in range(2):
        await delegate(client, "web")
    with pytest.raises(Vetoed, match="team web has delegated its 2 tasks of today") as refused:
        await delegate(client, "web")
    assert refused.value.metadata == {"plugin": "budget", "team": "web"}
    await delegate(client, "core")
    assert b"\x0a\x03web\x10\x02\x18\x02" in await budgets(server.target)
    assert await eventually(lambda: reports(client)) == [("budget_nearly_spent", "web")]
    (metric,) = await client.metrics("agenthive_budget_refused")
    assert metric.value == 1
    kinds = {pb.PluginActKind.Name(act.kind).rpartition("_")[2] for act in (await client.get_plugin("budget")).acts}
    assert kinds == {"INTERCEPTOR", "HOOK", "HANDLER", "SERVICE", "TASK"}


async def test_it_is_found_by_its_entry_point_and_keeps_its_state_over_a_restart(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(installed))
    async with open_process(tmp_path / "data") as server:
        async with Client(server.target) as client:
            await use(server, client)
        await server.stop()
        await server.start()
        async with Client(server.target) as client:
            with pytest.raises(Vetoed):
                await delegate(client, "web")
            # The handler has seen its events once more or not; the team is told once.
            assert await reports(client) == [("budget_nearly_spent", "web")]
            await client.disable_plugin("budget")
            await delegate(client, "web")


def test_the_chain_that_is_shown_has_its_interceptor(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(installed))
    config = tmp_path / "hive.toml"
    config.write_text('[plugins]\nenabled = ["budget"]\n[plugins.budget]\ntasks_a_day = 3\n')
    for command, words in (
        ("show-chain", "OBSERVE    Refusals             budget"),
        ("check-config", '"warn_at": 0.8'),
    ):
        shown = subprocess.run(
            [sys.executable, "-m", "agenthive_server", command, "--config", str(config)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert words in shown.stdout
