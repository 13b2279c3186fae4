"""What plugins cost, and what misbehaving ones cost the others.

`python -m tests.bench.plugins inline` prints the seconds of CPU of one guarded hook and one guarded interceptor.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agenthive.client import Client
from agenthive.v1.plugin_service_pb2 import PLUGIN_STATE_FAILED

from tests.bench.figure import Figure
from tests.bench.side_by_side import ROOT, Process, hive, load

PAIRS = 24
SECONDS = 2.0
LONG = 8.0
TURNS = 100_000


def plugins() -> Iterator[Figure]:
    """Ten plugins beside none; what one hook costs; p99 of a task while an offender is switched on."""
    yield from _ten_beside_none()
    finished = subprocess.run(
        [sys.executable, "-m", "tests.bench.plugins", "inline"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    measured: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    yield Figure("inline hook, guarded, us", measured["hook"] * 1e6, 2.0, 1.0, False, "")
    yield Figure("inline interceptor, guarded, both ways, us", measured["interceptor"] * 1e6, 4.0, 2.0, False, "")
    yield from _offenders()


def _ten_beside_none() -> Iterator[Figure]:
    from tests.bench.plugin_fleet import NAMES

    ratios: list[float] = []
    bare_costs: list[float] = []
    with _found() as env, hive(env=env) as bare, hive(env={**env, **_enabled(NAMES)}) as full:
        for server in (bare, full):
            load("delegate", server, SECONDS, 64)
        for turn in range(PAIRS):
            pair = (bare, full) if turn % 2 else (full, bare)
            cost = {server.target: load("delegate", server, SECONDS, 64)["cpu"] for server in pair}
            ratios.append(cost[full.target] / cost[bare.target])
            bare_costs.append(cost[bare.target])
    # What else the machine does changes within seconds: only the two of a pair can be compared, and many pairs.
    low, middle, high = statistics.quantiles(ratios, n=4)
    text = f"quartiles {low:.3f} and {high:.3f} of {PAIRS} pairs, {statistics.median(bare_costs) * 1e6:.0f} us without"
    yield Figure("ten plugins: server CPU per task, x none", middle, 1.05, 1.03, False, text)


def _offenders() -> Iterator[Figure]:
    from tests.bench.plugin_fleet import OFFENDERS

    with _found() as env:
        for registration in OFFENDERS:
            name = registration.name
            with hive(env=env) as server:
                load("delegate", server, 1.0, 16)
                quiet = load("delegate", server, LONG, 16)
                troubled = _while(lambda: load("delegate", server, LONG, 16), server, name)
            text = f"p99 {quiet['p99'] * 1e3:.1f} ms quiet, {troubled['p99'] * 1e3:.1f} ms beside it"
            figure = f"p99 of a task while one that {name} is switched on, x quiet"
            yield Figure(figure, troubled["p99"] / quiet["p99"], 2.0, 1.2, False, text)
            yield Figure("the same: seconds until it is off", troubled["off"], 5.0, 2.0, False, "")


def _while(work: Callable[[], dict[str, float]], server: Process, name: str) -> dict[str, float]:
    """Run a load; in the middle of it an offender is switched on, and watched until it is off."""
    found: dict[str, float] = {}
    watching = threading.Thread(target=lambda: found.update(off=asyncio.run(_watch(server.target, name))))
    starting = threading.Timer(2.0, watching.start)
    starting.start()
    measured = work()
    starting.join()
    watching.join()
    return {**measured, **found}


async def _watch(target: str, name: str) -> float:
    async with Client(target) as client:
        began = time.perf_counter()
        await client.enable_plugin(name)
        while (await client.get_plugin(name)).state != PLUGIN_STATE_FAILED:  # noqa: ASYNC110 - asked over the wire
            await asyncio.sleep(0.05)
        return time.perf_counter() - began


def _enabled(names: list[str]) -> dict[str, str]:
    return {"AGENTHIVE_PLUGINS__ENABLED": json.dumps(names)}


@contextmanager
def _found() -> Iterator[dict[str, str]]:
    """Make the plugins of this bench known to servers, as an installed distribution does."""
    from tests.bench.plugin_fleet import FLEET, OFFENDERS

    with tempfile.TemporaryDirectory(prefix="hive-bench-") as folder:
        info = Path(folder) / "hive_bench-1.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: hive-bench\nVersion: 1\n")
        lines = [
            f"{each.name} = tests.bench.plugin_fleet:{each.name.replace('-', '_')}" for each in (*FLEET, *OFFENDERS)
        ]
        info.joinpath("entry_points.txt").write_text("\n".join(["[agenthive.plugins]", *lines, ""]))
        yield {"PYTHONPATH": f"{folder}:{ROOT}"}


def inline() -> dict[str, float]:
    """Return the seconds of CPU that a guarded hook and a guarded interceptor take, beyond an empty loop."""
    from agenthive_server.kernel.clock import SystemClock
    from agenthive_server.kernel.proposals import Delegating
    from agenthive_server.kernel.tasks import TaskSpec
    from agenthive_server.plugin.api import OK, Call, Failure, PluginMetrics
    from agenthive_server.plugin.cell import Bounds, Cell, Running
    from agenthive_server.plugin.isolation import Hooked, guard_hooks
    from agenthive_server.plugin.walls import Guarded, Wall
    from agenthive_server.rpc.policy import POLICIES

    from tests.bench.plugin_fleet import Measure, label

    # A machine with other work to do must not switch it off: what is off costs nothing.
    bounds = Bounds(inline=60.0)
    cell = Cell("bench", Failure.OPEN, Running(), bounds, SystemClock(), lambda *_: None)
    hook = guard_hooks([Hooked(label, cell.act("HOOK", "before_delegate"), frozenset({"priority"}))])
    task = Delegating(namespace="default", task_id="t", spec=TaskSpec(type="bench"))

    class Context:
        metrics = PluginMetrics("bench")

    interceptor = Measure(Context())  # type: ignore[arg-type]  # it takes no more of it
    act = cell.act("INTERCEPTOR", "Measure", "OBSERVE")
    wall = Wall([Guarded(interceptor, act)])
    method = "/agenthive.v1.OrchestratorService/DelegateTask"
    call = Call(method, POLICIES[method], None, (), "default")  # type: ignore[arg-type]  # it asks for no transport

    def around() -> None:
        wall.before(call)
        wall.after(call, OK)

    empty = _timed(lambda: None)
    return {"hook": _timed(lambda: hook(task)) - empty, "interceptor": _timed(around) - empty}


def _timed(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.thread_time()
        for _ in range(TURNS):
            work()
        best = min(best, time.thread_time() - began)
    return best / TURNS


if __name__ == "__main__":
    sys.stdout.write(json.dumps(inline()) + "\n")
