"""Alert rules and alerts over a real port: bounds, pages, revisions, repeats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agenthive.v1 import production_service_pb2 as pb
from agenthive_server.testing.waiting import eventually
from google.protobuf.duration_pb2 import Duration

Serve = Callable[..., Any]


def rule(rule_id: str = "mine", **fields: Any) -> pb.AlertRule:
    usual: dict[str, Any] = {
        "metric": "active_agents",
        "comparison": pb.COMPARISON_LESS,
        "threshold": 1,
        "severity": pb.ALERT_SEVERITY_HIGH,
    }
    return pb.AlertRule(rule_id=rule_id, **{**usual, **fields})


async def test_rules_are_made_read_changed_and_removed(serve: Serve) -> None:
    async with serve() as hive:
        stub = hive.stub
        made = (await stub.CreateAlertRule(pb.CreateAlertRuleRequest(rule=rule()))).rule
        assert (made.revision, made.built_in, made.window.seconds, made.cooldown.seconds) == (1, False, 300, 600)
        assert [(step.after.seconds, step.severity) for step in made.escalation] == [
            (1_800, pb.ALERT_SEVERITY_CRITICAL)
        ]
        assert (await stub.GetAlertRule(pb.GetAlertRuleRequest(rule_id="mine"))).rule == made
        changed = rule(threshold=3, tiers=[pb.AlertTier(threshold=1, severity=pb.ALERT_SEVERITY_CRITICAL)])
        updated = (await stub.UpdateAlertRule(pb.UpdateAlertRuleRequest(rule=changed, revision=1))).rule
        assert (updated.revision, updated.threshold, len(updated.tiers)) == (2, 3, 1)
        again = stub.UpdateAlertRule(pb.UpdateAlertRuleRequest(rule=changed, revision=1))
        assert await hive.reason(again) == ("ABORTED", "REVISION_MISMATCH")
        await stub.DeleteAlertRule(pb.DeleteAlertRuleRequest(rule_id="mine"))
        for gone in (
            stub.GetAlertRule(pb.GetAlertRuleRequest(rule_id="mine")),
            stub.UpdateAlertRule(pb.UpdateAlertRuleRequest(rule=changed)),
            stub.DeleteAlertRule(pb.DeleteAlertRuleRequest(rule_id="mine")),
        ):
            assert await hive.reason(gone) == ("NOT_FOUND", "RECORD_NOT_FOUND")


async def test_a_new_hive_has_fourteen_rules_in_pages(serve: Serve) -> None:
    async with serve() as hive:
        found: list[str] = []
        token = ""
        while True:
            page = await hive.stub.ListAlertRules(pb.ListAlertRulesRequest(page_size=5, page_token=token))
            found += [each.rule_id for each in page.rules]
            token = page.next_page_token
            if not token:
                break
        assert len(found) == 14
        assert found == sorted(found)
        wrong = hive.stub.ListAlertRules(pb.ListAlertRulesRequest(page_token="nonsense"))
        assert await hive.reason(wrong) == ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN")


async def test_a_repeat_has_one_effect(serve: Serve) -> None:
    async with serve() as hive:
        request = pb.CreateAlertRuleRequest(request_id="r1", rule=rule())
        first = await hive.stub.CreateAlertRule(request)
        assert await hive.stub.CreateAlertRule(request) == first
        other = pb.CreateAlertRuleRequest(request_id="r1", rule=rule("other"))
        assert await hive.reason(hive.stub.CreateAlertRule(other)) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
        twice = hive.stub.CreateAlertRule(pb.CreateAlertRuleRequest(rule=rule()))
        assert await hive.reason(twice) == ("ALREADY_EXISTS", "RECORD_EXISTS")


@pytest.mark.parametrize(
    "bad",
    [
        rule(""),
        rule("a b"),
        rule(metric="redis_latency_ms"),
        rule(comparison=0),
        rule(comparison=99),
        rule(severity=0),
        rule(threshold=float("nan")),
        rule(threshold=float("inf")),
        rule(window=Duration(seconds=1)),
        rule(window=Duration(seconds=90_000)),
        rule(hold=Duration(seconds=-1)),
        rule(cooldown=Duration(seconds=-1)),
        rule(description="x" * 2_000),
        rule(tiers=[pb.AlertTier(threshold=1, severity=pb.ALERT_SEVERITY_LOW)] * 5),
        rule(tiers=[pb.AlertTier(threshold=1)]),
        rule(escalation=[pb.EscalationStep()]),
        rule(escalation=[pb.EscalationStep(after=Duration(seconds=60))] * 2),
        rule(webhooks=["nobody"]),
        rule(escalation=[pb.EscalationStep(after=Duration(seconds=60), webhooks=["nobody"])]),
    ],
)
async def test_a_rule_that_makes_no_sense_is_refused(serve: Serve, bad: pb.AlertRule) -> None:
    async with serve() as hive:
        refused = hive.stub.CreateAlertRule(pb.CreateAlertRuleRequest(rule=bad))
        assert await hive.reason(refused) == ("INVALID_ARGUMENT", "INVALID_FIELD")


async def test_an_alert_is_listed_acknowledged_and_resolved(serve: Serve) -> None:
    """A hive without agents has one for real."""
    async with serve(sample_interval_seconds=0.05, alert_interval_seconds=0.05) as hive:
        stub = hive.stub

        async def open_alerts() -> list[pb.Alert]:
            return list((await stub.ListAlerts(pb.ListAlertsRequest(rule_id="no_active_agents"))).alerts)

        (alert,) = await eventually(open_alerts)
        assert (alert.state, alert.severity) == (pb.ALERT_STATE_FIRING, pb.ALERT_SEVERITY_CRITICAL)
        assert (alert.source, alert.metric) == (pb.ALERT_SOURCE_RULE, "active_agents")
        acknowledge = pb.AcknowledgeAlertRequest(alert_id=alert.alert_id, note="starting some")
        acknowledged = (await stub.AcknowledgeAlert(acknowledge)).alert
        assert (acknowledged.state, acknowledged.note) == (pb.ALERT_STATE_ACKNOWLEDGED, "starting some")
        assert (await stub.GetAlert(pb.GetAlertRequest(alert_id=alert.alert_id))).alert.HasField("acknowledge_time")
        resolved = (await stub.ResolveAlert(pb.ResolveAlertRequest(alert_id=alert.alert_id))).alert
        assert resolved.state == pb.ALERT_STATE_RESOLVED
        assert await hive.reason(stub.AcknowledgeAlert(acknowledge)) == ("FAILED_PRECONDITION", "ILLEGAL_TRANSITION")
        assert await open_alerts() == []
        resolved_only = pb.ListAlertsRequest(states=[pb.ALERT_STATE_RESOLVED], minimum_severity=pb.ALERT_SEVERITY_HIGH)
        assert [each.alert_id for each in (await stub.ListAlerts(resolved_only)).alerts] == [alert.alert_id]
        told = (await stub.GetAlertRule(pb.GetAlertRuleRequest(rule_id="no_active_agents"))).rule
        assert told.trigger_count == 1
        assert told.HasField("last_trigger_time")
        nobody = stub.GetAlert(pb.GetAlertRequest(alert_id="nobody"))
        assert await hive.reason(nobody) == ("NOT_FOUND", "RECORD_NOT_FOUND")
        wrong = stub.ListAlerts(pb.ListAlertsRequest(states=[99]))  # type: ignore[list-item]  # no value of the enum
        assert await hive.reason(wrong) == ("INVALID_ARGUMENT", "INVALID_FIELD")


async def test_deleting_a_rule_resolves_its_alert(serve: Serve) -> None:
    async with serve(sample_interval_seconds=0.05, alert_interval_seconds=0.05) as hive:

        async def states() -> list[int]:
            everything = pb.ListAlertsRequest(
                rule_id="no_active_agents", states=[pb.ALERT_STATE_FIRING, pb.ALERT_STATE_RESOLVED]
            )
            return [alert.state for alert in (await hive.stub.ListAlerts(everything)).alerts]

        await eventually(states)
        await hive.stub.DeleteAlertRule(pb.DeleteAlertRuleRequest(rule_id="no_active_agents"))
        assert await states() == [pb.ALERT_STATE_RESOLVED]
