"""An anomaly, caused by real agents on a served hive that has known half an hour of quiet.

Only the quiet is hurried: the server's clock follows the machine's, and jumps while nobody is there to see it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from agenthive import Client
from agenthive.v1 import agent_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.v1 import production_service_pb2 as pb
from agenthive.v1.production_service_pb2_grpc import ProductionServiceStub
from agenthive_plugins.production.plugin import registration
from agenthive_server.app import App
from agenthive_server.plugin.api import ManualClock, SystemClock
from agenthive_server.plugin.registry import Registry
from agenthive_server.settings import load
from agenthive_server.testing.waiting import eventually
from grpc import aio

LIMIT = 60.0
LOOK = 5.0
FLAGS: dict[str, object] = {
    "server.listen": "127.0.0.1:0",
    "plugins.enabled": ["production"],
    "plugins.production": {
        "sample_interval_seconds": LOOK,
        "anomaly_interval_seconds": LOOK,
        "backup_enabled": False,
    },
}


async def follow(clock: ManualClock) -> None:
    """Let a clock go on as the machine's does."""
    real = SystemClock()
    last = real.monotonic()
    while True:
        await asyncio.sleep(0.01)
        now = real.monotonic()
        clock.move(now - last)
        last = now


@asynccontextmanager
async def open_hive(folder: Path, clock: ManualClock) -> AsyncIterator[App]:
    """A server in this process on this clock, with a runner in a process of its own."""
    app = App(
        load(flags={**FLAGS, "server.data_dir": str(folder)}, environ={}),
        registry=Registry((registration,)),
        clock=clock,
    )
    following = asyncio.create_task(follow(clock))
    try:
        await app.open()
        try:
            yield app
        finally:
            await app.close()
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


async def hurry(clock: ManualClock, minutes: float) -> None:
    """Let time pass, look by look, while the server does what it does."""
    for _ in range(int(minutes * 60 / LOOK)):
        clock.move(LOOK)
        # Every loop that is due runs, and what it commits is committed.
        await asyncio.sleep(0.02)


async def test_a_burst_of_failures_is_an_anomaly_and_an_alert(tmp_path: Path) -> None:
    clock = ManualClock(SystemClock().now())
    async with open_hive(tmp_path, clock) as app:
        await hurry(clock, 30)
        app.start_runner()
        target = f"127.0.0.1:{app.port}"
        async with Client(target) as client, aio.insecure_channel(target) as channel:
            production = ProductionServiceStub(channel)
            broken = agent_pb2.AgentSpec(
                capabilities=["work"], slots=8, process=agent_pb2.ProcessDriver(command=["false"])
            )
            await client.spawn(spec=broken, agent_id="broken")
            once = task_pb2.RetryPolicy(maximum_attempts=1)
            spec = task_pb2.TaskSpec(type="work", required_capabilities=["work"], retry_policy=once)
            await client.delegate_many([orchestrator.NewTask(task_id=f"t{n}", spec=spec) for n in range(40)])
            for n in range(40):
                assert (await client.wait_task(f"t{n}", timeout=LIMIT)).state == task_pb2.TASK_STATE_FAILED
            await client.shutdown_agent("broken")
            await hurry(clock, 4)

            async def found() -> list[pb.Anomaly]:
                asked = pb.ListAnomaliesRequest(metric="tasks_failed")
                return list((await production.ListAnomalies(asked)).anomalies)

            (anomaly,) = await eventually(found, limit=LIMIT)
            assert anomaly.value > 5
            assert anomaly.expected_value < 1
            assert anomaly.score > 5

            async def alerts() -> list[pb.Alert]:
                every = pb.ListAlertsRequest(states=[pb.ALERT_STATE_FIRING, pb.ALERT_STATE_RESOLVED], page_size=100)
                told = (await production.ListAlerts(every)).alerts
                return [alert for alert in told if alert.title.startswith("anomaly_tasks_failed")]

            (alert,) = await eventually(alerts, limit=LIMIT)
            assert (alert.source, alert.severity) == (pb.ALERT_SOURCE_ANOMALY, pb.ALERT_SEVERITY_MEDIUM)
            # Ten quiet minutes later it is over.
            await hurry(clock, 12)

            async def over() -> bool:
                (seen,) = await found()
                return seen.HasField("end_time")

            await eventually(over, limit=LIMIT)
            quiet = (await production.ListAnomalies(pb.ListAnomaliesRequest(open_only=True))).anomalies
            assert "tasks_failed" not in {each.metric for each in quiet}
