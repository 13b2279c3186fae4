"""Alert rules and alerts come back as they were written."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agenthive.v1 import production_service_pb2 as pb
from agenthive_plugins.production.alerts import (
    Alert,
    AlertRule,
    AlertSeverity,
    AlertSource,
    AlertState,
    Comparison,
    EscalationStep,
    Tier,
    Track,
)
from agenthive_plugins.production.convert_alerts import fill_alert, fill_rule, rule_from
from agenthive_plugins.production.defaults import RULES
from agenthive_plugins.production.metrics import METRICS
from hypothesis import given, settings
from hypothesis import strategies as st

severities = st.sampled_from(AlertSeverity)
thresholds = st.floats(-1e9, 1e9)
seconds = st.integers(0, 86_400).map(float)
rules = st.builds(
    AlertRule,
    id=st.from_regex(r"\A[A-Za-z0-9._-]{1,20}\Z"),
    metric=st.sampled_from(METRICS),
    comparison=st.sampled_from(Comparison),
    threshold=thresholds,
    severity=severities,
    description=st.text("abc é", max_size=50),
    tiers=st.lists(st.builds(Tier, threshold=thresholds, severity=severities), max_size=4).map(tuple),
    window=st.integers(10, 86_400).map(float),
    hold=seconds,
    cooldown=seconds,
    escalation=st.lists(st.integers(1, 10_000), min_size=1, max_size=8, unique=True).map(
        lambda times: tuple(EscalationStep(after=float(n), severity=n % 6, webhooks=("ops",)) for n in sorted(times))
    ),
    anomaly=st.booleans(),
    trend=st.booleans(),
    webhooks=st.lists(st.sampled_from(["ops", "boss"]), max_size=2).map(tuple),
    disabled=st.booleans(),
)


@given(rules)
@settings(max_examples=100, deadline=None)
def test_a_rule_comes_back_as_it_was(rule: AlertRule) -> None:
    message = pb.AlertRule()
    fill_rule(message, rule, None)
    again = pb.AlertRule.FromString(message.SerializeToString())
    assert rule_from(again) == rule


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_built_in_rules_can_be_written_back(rule: AlertRule) -> None:
    message = pb.AlertRule()
    fill_rule(message, rule, Track(fingerprint="f", last_trigger=5.0, triggers=2))
    assert (message.built_in, message.trigger_count, message.last_trigger_time.seconds) == (True, 2, 5)
    assert replace(rule_from(message), built_in=True) == rule


def test_an_alert() -> None:
    message = pb.Alert()
    alert = Alert(
        id="a",
        fingerprint="f",
        source=AlertSource.SLA,
        severity=AlertSeverity.LOW,
        state=AlertState.ACKNOWLEDGED,
        title="t",
        trigger_time=1.5,
        acknowledge_time=2.5,
        acknowledged_by="anna",
    )
    fill_alert(message, alert)
    assert (message.source, message.severity, message.state) == (
        pb.ALERT_SOURCE_SLA,
        pb.ALERT_SEVERITY_LOW,
        pb.ALERT_STATE_ACKNOWLEDGED,
    )
    assert message.trigger_time.ToMilliseconds() == 1_500
    assert not message.HasField("resolve_time")


def test_numbers_and_names_of_enums_are_those_of_the_contract() -> None:
    for ours, theirs, prefix in (
        (AlertSeverity, pb.AlertSeverity, "ALERT_SEVERITY_"),
        (AlertState, pb.AlertState, "ALERT_STATE_"),
        (AlertSource, pb.AlertSource, "ALERT_SOURCE_"),
        (Comparison, pb.Comparison, "COMPARISON_"),
    ):
        named = {name.removeprefix(prefix): number for name, number in theirs.items() if number}
        assert {member.name: member.value for member in ours} == named
