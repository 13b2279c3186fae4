"""The suite for the scripted driver, and what only a script can do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agenthive.v1 import agent_pb2
from agenthive_server.runner.drivers.scripted import ScriptedDriver
from agenthive_server.runner.launch import Launcher
from agenthive_server.testing.driver_stage import DEADLINE, Stage
from agenthive_server.testing.driver_suite import DriverCase, DriverSuite
from google.protobuf import duration_pb2


def script(**fields: object) -> agent_pb2.AgentSpec:
    return agent_pb2.AgentSpec(scripted=agent_pb2.ScriptedDriver(**fields))  # type: ignore[arg-type]


def moment() -> duration_pb2.Duration:
    return duration_pb2.Duration(nanos=10_000_000)


class TestScriptedDriver(DriverSuite):
    @pytest.fixture
    def case(self) -> DriverCase:
        return DriverCase(
            driver=ScriptedDriver(Launcher(patience=0.1)),
            works=script(task_time=moment()),
            fails=script(task_failure="as the script says"),
            hangs=script(hang=True, ignore_stop=True),
            does_not_start=script(start_failure="It was told not to."),
            ends=script(exit_after=moment(), exit_code=3),
        )


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(ScriptedDriver(Launcher(patience=0.1)), tmp_path)
    yield stage
    await stage.close()


async def test_it_says_that_it_is_scripted_wherever_it_appears(stage: Stage) -> None:
    assert "scripted" in stage.driver.fingerprint().detail
    handle = await stage.start(script())
    job, report = stage.begin(handle)
    result = (await job).result
    assert result is not None
    assert json.loads(result.data) == {"scripted": True, "type": "probe", "input": {"n": 1}}
    assert b"scripted" in report.content
    assert b"scripted" in stage.driver.logs(handle)


async def test_it_is_ready_after_its_time(stage: Stage) -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    await stage.start(script(ready_after=moment()))
    assert loop.time() - before >= 0.01


async def test_idle_agents_cost_no_task(stage: Stage) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(100):
        await stage.start(script(exit_after=duration_pb2.Duration(seconds=3600)))
    assert len(asyncio.all_tasks()) == before


async def test_an_agent_that_ends_takes_its_tasks_along(stage: Stage) -> None:
    job, _ = stage.begin(await stage.start(script(hang=True, exit_after=moment(), exit_code=1)))
    outcome = await asyncio.wait_for(job, DEADLINE)
    assert outcome.error is not None
    assert outcome.error.reason == "AGENT_ENDED"
