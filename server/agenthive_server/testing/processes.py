"""Who still runs: the runner of a data directory, and the processes of its agents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from agenthive_server.runner.tree import find_marker, find_process


def find_runner(data_dir: Path) -> int:
    """Return the process id of the runner that works on a data directory, or 0."""
    for number in _numbers():
        try:
            words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"runner" in words and str(data_dir).encode() in words and find_process(number) is not None:
            return number
    return 0


def list_agent_processes(data_dir: Path) -> list[int]:
    """Return the living processes that carry the marker of a data directory: its agents and all they started."""
    home = (data_dir / "runner" / "id").read_text(encoding="ascii").strip()
    marked = [number for number in _numbers() if find_marker(number).startswith(home)]
    return [number for number in marked if (process := find_process(number)) is not None and process.alive]


def _numbers() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())
