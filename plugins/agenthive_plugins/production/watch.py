"""The watch: looks, turn by turn, at alert rules, anomalies, the health of the hive and signs of an attack."""

from __future__ import annotations

from typing import Final

from agenthive_server.plugin.api import Clock, Gauge

from .alerts import CLEAR, AlertRule, AlertSeverity, AlertSource, Look, Sighting, fingerprint_of
from .anomalies import WATCHED, Anomaly
from .defaults import SECURITY_SIGNS, usual_plan
from .desk import TRACKS, Desk
from .health import SystemHealth, scores_of
from .ledger import Family, Ledger
from .lookout import Lookout
from .metrics import value_of
from .rules import fingerprint, look_at
from .series import SeriesSet

RULES: Final = Family("rule/", AlertRule, "alert_rule", 500)

_SIGNS_WINDOW: Final = 300.0
_SHORT: Final = {"cpu_usage_percent": "cpu_usage", "memory_usage_percent": "memory_usage"} | {
    "response_time_p95_ms": "response_time"
}
"""What the anomalies of some metrics have always been called."""


class Watch:
    """One method for each turn."""

    def __init__(
        self, ledger: Ledger, desk: Desk, lookout: Lookout, series: SeriesSet, clock: Clock, gauges: tuple[Gauge, Gauge]
    ) -> None:
        """`gauges`: of open alerts by severity, and of the health score."""
        self._ledger = ledger
        self._desk = desk
        self._lookout = lookout
        self._series = series
        self._clock = clock
        self._open_alerts, self._score = gauges

    async def rules(self) -> None:
        """Look at every alert rule, and resolve what belongs to none any more."""
        anomalies = await self._lookout.open()
        for rule in await self._ledger.all(RULES):
            look = look_at(rule, self._series, anomalies, self._clock.now())
            await self._desk.see(fingerprint(rule.id), rule.plan, look)
        await self._count()

    async def _count(self) -> None:
        counts = dict.fromkeys(AlertSeverity, 0)
        for track in await self._ledger.all(TRACKS):
            if track.alert is not None:
                counts[track.alert.severity] += 1
        for severity, count in counts.items():
            self._open_alerts.set(count, severity.name.lower())

    async def anomalies(self) -> None:
        """Let the detectors come up to now, and alert of what is unusual."""
        found = {anomaly.metric: anomaly for anomaly in await self._lookout.turn()}
        for metric in WATCHED:
            cause = fingerprint_of(AlertSource.ANOMALY, metric)
            await self._desk.see(cause, usual_plan(AlertSeverity.MEDIUM), _anomaly(found.get(metric)))

    async def health(self) -> None:
        """Work out how the hive is, and alert when it is not well."""
        scores = scores_of(self._series, self._clock.now())
        if scores.mean is None or scores.health is None:
            return
        self._score.set(scores.mean)
        look: Look = CLEAR
        if scores.health >= SystemHealth.UNHEALTHY:
            critical = scores.health is SystemHealth.CRITICAL
            look = Sighting(
                source=AlertSource.HEALTH,
                severity=AlertSeverity.CRITICAL if critical else AlertSeverity.HIGH,
                title=f"system_health_degraded: the hive is {scores.health.name.lower()}",
                description=f"Scores: processors {scores.cpu}, memory {scores.memory}, agents and errors"
                f" {scores.application}, response times {scores.response_time}.",
                value=scores.mean,
                threshold=0.6,
            )
        await self._desk.see(fingerprint_of(AlertSource.HEALTH, "system"), usual_plan(AlertSeverity.HIGH), look)

    async def security(self) -> None:
        """Look for what looks like an attack."""
        now = self._clock.now()
        for name, metric, threshold in SECURITY_SIGNS:
            value = value_of(self._series, metric, now - _SIGNS_WINDOW, now, now) or 0.0
            look: Look = CLEAR
            if value > threshold:
                look = Sighting(
                    source=AlertSource.SECURITY,
                    severity=AlertSeverity.HIGH,
                    title=f"{name}: {value:g} in five minutes",
                    metric=metric,
                    value=value,
                    threshold=threshold,
                )
            await self._desk.see(fingerprint_of(AlertSource.SECURITY, name), usual_plan(AlertSeverity.HIGH), look)


def _anomaly(anomaly: Anomaly | None) -> Look:
    if anomaly is None:
        return CLEAR
    name = _SHORT.get(anomaly.metric, anomaly.metric)
    return Sighting(
        source=AlertSource.ANOMALY,
        severity=AlertSeverity.MEDIUM,
        title=f"anomaly_{name}: {anomaly.value:g}, {anomaly.expected:g} was expected",
        description=f"{anomaly.kind.name.lower()} of {anomaly.metric}, {anomaly.deviation_percent:+.0f} %,"
        f" {anomaly.score:.1f} robust standard deviations.",
        metric=anomaly.metric,
        value=anomaly.value,
        threshold=anomaly.expected,
    )
