"""`hive` as people run it: processes, signals and pipes, against a real server with a real runner."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from agenthive import Client
from agenthive_server.testing.harness import ServerProcess, open_process
from agenthive_server.testing.waiting import eventually

HIVE = (sys.executable, "-c", "import sys; from agenthive.cli.app import main; sys.exit(main())")
UPPER = (
    "import json, sys, time; task = json.load(sys.stdin); text = task['input']['text'];"
    "print('reading', text, flush=True);"
    "print(json.dumps({'progress': 0.5, 'text': 'halfway'}), flush=True);"
    "time.sleep(0.2); text or sys.exit(3);"
    "print(json.dumps({'result': {'text': text.upper()}}))"
)


class Ended(NamedTuple):
    """How a process ended."""

    code: int | None
    out: str
    err: str


class Shell:
    """Runs `hive` for one server."""

    def __init__(self, target: str) -> None:
        self.target = target

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *HIVE, "--server", self.target, *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )

    async def __call__(self, *words: str) -> Ended:
        return await self.end(await self.start(*words))

    async def end(self, process: asyncio.subprocess.Process) -> Ended:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        return Ended(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    async with open_process(tmp_path / "data", runner=True) as running:
        yield running


@pytest.fixture
def hive(server: ServerProcess) -> Shell:
    return Shell(server.target)


async def test_a_probe_asks_as_a_load_balancer_does(tmp_path: Path) -> None:
    async with open_process(tmp_path / "data", settings={"server.drain_delay_seconds": 60}) as server:
        hive = Shell(server.target)
        assert await hive("health", "--probe", "readiness") == Ended(0, "SERVING\n", "")
        unknown = await hive("health", "--probe", "nobody")
        assert (unknown.code, "SERVICE_NOT_FOUND" in unknown.err) == (2, True)
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        async with Client(server.target) as client:
            await eventually(lambda: _draining(client))
        assert await hive("health", "--probe", "readiness") == Ended(2, "NOT_SERVING\n", "")
        alive = await hive("health", "--probe", "liveness", "-o", "json")
        assert (alive.code, json.loads(alive.out)) == (0, {"name": "liveness", "serving": True})
        await server.kill()
        gone = await hive("health", "--probe", "liveness")
        assert (gone.code, "no connection to" in gone.err) == (2, True)


async def _draining(client: Client) -> bool:
    return not await client.serving()


async def test_an_agent_is_spawned_works_and_is_stopped(hive: Shell) -> None:
    assert (await hive("health", "--wait", "20")).code == 0
    spawned = await hive(
        "agents", "spawn", "--id", "upper-1", "--role", "writer", "-c", "upper", "--wait", "--timeout", "30",
        "-o", "json", "--process", "--", sys.executable, "-c", UPPER,
    )  # fmt: skip
    assert spawned.code == 0, spawned
    assert json.loads(spawned.out)["state"] == "AGENT_STATE_IDLE"

    done = await hive("run", "upper", '{"text": "quiet"}', "-c", "upper", "--timeout", "60", "--id", "t-1")
    assert (done.code, json.loads(done.out)) == (0, {"text": "QUIET"}), done
    assert "reading quiet\n" in done.err
    assert "50% halfway\n" in done.err

    failed = await hive("run", "upper", '{"text": ""}', "-c", "upper", "--attempts", "1", "--timeout", "60")
    assert failed.code == 1, failed
    assert "FAILED" in failed.err

    assert "reading quiet" in (await hive("tasks", "output", "t-1")).out
    happened = await hive("events", "--earliest", "--no-follow", "--task", "t-1", "-o", "json")
    facts = [json.loads(line) for line in happened.out.splitlines()]
    assert [next(key for key in fact if key.startswith("task_") and key != "task_id") for fact in facts] == [
        "task_delegated", "task_assigned", "task_started", "task_succeeded"
    ]  # fmt: skip
    assert "upper-1" in (await hive("top", "--once")).out
    assert "CAPABILITIES" in (await hive("explain", "--type", "x", "-c", "unknown")).out
    assert (await hive("metrics")).code == 0
    assert (await hive("plugins", "list")).code == 0
    assert (await hive("agents", "shutdown", "upper-1", "--grace", "0")).code == 0


async def test_refusals_of_the_server_have_their_exit_codes(hive: Shell) -> None:
    assert (await hive("tasks", "get", "nobody")).code == 4
    assert (await hive("tasks", "delegate", "work", "--id", "t-1", "-c", "nobody-has-this")).code == 0
    assert (await hive("tasks", "delegate", "work", "--id", "t-1")).code == 5
    assert (await hive("tasks", "resume", "t-1")).code == 5
    assert (await hive("tasks", "delegate", "")).code == 2
    assert (await hive("tasks", "wait", "t-1", "--timeout", "1s")).code == 6
    assert (await hive("tasks", "cancel", "t-1")).code == 0
    assert (await hive("tasks", "wait", "t-1")).code == 1


async def test_ctrl_c_ends_a_stream_with_the_cursor_to_go_on(hive: Shell) -> None:
    await hive("tasks", "delegate", "work", "--id", "t-1", "-c", "nobody-has-this")
    process = await hive.start("events", "--earliest", "-o", "json")
    assert process.stdout is not None
    await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    ended = await hive.end(process)
    assert ended.code == 130
    cursor = json.loads(ended.err)["cursor"]
    await hive("tasks", "cancel", "t-1")
    rest = await hive("events", "--after", cursor, "--no-follow", "--type", "task-canceled", "-o", "json")
    assert json.loads(rest.out)["task_id"] == "t-1"


async def test_ctrl_c_leaves_the_task_of_a_run_alone(hive: Shell) -> None:
    process = await hive.start("run", "work", "--id", "t-1", "-c", "nobody-has-this")
    assert process.stderr is not None
    await process.stderr.readline()
    process.send_signal(signal.SIGINT)
    ended = await hive.end(process)
    assert ended.code == 130
    assert "t-1 goes on" in ended.err
    assert json.loads((await hive("tasks", "get", "t-1", "-o", "json")).out)["state"] == "TASK_STATE_QUEUED"


@pytest.mark.parametrize("form", ["json", "table"])
async def test_a_reader_that_goes_away_is_no_defect(hive: Shell, form: str) -> None:
    process = await hive.start("events", "--earliest", "-o", form)
    assert process.stdout is not None
    await process.stdout.readline()
    transport = process._transport.get_pipe_transport(1)  # type: ignore[attr-defined] # there is no other way to close it
    transport.close()
    await hive("tasks", "delegate", "work", "-c", "nobody-has-this")
    async with asyncio.timeout(30):
        code = await process.wait()
    assert process.stderr is not None
    assert b"Traceback" not in await process.stderr.read()
    assert code == 141
