"""The local runner of a server: found again by later servers, and no burden on those who read the first one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from agenthive_server.runner.ledger import Ledger
from agenthive_server.runner.local import LocalRunner, _living
from agenthive_server.testing.waiting import eventually

SERVER = """
import asyncio, sys
from pathlib import Path
from agenthive_server.runner.local import LocalRunner

folder = Path(sys.argv[1])
runner = LocalRunner(["--server", "127.0.0.1:1", "--data-dir", str(folder)], folder, keep=True)
asyncio.run(runner.run())
"""


async def test_a_runner_that_is_kept_does_not_hold_the_output_of_its_server(tmp_path: Path) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(tmp_path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert server.stdout is not None
    runner = await eventually(lambda: _living(tmp_path / "runner"))
    try:
        server.kill()
        async with asyncio.timeout(10):
            assert await server.stdout.read() == b""
            await server.wait()
        assert _living(tmp_path / "runner") == runner
    finally:
        os.kill(runner, signal.SIGKILL)


async def test_a_runner_left_by_a_server_that_was_killed_is_found_by_what_it_wrote_itself(tmp_path: Path) -> None:
    (tmp_path / "runner").mkdir()
    (tmp_path / "runner" / "pid").write_text("1")  # what a server that was killed too early would leave
    assert _living(tmp_path / "runner") == 0
    ledger = Ledger(tmp_path / "runner")
    assert _living(tmp_path / "runner") == os.getpid()
    ledger.close()
    assert _living(tmp_path / "runner") == 0


async def start_earlier(folder: Path) -> asyncio.Task[None]:
    """A runner that an earlier server started and will not start again."""
    earlier = LocalRunner(["--server", "127.0.0.1:1", "--data-dir", str(folder)], folder, keep=False)
    running = asyncio.create_task(earlier.run())
    await eventually(lambda: _living(folder / "runner"))
    earlier._stopping.set()
    return running


async def test_a_local_runner_stops_the_runner_of_an_earlier_server(tmp_path: Path) -> None:
    running = await start_earlier(tmp_path)
    await LocalRunner([], tmp_path, keep=False).stop()
    assert _living(tmp_path / "runner") == 0
    await running


async def test_a_local_runner_stops_the_earlier_one_also_while_its_own_is_starting(tmp_path: Path) -> None:
    running = await start_earlier(tmp_path)
    later = LocalRunner([], tmp_path, keep=False)
    # As it is when the earlier runner took the lock after the later server had looked.
    later._process = await asyncio.create_subprocess_exec("sleep", "60")
    async with asyncio.timeout(20):
        await later.stop()
    assert _living(tmp_path / "runner") == 0
    assert later._process.returncode == -signal.SIGTERM
    await running
