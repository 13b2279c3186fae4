"""What rules find: values, trends, anomalies, and nothing where nothing was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agenthive_plugins.production.alerts import CLEAR, UNKNOWN, AlertRule, AlertSeverity, Comparison, Sighting, Tier
from agenthive_plugins.production.anomalies import Anomaly, AnomalyKind
from agenthive_plugins.production.buckets import Bucket
from agenthive_plugins.production.defaults import RULES
from agenthive_plugins.production.rules import look_at
from agenthive_plugins.production.series import SeriesSet

START = 1_700_000_040.0
"""A full minute."""
NOW = START + 300
CPU = next(rule for rule in RULES if rule.id == "high_cpu_usage")
SLOW = next(rule for rule in RULES if rule.id == "slow_db_queries")
SPIKE = next(rule for rule in RULES if rule.id == "security_events_spike")


def of(metric: str, *values: float) -> SeriesSet:
    """A value a minute."""
    series = SeriesSet(START)
    for n, value in enumerate(values):
        series.gauge(metric, START + 60 * n, value)
    return series


def test_a_value_across_the_threshold() -> None:
    found = look_at(CPU, of("cpu_usage_percent", 90, 90), (), NOW)
    assert isinstance(found, Sighting)
    assert (found.value, found.threshold, found.severity) == (90, 80, AlertSeverity.HIGH)
    assert found.title == "high_cpu_usage: cpu_usage_percent is 90"
    assert look_at(CPU, of("cpu_usage_percent", 70), (), NOW) is CLEAR
    assert look_at(CPU, SeriesSet(START), (), NOW) is UNKNOWN
    assert look_at(replace(CPU, disabled=True), of("cpu_usage_percent", 90), (), NOW) is CLEAR


def test_tiers() -> None:
    rule = replace(CPU, tiers=(Tier(threshold=95, severity=AlertSeverity.CRITICAL),))
    found = look_at(rule, of("cpu_usage_percent", 99), (), NOW)
    assert isinstance(found, Sighting)
    assert (found.severity, found.threshold) == (AlertSeverity.CRITICAL, 95)


def test_only_the_window_counts() -> None:
    series = of("cpu_usage_percent", 100, 100, 100, 10, 10)
    assert look_at(replace(CPU, window=120.0), series, (), NOW) is CLEAR


def test_a_trend_that_will_cross_it() -> None:
    rule = replace(SLOW, metric="cpu_usage_percent")
    found = look_at(rule, of("cpu_usage_percent", 300, 340, 380, 420, 460), (), NOW)
    assert isinstance(found, Sighting)
    assert "will be 580" in found.title
    for values in ((300, 300, 300, 300, 300), (460, 420, 380, 340, 300), (300, 310, 320, 330, 340), (100, 400)):
        assert look_at(rule, of("cpu_usage_percent", *values), (), NOW) is CLEAR


def test_an_anomaly_of_the_metric_in_the_bad_direction() -> None:
    series = SeriesSet(START)
    series.count("security_events", START, 5)
    anomaly = Anomaly(
        id="a", metric="security_events", kind=AnomalyKind.SPIKE, start=START, value=15, expected=1, score=9
    )
    found = look_at(SPIKE, series, [anomaly], NOW)
    assert isinstance(found, Sighting)
    assert "15, and 1 was expected" in found.title
    assert look_at(SPIKE, series, [replace(anomaly, value=0, expected=9)], NOW) is CLEAR
    assert look_at(SPIKE, series, [replace(anomaly, metric="calls")], NOW) is CLEAR
    below = replace(SPIKE, comparison=Comparison.LESS, threshold=0)
    assert isinstance(look_at(below, series, [replace(anomaly, value=0, expected=9)], NOW), Sighting)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_built_in_rule_fires_when_it_should(rule: AlertRule) -> None:
    series = SeriesSet(START)
    bad = rule.threshold + 1 if rule.comparison is Comparison.GREATER else rule.threshold - 1
    if rule.metric == "response_time_p95_ms":
        bucket = Bucket()
        bucket.add_time(bad * 2)
        series.add("response_time_ms", START, bucket)
    elif rule.metric == "error_rate_percent":
        series.count("calls", START, 100)
        series.count("call_faults", START, bad)
    elif rule.metric == "failed_tasks_last_hour":
        series.count("tasks_failed", START, bad)
    elif rule.metric == "availability_percent":
        series.spread("up_seconds", START, START + 200)
        series.spread("down_seconds", START + 200, NOW)
    else:
        series.gauge(rule.metric, NOW - 5, bad)
    assert isinstance(look_at(rule, series, (), NOW), Sighting)
