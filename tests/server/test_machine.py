"""What the operating system says of this process is what it says to others."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from agenthive_server.machine import process_metrics


def measured(**options: Path) -> dict[str, float]:
    return {sample.name: sample.value for sample in process_metrics(**options)}


def test_it_agrees_with_another_who_looks() -> None:
    found, other = measured(), psutil.Process()
    cpu = other.cpu_times()
    assert found["process_cpu_seconds_total"] == pytest.approx(cpu.user + cpu.system, abs=0.5)
    assert found["process_resident_memory_bytes"] == pytest.approx(other.memory_info().rss, rel=0.05)
    assert found["process_open_fds"] == pytest.approx(other.num_fds(), abs=3)
    assert found["process_start_time_seconds"] == pytest.approx(other.create_time(), abs=2.0)
    assert found["process_max_fds"] > found["process_open_fds"]


def test_what_is_not_told_is_left_out(tmp_path: Path) -> None:
    assert measured(proc=tmp_path).keys() == {"process_cpu_seconds_total", "process_max_fds"}
    (tmp_path / "self").mkdir()
    for name in ("self/statm", "self/stat", "stat"):
        (tmp_path / name).write_text("nonsense")
    assert measured(proc=tmp_path).keys() == {"process_cpu_seconds_total", "process_max_fds"}
