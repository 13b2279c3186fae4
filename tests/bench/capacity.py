"""What `server/deploy/CAPACITY.md` is worked out from: the cost of each part, alone, in processor time and bytes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agenthive_server.testing.postgres import PostgresServer, find_binaries, open_postgres

from tests.bench.figure import Figure
from tests.bench.side_by_side import ROOT, TICKS, Process, echo_server, hive, idle_workers, load

ROUNDS = 3
SECONDS = 3.0
SESSIONS = 2_000
BEATS = SESSIONS / 10.0
"""Heartbeats a second of so many sessions."""

SUBSCRIBERS = 100
TASKS = 5_000
UNBOUNDED = float("inf")


def capacity() -> Iterator[Figure]:
    """The cost of a call, a task, a heartbeat, an event delivered; bytes on disk. No bounds: the yardstick is echo."""
    with echo_server() as echo:
        call = statistics.median(load("echo", echo, SECONDS, 64)["cpu"] for _ in range(ROUNDS))
    yield _figure("echo: us of server CPU a call", call * 1e6)
    with tempfile.TemporaryDirectory(prefix="hive-bench-") as folder, hive(data_dir=folder) as server:
        yield from _tasks("SQLite", server, call, lambda: _disk(Path(folder)))
        yield from _readers(server)
        yield from _beats(server, call)
    binaries = find_binaries()
    if binaries is None:
        sys.stderr.write("PostgreSQL is not here: its figures are left out\n")
        return
    synced = {"fsync": "on", "full_page_writes": "on"}
    with open_postgres(binaries, synced) as database, hive("--store", database.url()) as server:
        before, mine = _postgres_cpu(database), server.cpu
        yield from _tasks("PostgreSQL", server, call, lambda: _asked(database, _SIZE))
        share = (_postgres_cpu(database) - before) / (server.cpu - mine)
        yield _figure("the same: the database's own CPU, x the server's", share)
        yield _figure("PostgreSQL: connections of a replica", _asked(database, _CONNECTIONS))
        with hive("--store", database.url()) as other:
            yield from _followed(server, other, call)


def _figure(name: str, value: float) -> Figure:
    return Figure(name, value, UNBOUNDED, UNBOUNDED, False, "")


def _tasks(name: str, server: Process, call: float, size: Callable[[], float]) -> Iterator[Figure]:
    load("delegate", server, 1.0, 8)
    before, done = size(), 0.0
    one, batch = [], []
    for _ in range(ROUNDS):
        single, many = load("delegate", server, SECONDS, 64), load("delegate", server, SECONDS, 16, 32)
        one.append(single["cpu"])
        batch.append(many["cpu"])
        # With what was done while it warmed up.
        done += (single["operations"] + many["operations"]) * (SECONDS + 0.5) / SECONDS
    yield _figure(f"{name}: server CPU of a task, x echo", statistics.median(one) / call)
    yield _figure(f"{name}: the same in batches of 32, x echo", statistics.median(batch) / call)
    yield _figure(f"{name}: bytes kept for a task with its events and request", (size() - before) / done)


def _followed(server: Process, other: Process, call: float) -> Iterator[Figure]:
    time.sleep(SECONDS)
    for text, in_flight, batch in (("a task", 64, 1), ("the same in batches of 32", 16, 32)):
        found = []
        for _ in range(ROUNDS):
            before = other.cpu
            done = load("delegate", server, SECONDS, in_flight, batch)["operations"] * (SECONDS + 0.5) / SECONDS
            found.append((other.cpu - before) / done)
        yield _figure(f"PostgreSQL: {text}, CPU of each other replica, x echo", statistics.median(found) / call)


def _readers(server: Process) -> Iterator[Figure]:
    found = []
    command = [sys.executable, "-m", "tests.bench.readers", "burst", server.target, str(SUBSCRIBERS), str(TASKS)]
    for _ in range(ROUNDS):
        load("delegate", server, 0.5, 8)
        before = server.cpu
        ended = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        delivered = json.loads(ended.stdout.splitlines()[-1])["operations"]
        found.append((server.cpu - before) / delivered)
    each = statistics.median(found)
    yield _figure(f"events: ns of server CPU for each of {SUBSCRIBERS} readers, publishing included", each * 1e9)


def _beats(server: Process, call: float) -> Iterator[Figure]:
    began, quiet = server.cpu, time.monotonic()
    time.sleep(SECONDS)
    idle = (server.cpu - began) / (time.monotonic() - quiet)
    memory, began = server.memory(), server.cpu
    with idle_workers("sessions", server, SESSIONS):
        opened = (server.cpu - began) / SESSIONS
        yield _figure("a session opened, with a new agent: server CPU, x echo", opened / call)
        yield _figure("a session with its own connection: KiB", (server.memory() - memory) * 1024 / SESSIONS)
        time.sleep(2.0)
        found = []
        for _ in range(ROUNDS):
            before, start = server.cpu, time.monotonic()
            time.sleep(10.0)
            found.append((server.cpu - before) / (time.monotonic() - start) - idle)
    yield _figure("a heartbeat: server CPU, x echo", statistics.median(found) / BEATS / call)


def _disk(folder: Path) -> float:
    return sum(file.stat().st_blocks * 512 for file in folder.glob("*.db"))


_SIZE = "select pg_database_size(current_database())"
_CONNECTIONS = "select count(*) from pg_stat_activity where application_name like 'agenthive%'"


def _asked(database: PostgresServer, question: str) -> float:
    """Ask from a process of its own: the driver wants a loop."""
    program = (
        "import asyncio, asyncpg, sys\n"
        "async def ask():\n"
        "    link = await asyncpg.connect(sys.argv[1])\n"
        "    print(float(await link.fetchval(sys.argv[2])))\n"
        "asyncio.run(ask())"
    )
    command = [sys.executable, "-c", program, database.url(), question]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _postgres_cpu(database: PostgresServer) -> float:
    """Return the seconds of processor time of the server and those it started."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        if database.pid in (int(name.split()[0]), int(fields[1])):
            total += int(fields[11]) + int(fields[12])
    return total / TICKS
