"""The machine: what is read of it, and what is made of nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from agenthive_plugins.production.machine import (
    Machine,
    cpu_percent,
    network_mbps,
    process_age,
    process_identity,
    read_machine,
)

STAT = "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3\nbtime 1700000000\n"
MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    250 kB\n"
DEV = (
    "Inter-|   Receive                |  Transmit\n face |bytes    packets\n"
    "    lo: 999 0 0 0 0 0 0 0 999 0\n  eth0: 1000 0 0 0 0 0 0 0 500 0\n"
)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "stat").write_text(STAT)
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "dev").write_text(DEV)
    return tmp_path


def test_what_is_read(proc: Path) -> None:
    found = read_machine(proc, proc)
    assert (found.busy, found.ticks, found.memory_percent, found.sent) == (150, 1_000, 75.0, 1_500)
    assert found.disk_percent is not None
    assert 0 < found.disk_percent <= 100


def test_between_two_readings() -> None:
    before, after = Machine(busy=100, ticks=1_000, sent=1_000_000), Machine(busy=175, ticks=1_100, sent=3_500_000)
    assert cpu_percent(before, after) == 75.0
    assert network_mbps(before, after, 10.0) == 2.0
    assert cpu_percent(after, after) is None
    assert cpu_percent(Machine(), after) is None
    assert network_mbps(before, Machine(), 10.0) is None


@pytest.mark.parametrize("broken", ["", "cpu\n", "cpu a b c d\n", "nothing of this kind"])
def test_what_cannot_be_read_is_nothing(tmp_path: Path, broken: str) -> None:
    (tmp_path / "stat").write_text(broken)
    assert read_machine(tmp_path / "nowhere", tmp_path) == Machine()
    assert process_age(tmp_path) is None
    assert process_identity(tmp_path) == ""


def test_this_machine_and_this_process() -> None:
    found = read_machine(Path("/"))
    assert found.busy is not None
    assert found.memory_percent is not None
    age = process_age()
    assert age is not None
    assert 0 <= age < 86_400
    assert process_identity() == process_identity() != ""


def test_another_process_is_another_one() -> None:
    program = "from agenthive_plugins.production.machine import process_identity as p; print(p())"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() not in ("", process_identity())
