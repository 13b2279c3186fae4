"""Each caused for real, with a server and a runner in processes of their own and real process agents.

A service level is breached, by agents that fail and by a server that is killed; a pool grows with a burst of tasks and
shrinks after it; alerts reach a web server, signed; a hive whose data directory is gone comes back from a backup.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from agenthive import Client
from agenthive.v1 import agent_pb2, event_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.v1 import production_service_pb2 as pb
from agenthive.v1.production_service_pb2_grpc import ProductionServiceStub
from agenthive_plugins.production.scaling import LABEL
from agenthive_server.testing.harness import ServerProcess
from agenthive_server.testing.processes import find_runner
from agenthive_server.testing.waiting import eventually
from google.protobuf.duration_pb2 import Duration
from grpc import aio

LIMIT = 60.0
SECRET = "0123456789abcdef"
QUICK = {
    "sample_interval_seconds": 0.2,
    "alert_interval_seconds": 0.2,
    "sla_interval_seconds": 0.2,
    "scaling_interval_seconds": 0.2,
    "backup_enabled": False,
}
ONCE = task_pb2.RetryPolicy(maximum_attempts=1)


def toml(config: dict[str, Any]) -> str:
    """Settings as a file has them; JSON's values are TOML's, but for tables."""
    lines = ["[plugins]", 'enabled = ["production"]', "[plugins.production]"]
    tables = []
    for key, value in config.items():
        if key == "webhooks":
            for each in value:
                tables += ["[[plugins.production.webhooks]]", *(f"{k} = {json.dumps(v)}" for k, v in each.items())]
        elif isinstance(value, dict):
            tables += [f"[plugins.production.{key}]", *(f"{k} = {json.dumps(v)}" for k, v in value.items())]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join([*lines, *tables]) + "\n"


@dataclass
class Hive:
    server: ServerProcess
    client: Client
    production: Any

    async def report(self, target_id: str) -> pb.SlaReport:
        request = pb.CheckSlaComplianceRequest(target_ids=[target_id])
        found: pb.SlaReport = (await self.production.CheckSlaCompliance(request)).reports[0]
        return found

    async def alerts(self, begin: str) -> list[pb.Alert]:
        everything = pb.ListAlertsRequest(states=[pb.ALERT_STATE_FIRING, pb.ALERT_STATE_RESOLVED], page_size=1_000)
        found = (await self.production.ListAlerts(everything)).alerts
        return [alert for alert in found if alert.title.startswith(begin)]


@asynccontextmanager
async def connected(server: ServerProcess) -> AsyncIterator[Hive]:
    async with Client(server.target) as client, aio.insecure_channel(server.target) as channel:
        yield Hive(server, client, ProductionServiceStub(channel))


@pytest.fixture
async def hives(tmp_path: Path) -> AsyncIterator[Callable[..., ServerProcess]]:
    """Make servers with the plugin on and a runner; they are stopped at the end."""
    made: list[ServerProcess] = []

    def make(name: str = "hive", data_dir: Path | None = None, **config: Any) -> ServerProcess:
        settings = tmp_path / f"{name}.toml"
        settings.write_text(toml({**QUICK, **config}), encoding="utf-8")
        server = ServerProcess(data_dir or tmp_path / name, "--config", str(settings), runner=True)
        made.append(server)
        return server

    yield make
    for server in made:
        await server.stop()


def process(*command: str) -> agent_pb2.AgentSpec:
    return agent_pb2.AgentSpec(
        capabilities=["work"], process=agent_pb2.ProcessDriver(command=command), stop_grace=Duration(seconds=5)
    )


async def delegate(hive: Hive, prefix: str, number: int) -> list[str]:
    spec = task_pb2.TaskSpec(type="work", required_capabilities=["work"], retry_policy=ONCE)
    tasks = [orchestrator.NewTask(task_id=f"{prefix}-{n}", spec=spec) for n in range(number)]
    await hive.client.delegate_many(tasks)
    return [task.task_id for task in tasks]


async def ended(hive: Hive, names: list[str]) -> list[int]:
    return [(await hive.client.wait_task(name, timeout=LIMIT)).state for name in names]


async def test_agents_that_fail_breach_a_service_level_and_people_are_told(
    hives: Callable[..., ServerProcess], real_receiver: Any
) -> None:
    server = hives(
        webhooks=[{"name": "ops", "url": f"http://127.0.0.1:{real_receiver.port}/hook", "minimum_severity": "high"}],
        webhook_secrets={"ops": SECRET},
        egress_hosts=["127.0.0.1"],
        egress_private=True,
    )
    await server.start()
    async with connected(server) as hive:
        await hive.client.spawn(spec=process("false"), agent_id="broken")
        states = await ended(hive, await delegate(hive, "bad", 12))
        assert set(states) == {task_pb2.TASK_STATE_FAILED}

        async def breach() -> list[pb.Alert]:
            return await hive.alerts("sla_breach_task_completion_rate")

        (alert,) = await eventually(breach, limit=LIMIT)
        assert (alert.source, alert.severity) == (pb.ALERT_SOURCE_SLA, pb.ALERT_SEVERITY_HIGH)

        async def counted() -> bool:
            return (await hive.report("task_completion_rate")).total == 12

        await eventually(counted, limit=LIMIT)
        report = await hive.report("task_completion_rate")
        assert (report.met, report.current_value) == (False, 0)
        assert report.budget_left < 0
        assert [(culprit.name, culprit.bad) for culprit in report.culprits] == [("TOOL", 12)]
        assert report.bad_intervals[0].bad == 12
        assert alert.alert_id in report.alert_ids
        # The catalogue's own rule: more than ten failed tasks in an hour.
        assert await eventually(partial(hive.alerts, "agent_failure_rate"), limit=LIMIT)

        def told() -> set[str]:
            return {body["data"]["title"].split(":")[0] for body in real_receiver.bodies}

        wanted = {"sla_breach_task_completion_rate", "agent_failure_rate"}
        await eventually(lambda: wanted <= told(), limit=LIMIT)
        assert real_receiver.unsigned == 0
        reported = event_pb2.EventFilter(types=[event_pb2.EVENT_TYPE_PLUGIN_REPORTED], all_namespaces=True)
        subjects = {
            event.plugin_reported.subject
            async for event in hive.client.events(
                filter=reported, start=orchestrator.STREAM_START_EARLIEST, follow=False
            )
        }
        assert alert.alert_id in subjects


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_server_that_ended_was_down_and_what_it_knew_is_still_there(
    hives: Callable[..., ServerProcess], end: str
) -> None:
    server = hives()
    await server.start()
    async with connected(server) as hive:
        await hive.client.spawn(spec=process("true"), agent_id="good")
        await ended(hive, await delegate(hive, "good", 5))

        async def counted() -> bool:
            return (await hive.report("task_completion_rate")).total == 5

        await eventually(counted, limit=LIMIT)
        assert (await hive.report("system_availability")).met

        async def stored() -> bool:
            # Counted is stored with the next look, a moment later.
            points = (await hive.production.QuerySeries(pb.QuerySeriesRequest(metric="up_seconds"))).points
            return bool(sum(point.sum for point in points) > 1.5)

        await eventually(stored, limit=LIMIT)
    await getattr(server, end)()
    await server.start()
    async with connected(server) as hive:
        report = await hive.report("system_availability")
        assert not report.met
        assert 0 < report.current_value < 99.9
        down = report.total - report.good
        assert 0.1 < down < LIMIT
        assert report.bad_intervals[0].bad == pytest.approx(down)
        assert (await hive.report("task_completion_rate")).total == 5
        assert await eventually(partial(hive.alerts, "low_availability"), limit=LIMIT)


async def test_a_pool_grows_with_a_burst_and_shrinks_after_it(hives: Callable[..., ServerProcess]) -> None:
    server = hives()
    await server.start()
    async with connected(server) as hive:
        work = f"{sys.executable} -c 'import time; time.sleep(0.5)'"
        policy = pb.ScalingPolicy(
            pool_id="burst",
            template=process("sh", "-c", work),
            min_agents=1,
            max_agents=4,
            cooldown=Duration(seconds=1),
            stabilization=Duration(seconds=1),
            drain_grace=Duration(seconds=30),
        )
        await hive.production.SetScalingPolicy(pb.SetScalingPolicyRequest(policy=policy))
        sizes: list[int] = []

        async def came_to(number: int) -> pb.ScalingDecision | None:
            """The last decision, when it led to so many agents, and they are there."""
            found = (await hive.production.GetScalingPolicy(pb.GetScalingPolicyRequest(pool_id="burst"))).policy
            sizes.append(found.current_agents)
            last: pb.ScalingDecision = found.last_decision
            return last if last.recommended_agents == found.current_agents == number else None

        await eventually(partial(came_to, 1), limit=LIMIT)
        names = await delegate(hive, "burst", 24)
        up = await eventually(partial(came_to, 4), limit=LIMIT)
        assert up is not None
        assert up.action == pb.SCALING_ACTION_SCALE_UP
        assert up.pressure.pool > 0.7
        assert len(up.agent_ids) == up.recommended_agents - up.current_agents
        assert set(await ended(hive, names)) == {task_pb2.TASK_STATE_SUCCEEDED}
        down = await eventually(partial(came_to, 1), limit=LIMIT)
        assert down is not None
        # Down it goes one by one.
        assert (down.action, down.current_agents) == (pb.SCALING_ACTION_SCALE_DOWN, 2)
        assert max(sizes) == 4
        agents = [agent async for agent in hive.client.list_agents(labels={LABEL: "burst"})]
        tasks = {task.task_id: task async for task in hive.client.list_tasks()}
        assert {tasks[name].attempt for name in names} == {1}
        assert len({agent.agent_id for agent in agents}) == 4


async def test_an_agent_that_works_is_drained_before_it_is_stopped(hives: Callable[..., ServerProcess]) -> None:
    server = hives(auto_scaling_enabled=False)
    await server.start()
    async with connected(server) as hive:
        policy = pb.ScalingPolicy(
            pool_id="slow", template=process("sleep", "2"), min_agents=2, drain_grace=Duration(seconds=60)
        )
        await hive.production.SetScalingPolicy(pb.SetScalingPolicyRequest(policy=policy))
        trigger = pb.TriggerAutoScalingRequest(pool_id="slow", force=True)
        await hive.production.TriggerAutoScaling(trigger)
        names = await delegate(hive, "slow", 2)

        async def held() -> bool:
            return {(await hive.client.get_task(name)).state for name in names} == {task_pb2.TASK_STATE_RUNNING}

        await eventually(held, limit=LIMIT)
        # Nobody needs them any more, says the operator: both are told to go while they work.
        policy.max_agents, policy.min_agents, policy.allow_empty = 1, 0, True
        await hive.production.SetScalingPolicy(pb.SetScalingPolicyRequest(policy=policy))
        decision = (await hive.production.TriggerAutoScaling(trigger)).decision
        assert (decision.action, decision.recommended_agents) == (pb.SCALING_ACTION_SCALE_DOWN, 1)
        (gone,) = decision.agent_ids
        assert (await hive.client.get_agent(gone)).state == agent_pb2.AGENT_STATE_DRAINING
        assert set(await ended(hive, names)) == {task_pb2.TASK_STATE_SUCCEEDED}

        async def stopped() -> bool:
            return (await hive.client.get_agent(gone)).state == agent_pb2.AGENT_STATE_STOPPED

        await eventually(stopped, limit=LIMIT)
        assert {(await hive.client.get_task(name)).attempt for name in names} == {1}


async def test_a_hive_whose_data_are_gone_comes_back_from_a_backup(
    hives: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    elsewhere = str(tmp_path / "elsewhere" / "backups")
    lost = hives("lost", backup_folder=elsewhere)
    await lost.start()
    async with connected(lost) as hive:
        await hive.client.spawn(spec=process("echo", "done"), agent_id="good")
        names = await delegate(hive, "kept", 5)
        assert set(await ended(hive, names)) == {task_pb2.TASK_STATE_SUCCEEDED}

        async def counted() -> bool:
            return (await hive.report("task_completion_rate")).total == 5

        await eventually(counted, limit=LIMIT)
        made = (await hive.production.CreateBackup(pb.CreateBackupRequest())).backup
        (gone,) = await delegate(hive, "gone", 1)
        await ended(hive, [gone])
    await lost.kill()
    # The machine is gone, with everything on it.
    os.kill(find_runner(lost.data_dir), signal.SIGKILL)
    shutil.rmtree(lost.data_dir)
    # A new server, with nothing but the backups.
    empty = hives("empty", backup_folder=elsewhere)
    await empty.start()
    async with connected(empty) as hive:
        found = await hive.production.HandleDisasterRecovery(pb.HandleDisasterRecoveryRequest())
        assert found.backup.backup_id == made.backup_id
        assert found.backup.state == pb.BACKUP_STATE_VERIFIED
        assert found.recovery_time.ToSeconds() < LIMIT
    await empty.stop()
    again = hives("again", Path(found.path), backup_folder=elsewhere)
    await again.start()
    async with connected(again) as hive:
        for name in names:
            task = await hive.client.get_task(name)
            assert (task.state, task.result.data) == (task_pb2.TASK_STATE_SUCCEEDED, b"done\n")
        assert (await hive.report("task_completion_rate")).total == 5
        assert set(await ended(hive, await delegate(hive, "new", 2))) == {task_pb2.TASK_STATE_SUCCEEDED}
