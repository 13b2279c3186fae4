"""A fleet file becomes agents, at the first start and at every later one."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agenthive.v1 import agent_pb2
from agenthive_server.fleet import muster, spec_of
from agenthive_server.kernel.agents import AgentState, RestartMode
from agenthive_server.settings import FleetAgent
from agenthive_server.testing.hive import NAMESPACE, Hive, open_hive

ONE = FleetAgent(id="one", command=["{python}", "{config_dir}/agent.py"], capabilities=["count"], mode="agent")


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


def test_what_a_fleet_file_says_is_what_the_agent_should_be(tmp_path: Path) -> None:
    entry = FleetAgent(id="one", command=["{python}", "{config_dir}/a.py"], environment={"HOME_OF": "{config_dir}"})
    spec = spec_of(entry, tmp_path)
    driver = agent_pb2.ProcessDriver.FromString(spec.driver_config)
    assert list(driver.command) == [sys.executable, f"{tmp_path}/a.py"]
    assert [(each.name, each.value) for each in driver.environment] == [("HOME_OF", str(tmp_path))]
    assert (spec.driver, spec.restart.mode) == ("process", RestartMode.ON_FAILURE)


async def test_agents_of_the_file_are_recorded_once(hive: Hive, tmp_path: Path) -> None:
    await muster(hive.kernel.agents, [ONE], tmp_path)
    await muster(hive.kernel.agents, [ONE], tmp_path)
    agent = await hive.kernel.agents.get(NAMESPACE, "one")
    assert (agent.state, agent.start_epoch, agent.spec.capabilities) == (AgentState.STARTING, 1, ("count",))


async def test_an_agent_follows_the_file_and_starts_again_when_it_had_ended(hive: Hive, tmp_path: Path) -> None:
    await muster(hive.kernel.agents, [ONE], tmp_path)
    await hive.kernel.agents.shutdown(hive.caller(), "one", "enough", None)
    await muster(hive.kernel.agents, [FleetAgent(id="one", command=["cat"], slots=3)], tmp_path)
    agent = await hive.kernel.agents.get(NAMESPACE, "one")
    assert (agent.state, agent.spec.slots) == (AgentState.STARTING, 3)
