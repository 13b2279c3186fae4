"""The figures, each with its bound: what is measured, beside the echo of the same round."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.capacity import capacity
from tests.bench.figure import Figure
from tests.bench.plugins import plugins
from tests.bench.replicas import replicas
from tests.bench.scale import scale
from tests.bench.side_by_side import ROOT, echo_server, hive, idle_workers, load, sync_cost

ROUNDS = 3
SECONDS = 3.0


def _median(values: list[float]) -> float:
    return statistics.median(values)


def throughput() -> Iterator[Figure]:
    """DelegateTask to result, alone and in batches, SpawnAgent, and one call at a time."""
    rate, cpu, batch, spawn, single = [], [], [], [], []
    texts: list[str] = []
    with echo_server() as echo, hive() as server:
        for _ in range(ROUNDS):
            base = load("echo", echo, SECONDS, 64)
            one = load("delegate", server, SECONDS, 64)
            many = load("delegate", server, SECONDS, 16, 32)
            made = load("spawn", server, SECONDS, 64)
            alone, echo_alone = load("delegate", server, 2.0, 1), load("echo", echo, 2.0, 1)
            sync = sync_cost(Path(tempfile.gettempdir()))
            rate.append(one["rate"] / base["rate"])
            cpu.append(one["cpu"] / base["cpu"])
            batch.append(many["rate"] / base["rate"])
            spawn.append(made["rate"] / base["rate"])
            single.append((alone["p50"] - 2 * sync) / echo_alone["p50"])
            texts.append(
                f"echo {base['rate']:.0f}/s {base['cpu'] * 1e6:.0f} us cpu, p50 alone {echo_alone['p50'] * 1e3:.2f} ms;"
                f" sync {sync * 1e3:.2f} ms; task {one['rate']:.0f}/s {one['cpu'] * 1e6:.0f} us cpu; alone"
                f" {alone['p50'] * 1e3:.2f} ms; in batches {many['rate']:.0f}/s {many['cpu'] * 1e6:.0f} us cpu; spawn"
                f" {made['rate']:.0f}/s"
            )
    detail = " | ".join(texts)
    yield Figure("task: rate, x echo", _median(rate), 0.25, 0.35, True, detail)
    yield Figure("task: server CPU, x echo", _median(cpu), 4.0, 3.0, False, "")
    yield Figure("task in batches of 32: rate, x echo", _median(batch), 2.5, 4.0, True, "")
    yield Figure("task alone: (p50 - 2 syncs), x echo p50", _median(single), 4.0, 3.0, False, "")
    yield Figure("spawn: rate, x echo", _median(spawn), 0.40, 0.55, True, "")


def events() -> Iterator[Figure]:
    """Events to 100 subscribers at once, and how soon they reach 50 at 1,000 a second."""
    delivered, p99, p50 = [], [], []
    texts: list[str] = []
    with echo_server() as echo, hive() as server:
        for _ in range(ROUNDS):
            base, echo_alone = load("echo", echo, SECONDS, 64), load("echo", echo, 2.0, 1)
            burst = _client("readers", "burst", server.target, "100", "10000")
            pace = _client("readers", "pace", server.target, "50", "4")
            delivered.append(burst["rate"] / base["rate"])
            p99.append(pace["p99"] * 1e3)
            p50.append(pace["p50"] / echo_alone["p50"])
            texts.append(
                f"{burst['rate']:.0f} events/s, echo {base['rate']:.0f}/s; at 1,000/s p50 {pace['p50'] * 1e3:.1f} ms,"
                f" p99 {pace['p99'] * 1e3:.1f} ms"
            )
    yield Figure("events to 100 subscribers, x echo", _median(delivered), 40, 80, True, " | ".join(texts))
    yield Figure("publish to received at 50 x 1,000/s: p99, ms", _median(p99), 20, 20, False, "")
    yield Figure("the same: p50, x echo p50 (an aim)", _median(p50), float("inf"), 5, False, "")


def idle() -> Iterator[Figure]:
    """Memory and latency with 5,000 idle sessions, and memory with 5,000 idle agents in one session."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = 5_000
    with hive() as server:
        load("delegate", server, 1.0, 8)
        quiet = load("delegate", server, SECONDS, 8)
        before = server.memory()
        with idle_workers("sessions", server, count):
            each = (server.memory() - before) * 1024 / count
            crowded = load("delegate", server, SECONDS, 8)
    yield Figure("5,000 idle sessions: server memory each, KiB", each, 60, 45, False, "")
    ratio = crowded["p99"] / quiet["p99"]
    detail = f"p99 {quiet['p99'] * 1e3:.1f} ms alone, {crowded['p99'] * 1e3:.1f} ms beside them"
    yield Figure("the same: p99 of a task, x without them", ratio, 2, 2, False, detail)
    with hive() as server:
        load("delegate", server, 1.0, 8)
        before = server.memory()
        with idle_workers("agents", server, count):
            each = (server.memory() - before) * 1024 / count
    yield Figure("5,000 idle agents in one session: server memory each, KiB", each, 8, 4, False, "")


def footprint() -> Iterator[Figure]:
    """Memory of an idle server, and from process start to SERVING on an existing database."""
    starts: list[float] = []
    memory = 0.0
    with tempfile.TemporaryDirectory(prefix="hive-bench-") as folder:
        for _ in range(ROUNDS + 1):
            with hive(data_dir=folder) as server:
                starts.append(server.started_in)
                time.sleep(2.0)
                memory = server.memory()
    yield Figure("idle server: PSS, MiB", memory, 60, 50, False, "")
    yield Figure("start to SERVING, s", _median(starts[1:]), 1.0, 0.4, False, "")


def chain() -> Iterator[Figure]:
    """The built-in chain's share of an echo's server CPU."""
    with echo_server() as echo:
        base = load("echo", echo, SECONDS, 64)
    measured = _client("chain")
    share = measured["seconds"] / base["cpu"]
    detail = f"{measured['seconds'] * 1e6:.2f} us of {base['cpu'] * 1e6:.0f} us"
    yield Figure("built-in chain: share of a call's CPU", share, 0.05, 0.03, False, detail)


def busy() -> Iterator[Figure]:
    """The limits that always hold: spawn and delegation at p99 with 100 agents busy."""
    with hive() as server, idle_workers("sessions", server, 100):
        delegated = load("delegate", server, SECONDS, 32)
        spawned = load("spawn", server, SECONDS, 32)
    yield Figure("task at p99 with 100 agents, ms", delegated["p99"] * 1e3, 500, 100, False, "")
    yield Figure("spawn at p99 with 100 agents, ms", spawned["p99"] * 1e3, 100, 50, False, "")


FIGURES: dict[str, Callable[[], Iterator[Figure]]] = {
    "throughput": throughput,
    "events": events,
    "idle": idle,
    "footprint": footprint,
    "chain": chain,
    "busy": busy,
    "plugins": plugins,
    "replicas": replicas,
    "scale": scale,
    "capacity": capacity,
}


def _client(module: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", f"tests.bench.{module}", *arguments]
    finished = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return measured
