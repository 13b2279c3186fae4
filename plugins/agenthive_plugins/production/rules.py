"""What an alert rule finds when it looks at the series: pure functions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from .alerts import CLEAR, DOWNWARDS, UNKNOWN, UPWARDS, AlertRule, AlertSource, Look, Sighting, fingerprint_of
from .anomalies import Anomaly
from .metrics import value_of
from .series import MINUTES, SeriesSet

TREND_SAMPLES: Final = 5
TREND_AHEAD: Final = 3
"""A trend looks at so many minutes, and so many minutes ahead."""


def fingerprint(rule_id: str) -> str:
    """Return what the alerts of a rule are known by."""
    return fingerprint_of(AlertSource.RULE, rule_id)


def look_at(rule: AlertRule, series: SeriesSet, anomalies: Collection[Anomaly], now: float) -> Look:
    """Return what a rule finds now. `anomalies` are those that have not ended."""
    if rule.disabled:
        return CLEAR
    value = value_of(series, rule.metric, now - rule.window, now, now)
    if value is None:
        return UNKNOWN
    crossed = rule.crossed(value)
    if crossed is not None:
        severity, threshold = crossed
        return _sighting(rule, value, threshold, severity, f"is {value:g}")
    if rule.trend:
        ahead = _ahead(rule, series, now)
        if ahead is not None and rule.crossed(ahead) is not None:
            return _sighting(rule, value, rule.threshold, rule.severity, f"is {value:g} and will be {ahead:g}")
    if rule.anomaly:
        for anomaly in anomalies:
            if anomaly.metric == rule.metric and _bad(rule, anomaly):
                told = f"is {anomaly.value:g}, and {anomaly.expected:g} was expected"
                return _sighting(rule, value, rule.threshold, rule.severity, told)
    return CLEAR


def _sighting(rule: AlertRule, value: float, threshold: float, severity: int, told: str) -> Sighting:
    return Sighting(
        source=AlertSource.RULE,
        severity=type(rule.severity)(severity),
        title=f"{rule.id}: {rule.metric} {told}",
        rule_id=rule.id,
        description=rule.description,
        metric=rule.metric,
        value=value,
        threshold=threshold,
    )


def _ahead(rule: AlertRule, series: SeriesSet, now: float) -> float | None:
    """Return the value in a few minutes if it goes on as in the last ones: the line of least squares."""
    end = now // MINUTES.width * MINUTES.width
    found = [
        value_of(series, rule.metric, end - (n + 1) * MINUTES.width, end - n * MINUTES.width, now)
        for n in reversed(range(TREND_SAMPLES))
    ]
    values = [value for value in found if value is not None]
    if len(values) < TREND_SAMPLES:
        return None
    middle = (TREND_SAMPLES - 1) / 2
    mean = sum(values) / TREND_SAMPLES
    slope = sum((n - middle) * (value - mean) for n, value in enumerate(values))
    slope /= sum((n - middle) ** 2 for n in range(TREND_SAMPLES))
    return mean + slope * (middle + TREND_AHEAD)


def _bad(rule: AlertRule, anomaly: Anomaly) -> bool:
    """Whether an anomaly goes in the direction the rule is about."""
    if rule.comparison in UPWARDS:
        return anomaly.value > anomaly.expected
    if rule.comparison in DOWNWARDS:
        return anomaly.value < anomaly.expected
    return True
