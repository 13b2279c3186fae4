"""Rules: which threshold counts, how values are compared, what tells causes apart."""

from __future__ import annotations

import pytest
from agenthive_plugins.production.alerts import (
    AlertRule,
    AlertSeverity,
    AlertSource,
    Comparison,
    Tier,
    fingerprint_of,
)
from agenthive_plugins.production.defaults import RULES

HIGH, CRITICAL = AlertSeverity.HIGH, AlertSeverity.CRITICAL


def test_a_rule_takes_the_most_urgent_threshold_that_is_crossed() -> None:
    rule = AlertRule(
        id="r",
        metric="cpu_usage_percent",
        comparison=Comparison.GREATER,
        threshold=80,
        severity=AlertSeverity.MEDIUM,
        tiers=(Tier(threshold=90, severity=HIGH), Tier(threshold=99, severity=CRITICAL)),
    )
    assert rule.crossed(80) is None
    assert rule.crossed(81) == (AlertSeverity.MEDIUM, 80)
    assert rule.crossed(95) == (HIGH, 90)
    assert rule.crossed(100) == (CRITICAL, 99)


@pytest.mark.parametrize(
    ("comparison", "holds"),
    [
        (Comparison.GREATER, (False, False, True)),
        (Comparison.LESS, (True, False, False)),
        (Comparison.GREATER_OR_EQUAL, (False, True, True)),
        (Comparison.LESS_OR_EQUAL, (True, True, False)),
        (Comparison.EQUAL, (False, True, False)),
        (Comparison.NOT_EQUAL, (True, False, True)),
    ],
)
def test_comparisons(comparison: Comparison, holds: tuple[bool, bool, bool]) -> None:
    rule = AlertRule(id="r", metric="x", comparison=comparison, threshold=5, severity=HIGH)
    assert tuple(rule.crossed(value) is not None for value in (4.0, 5.0, 6.0)) == holds


def test_causes_are_told_apart_by_their_fingerprints() -> None:
    names = {fingerprint_of(AlertSource.RULE, rule.id) for rule in RULES}
    names |= {fingerprint_of(AlertSource.SLA, rule.id) for rule in RULES}
    assert len(names) == 2 * len(RULES)
    assert fingerprint_of(AlertSource.RULE, "a", "b") != fingerprint_of(AlertSource.RULE, "ab")
