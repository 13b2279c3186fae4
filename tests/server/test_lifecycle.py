"""Background loops that are kept alive."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.kernel.health import Status
from agenthive_server.lifecycle import Loops, tell_manager
from agenthive_server.testing.harness import ServerProcess

_COLLECTED = """
import gc
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.lifecycle import keep_collections_short

clock = ManualClock()
keep_collections_short(clock)
frozen = gc.get_freeze_count()
kept = [[number] for number in range(1_000)]
gc.collect()
assert gc.get_freeze_count() == frozen, "a short pass freezes nothing"
gc.callbacks.insert(0, lambda phase, info: clock.move(1.0) if phase == "stop" else None)
gc.collect(1)
assert gc.get_freeze_count() == frozen, "nor does one that is not full"
gc.collect()
assert gc.get_freeze_count() >= frozen + 1_000
"""


def test_what_a_long_pass_of_the_collector_found_alive_is_not_looked_at_again() -> None:
    subprocess.run([sys.executable, "-c", _COLLECTED], check=True)


async def test_a_loop_that_fails_is_told_logged_and_started_again(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    loops, starts, quiet = Loops(clock), 0, asyncio.Event()

    async def failing() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise RuntimeError("a defect")
        await asyncio.Event().wait()

    async def steady() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            quiet.set()

    with caplog.at_level(logging.ERROR):
        loops.start({"failing": failing, "steady": steady})
        await settle()
    assert "loop failing failed" in caplog.text
    ((name, reading),) = loops.probe()
    assert (name, reading.status) == ("loop/failing", Status.DEGRADED)
    assert not quiet.is_set()
    await clock.advance(1.1)
    assert starts == 2
    await loops.stop()
    assert quiet.is_set()


@pytest.mark.parametrize("abstract", [False, True])
async def test_a_service_manager_is_told_when_it_serves_and_when_it_stops(tmp_path: Path, abstract: bool) -> None:
    name = f"@hive-{uuid4().hex}" if abstract else str(tmp_path / "manager")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(10)
        server = ServerProcess(tmp_path / "data")
        server.settings["NOTIFY_SOCKET"] = name
        await server.start()
        assert await asyncio.to_thread(manager.recv, 64) == b"READY=1"
        stopping = asyncio.create_task(server.stop())
        assert await asyncio.to_thread(manager.recv, 64) == b"STOPPING=1"
        assert await stopping == 0


def test_a_service_manager_that_is_gone_is_no_trouble(tmp_path: Path) -> None:
    tell_manager(str(tmp_path / "nobody"), "READY=1")
    tell_manager("", "READY=1")
