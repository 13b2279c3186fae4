"""How the kernel and the event log scale, without network: `python -m tests.bench.scale AGENTS TASKS` for one size.

Seconds are processor time of the thread, medians of slices; the test of the same crowd counts steps instead.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from agenthive_server.events.filter import EventFilter
from agenthive_server.events.frames import Framer
from agenthive_server.kernel.agents import Agent
from agenthive_server.testing.crowd import Crowd, Shape, open_crowd

from tests.bench.figure import Figure
from tests.bench.side_by_side import ROOT

SIZES = ((1_000, 10_000), (10_000, 100_000), (100_000, 1_000_000))
SLICES = 24
SLICE = 128


def scale() -> Iterator[Figure]:
    """The cost of a task at a size beside that at a tenth of it; bytes and milliseconds at the largest."""
    before: dict[str, float] = {}
    found: dict[str, float] = {}
    for agents, tasks in SIZES:
        found = _measured(agents, tasks)
        detail = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        for part in ("assign_first", "assign_next", "result") if before else ():
            name = f"{part.replace('_', ', ')}: {agents:,} agents, {tasks:,} tasks, x a tenth"
            yield Figure(name, found[part] / before[part], 2.0, 1.3, False, detail if part == "assign_first" else "")
        before = found
    at = f"at {SIZES[-1][0]:,} agents"
    yield Figure(f"memory of an agent in contact, without its stream, KiB, {at}", found["agent_kib"], 4, 3, False, "")
    yield Figure("memory of a queued task, KiB", found["task_kib"], 4, 3, False, "")
    yield Figure("the log: us to encode an event and put it into a frame", found["log"] * 1e6, 10, 5, False, "")
    yield Figure("the log: bytes of an event on the wire", found["event_bytes"], 400, 250, False, "")
    yield Figure(f"clocks looked at, ms each second, {at}", found["clocks_ms"], float("inf"), 20, False, "")
    yield Figure("memory of the whole, MiB", found["rss_mib"], 5_000, 4_000, False, "")


def _measured(agents: int, tasks: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.scale", str(agents), str(tasks)]
    finished = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return measured


def _resident() -> float:
    """Return the KiB of this process in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return float(line.split()[1])
    raise LookupError("VmRSS")


async def _seconds(act: Callable[[], Awaitable[object]]) -> float:
    began = time.thread_time()
    await act()
    return time.thread_time() - began


async def measure(agents: int, tasks: int) -> dict[str, float]:
    """Measure one size."""
    found: dict[str, float] = {}
    async with open_crowd(Shape()) as crowd:
        start = _resident()
        found["agent_us"] = await _loaded(crowd.add_agents, agents) * 1e6
        met = _resident()
        found["task_us"] = await _loaded(crowd.add_tasks, tasks) * 1e6
        full = _resident()
        found["agent_kib"], found["task_kib"] = (met - start) / agents, (full - met) / tasks
        await _assign(crowd, found)
        await _log(crowd, found)
        await _clocks(crowd, found)
        found["collect_ms"] = await _seconds(_collect) * 1e3
        found["rss_mib"] = _resident() / 1024
    return found


async def _loaded(add: Callable[[int], None], count: int) -> float:
    began = time.thread_time()
    for _ in range(10):
        add(count // 10)
    return (time.thread_time() - began) / count


async def _assign(crowd: Crowd, found: dict[str, float]) -> None:
    await crowd.assign(SLICE)
    found["assign_first"] = await _slices(lambda: crowd.assign(SLICE), 4)
    while crowd.kernel.pool.open:
        await crowd.assign(1_000)
    result, following = [], []
    for _ in range(SLICES):
        result.append(await _seconds(lambda: crowd.finish(SLICE)) / SLICE)
        following.append(await _seconds(lambda: crowd.assign(SLICE)) / SLICE)
    found["result"], found["assign_next"] = statistics.median(result), statistics.median(following)


async def _slices(act: Callable[[], Awaitable[int]], count: int) -> float:
    taken = []
    for _ in range(count):
        began = time.thread_time()
        done = await act()
        taken.append((time.thread_time() - began) / max(done, 1))
    return statistics.median(taken)


async def _log(crowd: Crowd, found: dict[str, float]) -> None:
    """Encode events as if nobody had read them yet, and put them into frames."""
    log, framer, everything = crowd.log, Framer(crowd.log), EventFilter()
    events = await log.read(max(log.head - 2_000, 0), 2_000)
    found["event_bytes"] = statistics.mean(len(log.encode(event)) for event in events)
    taken = []
    for _ in range(SLICES):
        for event in events:
            event.wire = None
        began = time.thread_time()
        after, head = events[0].sequence - 1, events[-1].sequence
        while after < head and (frame := await framer.frame(everything, after)) is not None:
            after = frame.end
        framer = Framer(log)
        taken.append((time.thread_time() - began) / len(events))
    found["log"] = statistics.median(taken)


async def _clocks(crowd: Crowd, found: dict[str, float]) -> None:
    """What the kernel's loops look at four times, once and every few seconds, whether anything happens or not."""
    kernel = crowd.kernel
    await kernel.supervisor.look()
    looks: dict[str, tuple[Callable[[], Awaitable[object]], float]] = {
        "supervisor": (kernel.supervisor.look, 4.0),
        "overdue_tasks": (kernel.reaper._overdue_tasks, 4.0),
        "leases": (kernel.reaper._listening._silent_leases, 1.0),
        "sessions": (lambda: kernel.reaper._listening._silent_sessions(0.0), 1.0),
    }
    for name, (look, times) in looks.items():
        found[f"{name}_ms"] = statistics.median([await _seconds(look) for _ in range(5)]) * 1e3 * times
    found["clocks_ms"] = sum(found[f"{name}_ms"] for name in looks)

    async def census() -> None:
        for agent in kernel.memory.all(Agent):
            kernel.agents.shown(agent)

    found["census_ms"] = await _seconds(census) * 1e3


async def _collect() -> None:
    gc.collect()


def main() -> None:
    """Measure one size and print it as a JSON line."""
    # As the server does.
    gc.set_threshold(50_000, 50, 100)
    sys.stdout.write(json.dumps(asyncio.run(measure(*map(int, sys.argv[1:])))) + "\n")


if __name__ == "__main__":
    main()
