"""What every figure needs: servers in their own processes, their CPU and memory, the disk's sync, rounds."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Process:
    """A server under measurement."""

    popen: subprocess.Popen[str]
    target: str
    started_in: float

    @property
    def cpu(self) -> float:
        """Seconds of processor time it has used, all threads."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self, name: str = "Pss") -> float:
        """MiB of it in memory: Pss or Rss."""
        for line in Path(f"/proc/{self.popen.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
        raise LookupError(name)


def start(*command: str, env: dict[str, str] | None = None) -> Process:
    """Start a server and wait for its line SERVING HOST:PORT."""
    began = time.perf_counter()
    popen = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **(env or {})}
    )
    assert popen.stdout is not None
    line = popen.stdout.readline()
    if not line.startswith("SERVING"):
        raise RuntimeError(f"{command} did not start: {line!r}")
    return Process(popen, line.split()[1], time.perf_counter() - began)


@contextmanager
def echo_server() -> Iterator[Process]:
    """The yardstick's server."""
    process = start("-m", "tests.bench.echo_server")
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.wait()


@contextmanager
def hive(*arguments: str, data_dir: str | None = None, env: dict[str, str] | None = None) -> Iterator[Process]:
    """A hive on SQLite with everything built in switched on, without runner."""
    with tempfile.TemporaryDirectory(prefix="hive-bench-") as made:
        command = [
            "-m",
            "agenthive_server",
            "serve",
            "--no-runner",
            "--listen",
            "127.0.0.1:0",
            "--log-level",
            "warning",
        ]
        process = start(*command, "--data-dir", data_dir or made, *arguments, env=env)
        try:
            yield process
        finally:
            process.popen.terminate()
            process.popen.wait()


@contextmanager
def idle_workers(kind: str, server: Process, count: int) -> Iterator[None]:
    """Sessions that only beat, or agents in one session; see `idle.py`."""
    command = [sys.executable, "-m", "tests.bench.idle", kind, server.target, str(count)]
    popen = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert popen.stdout is not None
    try:
        if popen.stdout.readline() != "READY\n":
            raise RuntimeError(f"{kind} could not be opened")
        yield
    finally:
        popen.kill()
        popen.wait()


def load_all(kind: str, servers: Sequence[Process], seconds: float, in_flight: int, batch: int = 1) -> dict[str, float]:
    """Run a load process against replicas; adds the CPU of all of them per operation in seconds."""
    before = sum(server.cpu for server in servers)
    targets = ",".join(server.target for server in servers)
    command = [sys.executable, "-m", "tests.bench.load", kind, targets, str(seconds), str(in_flight), str(batch)]
    finished = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    # The warm-up is in the servers' time as well; it runs at the same rate.
    scale = measured["seconds"] / (measured["seconds"] + 0.5)
    measured["cpu"] = (sum(server.cpu for server in servers) - before) * scale / max(1.0, measured["operations"])
    return measured


def load(kind: str, server: Process, seconds: float, in_flight: int, batch: int = 1) -> dict[str, float]:
    """Run a load process against a server; adds the server's CPU per operation in seconds."""
    return load_all(kind, [server], seconds, in_flight, batch)


def sync_cost(folder: Path, times: int = 60) -> float:
    """Return the median seconds of an fsync after appending 4 KiB in a folder."""
    taken: list[float] = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(b"x" * 4096)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def rounds(count: int, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Measure several times and return the median of each value."""
    found = [measure() for _ in range(count)]
    return {name: statistics.median(one[name] for one in found) for name in found[0]}
