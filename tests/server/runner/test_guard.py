"""The guard: it sweeps when its runner is gone, what is marked and what is written down, and only its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agenthive_server.runner.guard import Guard
from agenthive_server.runner.ledger import Ledger
from agenthive_server.runner.tree import MARKER, ProcessId, find_process


@pytest.fixture
def spawn() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def spawn(marker: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["/bin/sleep", "600"], env={MARKER: marker}, start_new_session=True))
        return started[-1]

    yield spawn
    for popen in started:
        popen.kill()
        popen.wait()


def test_it_ends_what_its_runner_left_and_spares_a_successor(
    tmp_path: Path, spawn: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    ledger = Ledger(tmp_path)
    guard = Guard(ledger)
    entry = ledger.begin("agent-1")
    marked, written, other = spawn(f"{entry.marker}.t1"), spawn("no.mark.of.ours"), spawn(f"{ledger.home}.successor.1")
    process = find_process(written.pid)
    assert process is not None
    ledger.spawned(entry, ProcessId(written.pid, process.start_time))
    assert guard.alive()
    guard.close()
    assert (marked.wait(), written.wait()) == (-9, -9)
    assert other.poll() is None
    assert not guard.alive()
    ledger.close()
