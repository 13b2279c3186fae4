"""The suite for both modes of the process driver; what is special to a mode is tested beside its module."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agenthive.v1 import agent_pb2
from agenthive_server.runner.driver import StartFailed
from agenthive_server.runner.drivers.process import ProcessDriver
from agenthive_server.runner.launch import Launcher
from agenthive_server.testing.driver_stage import Stage
from agenthive_server.testing.driver_suite import DriverCase, DriverSuite

WORKS = """
import json, sys
task = json.loads(sys.stdin.readline())
print("working")
print(json.dumps({"progress": 0.5, "text": "half way"}))
print(json.dumps({"result": task["input"]}))
"""
HANGS = """
import signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
print("hanging", flush=True)
while True:
    time.sleep(60)
"""
AGENT = """
import json, signal, sys, time
kind = sys.argv[1]
if kind == "hangs":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
def say(**line):
    print(json.dumps(line), flush=True)
say(ready=True)
if kind == "ends":
    sys.exit(3)
for line in sys.stdin:
    task = json.loads(line)
    if "task_id" not in task or "control" in task:
        continue
    about = {"task_id": task["task_id"]}
    say(output="working\\n", **about)
    while kind == "hangs":
        time.sleep(60)
    say(progress=0.5, text="half way", **about)
    if kind == "fails":
        say(error={"class": "TOOL", "message": "it went wrong"}, **about)
    else:
        say(result=task["input"], **about)
while kind == "hangs":
    time.sleep(60)
"""


def python(code: str, *arguments: str, mode: int = agent_pb2.PROCESS_MODE_TASK) -> agent_pb2.AgentSpec:
    command = [sys.executable, "-I", "-S", "-c", code, *arguments]
    return agent_pb2.AgentSpec(process=agent_pb2.ProcessDriver(command=command, mode=mode))  # type: ignore[arg-type]


def command(*words: str, **fields: object) -> agent_pb2.AgentSpec:
    return agent_pb2.AgentSpec(process=agent_pb2.ProcessDriver(command=words, **fields))  # type: ignore[arg-type]


class TestTaskMode(DriverSuite):
    @pytest.fixture
    def case(self) -> DriverCase:
        return DriverCase(
            driver=ProcessDriver(Launcher(patience=0.2)),
            works=python(WORKS),
            fails=command("sh", "-c", "echo it went wrong >&2; exit 1"),
            hangs=python(HANGS),
            does_not_start=command("no-such-command-anywhere"),
        )


class TestAgentMode(DriverSuite):
    @pytest.fixture
    def case(self) -> DriverCase:
        def agent(kind: str) -> agent_pb2.AgentSpec:
            return python(AGENT, kind, mode=agent_pb2.PROCESS_MODE_AGENT)

        return DriverCase(
            driver=ProcessDriver(Launcher(patience=0.2)),
            works=agent("works"),
            fails=agent("fails"),
            hangs=agent("hangs"),
            does_not_start=command("sh", "-c", "echo broken; exit 1", mode=agent_pb2.PROCESS_MODE_AGENT),
            ends=agent("ends"),
            ends_with_its_task=True,
        )


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(ProcessDriver(Launcher(patience=0.2)), tmp_path)
    yield stage
    await stage.close()


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (command(), "empty"),
        (command("no-such-command-anywhere"), "was not found"),
        (command("/etc/passwd"), "is not executable"),
        (command("/no/such/file"), "does not exist"),
        (command("true", working_directory="/no/such/folder"), "does not exist"),
        (command("true", working_directory="relative"), "not an absolute path"),
        (command("true", environment=[agent_pb2.EnvironmentVariable(name="A-B")]), "not the name"),
        (command("true", "a\0b"), "null byte"),
        (command("true", limits=agent_pb2.ProcessLimits(open_files=-1)), "negative"),
    ],
)
async def test_a_specification_that_cannot_work_fails_at_the_start(
    stage: Stage, spec: agent_pb2.AgentSpec, text: str
) -> None:
    with pytest.raises(StartFailed, match=text):
        await stage.start(spec)


async def test_idle_agents_of_task_mode_cost_no_task_and_no_process(stage: Stage) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(200):
        await stage.start(command("true"))
    assert len(asyncio.all_tasks()) == before
    assert stage.processes == []


async def test_stats_count_the_processes_of_an_agent(stage: Stage) -> None:
    handle = await stage.start(python(AGENT, "works", mode=agent_pb2.PROCESS_MODE_AGENT))
    stats = await stage.driver.stats(handle)
    assert stats.processes == 1
    assert stats.memory_bytes > 0
