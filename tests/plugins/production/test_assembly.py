"""The parts together on a served hive: which loops run, what the metrics say, what settings change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.v1 import production_service_pb2 as pb
from agenthive.v1.orchestrator_service_pb2_grpc import OrchestratorServiceStub
from agenthive_server.kernel.decide import Caller
from agenthive_server.testing.waiting import eventually
from grpc import aio

Serve = Callable[..., Any]
PREFIX = "agenthive_production_"
LOOPS = {"sample", "alerts", "sla", "health", "security", "anomalies", "tidy", "webhooks", "report", "takes over"}


def loops(hive: Any) -> set[str]:
    return {act.name for act in hive.app.plugins.report("production").acts if act.kind == "TASK"}


async def test_what_is_switched_off_has_no_loop(serve: Serve) -> None:
    async with serve(auto_scaling_enabled=False, backup_enabled=False) as hive:
        assert loops(hive) == LOOPS
    async with serve(auto_scaling_enabled=True, backup_enabled=True) as hive:
        assert loops(hive) == LOOPS | {"scaling", "backup"}


async def test_what_is_measured_is_exported(serve: Serve) -> None:
    quick = {"sample_interval_seconds": 0.05, "alert_interval_seconds": 0.05}
    async with (
        serve(**quick, sla_interval_seconds=0.05, health_interval_seconds=0.05) as hive,
        aio.insecure_channel(f"127.0.0.1:{hive.app.port}") as channel,
    ):
        stub = OrchestratorServiceStub(channel)

        async def exported() -> dict[tuple[str, str], float] | None:
            asked = orchestrator.GetMetricsRequest(name_prefix=PREFIX)
            metrics = (await stub.GetMetrics(asked)).metrics
            found = {
                (m.name.removeprefix("agenthive_production_"), m.labels[0].value if m.labels else ""): m.value
                for m in metrics
            }
            wanted = {
                ("measurement", "response_time_p95_ms"),
                ("alerts_open", "critical"),
                ("sla_compliance_percent", "error_rate"),
                ("health_score", ""),
                ("alerts_total", "rule"),
            }
            return found if wanted <= set(found) else None

        found = await eventually(exported)
        assert found is not None
        assert found["alerts_open", "critical"] >= 1
        assert found["sla_compliance_percent", "error_rate"] == 100
        assert found["measurement", "response_time_p95_ms"] > 0
        assert found["measurement", "active_agents"] == 0


async def test_rules_and_targets_that_were_deleted_stay_away_when_it_is_opened_again(serve: Serve) -> None:
    async with serve() as hive:
        await hive.stub.DeleteAlertRule(pb.DeleteAlertRuleRequest(rule_id="high_cpu_usage"))
        await hive.stub.DeleteSlaTarget(pb.DeleteSlaTargetRequest(target_id="error_rate"))
        anybody = Caller(namespace="default", principal="anybody")
        await hive.app.plugins.disable(anybody, "production")
        await hive.app.plugins.enable(anybody, "production")
        assert len((await hive.stub.ListAlertRules(pb.ListAlertRulesRequest())).rules) == 13
        assert len((await hive.stub.ListSlaTargets(pb.ListSlaTargetsRequest())).targets) == 3
