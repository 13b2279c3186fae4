"""The hive on PostgreSQL: one replica beside the echo, two beside one, and how soon one hears of the other."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agenthive_server.testing.postgres import find_binaries, open_postgres

from tests.bench.figure import Figure
from tests.bench.side_by_side import ROOT, Process, echo_server, hive, load, load_all, sync_cost

ROUNDS = 3
PAIRS = 7
SECONDS = 3.0


def replicas() -> Iterator[Figure]:
    """Tasks on PostgreSQL with one replica and with two; events of one replica read from another."""
    with durable_postgres() as url:
        yield from _one_beside_the_echo(f"{url}one")
        yield from _two_beside_one(url)
        yield from _across(f"{url}across")


@contextmanager
def durable_postgres() -> Iterator[str]:
    """A database server that syncs its log, as a URL that lacks the name of a schema."""
    binaries = find_binaries()
    if binaries is None:
        raise RuntimeError("there is no PostgreSQL here: see tests/README.md")
    with open_postgres(binaries, {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}) as server:
        yield server.url("bench")


def _one_beside_the_echo(url: str) -> Iterator[Figure]:
    rate, batch, cpu, texts = [], [], [], []
    with echo_server() as echo, hive("--store", url) as server:
        load("delegate", server, 1.0, 16)
        for _ in range(ROUNDS):
            base = load("echo", echo, SECONDS, 64)
            one = load("delegate", server, SECONDS, 64)
            many = load("delegate", server, SECONDS, 16, 32)
            rate.append(one["rate"] / base["rate"])
            batch.append(many["rate"] / base["rate"])
            cpu.append(one["cpu"] / base["cpu"])
            texts.append(
                f"echo {base['rate']:.0f}/s {base['cpu'] * 1e6:.0f} us; task {one['rate']:.0f}/s"
                f" {one['cpu'] * 1e6:.0f} us; in batches {many['rate']:.0f}/s {many['cpu'] * 1e6:.0f} us"
            )
    yield Figure("PostgreSQL, task: rate, x echo", statistics.median(rate), 0.18, 0.3, True, " | ".join(texts))
    yield Figure("PostgreSQL, task in batches of 32: rate, x echo", statistics.median(batch), 2, 3, True, "")
    yield Figure("PostgreSQL, task: server CPU, x echo (an aim)", statistics.median(cpu), float("inf"), 4, False, "")


def _two_beside_one(url: str) -> Iterator[Figure]:
    """The servers' time per task, in pairs that follow each other: what else the machine does hits both alike.

    Each replica has as many tasks in flight as the one, and then, together, as many.
    """
    with hive("--store", f"{url}alone") as alone, _two(f"{url}two") as pair:
        for servers in ([alone], pair):
            load_all("delegate", servers, 1.0, 16)
        for each, must in ((64, 1.2), (32, float("inf"))):
            ratios, texts = [], []
            for turn in range(PAIRS):
                cost: dict[int, float] = {}
                for servers in ([alone], pair) if turn % 2 else (pair, [alone]):
                    in_flight = 64 if len(servers) == 1 else 2 * each
                    cost[len(servers)] = load_all("delegate", servers, SECONDS, in_flight)["cpu"]
                ratios.append(cost[2] / cost[1])
                texts.append(f"{cost[1] * 1e6:.0f} and {cost[2] * 1e6:.0f} us")
            name = f"two replicas, {each} in flight at each: CPU per task, x one"
            yield Figure(name, statistics.median(ratios), must, 1.1, False, ", ".join(texts))


def _across(url: str) -> Iterator[Figure]:
    p50, p99, texts = [], [], []
    with _two(url) as (one, other):
        for _ in range(ROUNDS):
            sync = sync_cost(Path(tempfile.gettempdir())) * 1e3
            command = [sys.executable, "-m", "tests.bench.readers", "pace", f"{one.target},{other.target}", "5", "4"]
            finished = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            found: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
            p50.append(found["p50"] * 1e3 - sync)
            p99.append(found["p99"] * 1e3)
            texts.append(f"p50 {found['p50'] * 1e3:.1f} ms, p99 {found['p99'] * 1e3:.1f} ms, sync {sync:.2f} ms")
    text = " | ".join(texts)
    yield Figure("commit to event on another replica: p50 - 1 sync, ms", statistics.median(p50), 5, 3, False, text)
    yield Figure("the same: p99, ms", statistics.median(p99), 50, 20, False, "")


@contextmanager
def _two(url: str) -> Iterator[tuple[Process, Process]]:
    with hive("--store", url) as one, hive("--store", url) as other:
        yield one, other
