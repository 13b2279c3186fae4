"""Starting processes and ending trees, with the programs that confine them and without."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from agenthive_server.runner.launch import SEARCH_PATH, Child, Command, Launcher, Limits
from agenthive_server.runner.tree import MARKER, find_process
from agenthive_server.testing.driver_stage import gone

DEADLINE = 20.0


@pytest.fixture(params=["programs", "script"])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    launcher = Launcher(patience=0.2)
    if request.param == "script":
        launcher._programs = []
    return launcher


def spawn(launcher: Launcher, *words: str, limits: Limits | None = None) -> Child:
    environment = {"PATH": SEARCH_PATH, MARKER: "launch.1"}
    return launcher.spawn(Command(words, environment, Path("/"), limits or Limits(), "launch.1"))


async def read_all(child: Child) -> bytes:
    content = b""
    async with asyncio.timeout(DEADLINE):
        while block := await child.stdout.read():
            content += block
    return content


async def test_a_process_leads_a_session_of_its_own(launcher: Launcher) -> None:
    child = spawn(launcher, "/bin/cat")
    process = find_process(child.id.pid)
    assert process is not None
    assert process.group == process.session == child.id.pid
    await child.stdin.write(b"through")
    child.stdin.close()
    assert await read_all(child) == b"through"
    await child.exited.wait()
    assert (await child.finish()).code == 0
    child.close()


async def test_writing_to_one_that_has_left_is_a_broken_pipe(launcher: Launcher) -> None:
    child = spawn(launcher, "/bin/true")
    await child.exited.wait()
    with pytest.raises(BrokenPipeError):
        await child.stdin.write(b"x" * 1_000_000)
    await child.finish()
    child.close()


async def test_stop_begins_friendly(launcher: Launcher) -> None:
    child = spawn(launcher, "/bin/sh", "-c", "trap 'exit 5' INT; echo x; while :; do sleep 0.05; done")
    await child.stdout.read()
    await child.stop(60)
    assert (await child.finish()).code == 5
    child.close()


async def test_finish_may_be_called_twice_and_cancelled(launcher: Launcher) -> None:
    child = spawn(launcher, "/bin/sleep", "600")
    first = asyncio.create_task(child.finish())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await child.finish()).signal == 9
    child.close()


async def test_a_program_that_cannot_be_run_ends_with_a_message(launcher: Launcher) -> None:
    child = spawn(launcher, "/etc/passwd")
    await child.exited.wait()
    assert (await child.finish()).code in {126, 127}
    errors = await child.stderr.read()
    assert b"/etc/passwd" in errors
    child.close()


def test_limits_stay_below_those_of_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (50, 100))
    limits = Limits(open_files=1000, cpu_seconds=98).as_rlimits()
    assert limits == {"CORE": (0, 0), "NOFILE": (100, 100), "CPU": (98, 100)}


@pytest.mark.parametrize("programs", ["True", "False"])
def test_a_process_dies_with_the_runner(programs: str) -> None:
    """The parent-death signal alone, without a guard."""
    code = f"""
import asyncio, os
from pathlib import Path
from agenthive_server.runner.launch import Command, Launcher, Limits
async def main():
    launcher = Launcher()
    if not {programs}:
        launcher._programs = []
    child = launcher.spawn(Command(["/bin/sh", "-c", "echo $$; exec sleep 600"], {{}}, Path("/"), Limits(), ""))
    print((await child.stdout.read()).decode(), flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    runner = [sys.executable, "-c", code]
    run = subprocess.run(runner, stdout=subprocess.PIPE, env=environment, timeout=DEADLINE, check=False)
    assert run.returncode == -9
    asyncio.run(gone(int(run.stdout)))
