"""The watch: rules, health, signs of an attack and anomalies become alerts, and end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agenthive_plugins.production.alerts import AlertSeverity, AlertSource, AlertState
from agenthive_plugins.production.defaults import RULES as BUILT_IN
from agenthive_plugins.production.desk import ALERTS
from agenthive_plugins.production.ledger import Ledger
from agenthive_plugins.production.lookout import Lookout
from agenthive_plugins.production.series import SeriesSet
from agenthive_plugins.production.watch import RULES, Watch
from agenthive_server.plugin.api import ManualClock, PluginMetrics
from agenthive_server.plugin.state import PluginState


class Story:
    def __init__(self, ledger: Ledger, desk: Any, lookout: Lookout, series: SeriesSet, clock: ManualClock) -> None:
        self.ledger, self.series, self.clock = ledger, series, clock
        self.metrics = PluginMetrics("production")
        gauges = self.metrics.gauge("alerts_open", ("severity",)), self.metrics.gauge("health_score")
        self.watch = Watch(ledger, desk, lookout, series, clock, gauges)

    async def alerts(self) -> dict[str, tuple[AlertState, AlertSeverity]]:
        found = reversed(await self.ledger.all(ALERTS))
        return {alert.title.split(":")[0]: (alert.state, alert.severity) for alert in found}


@pytest.fixture
async def story(
    ledger: Ledger, desks: Callable[..., Any], series: SeriesSet, clock: ManualClock, state: PluginState, log: Any
) -> Story:
    await ledger.seed(RULES, {rule.id: rule for rule in BUILT_IN})
    lookout = Lookout(ledger, state, series, clock, log, sensitivity=2.0)
    await lookout.load()
    return Story(ledger, desks().desk, lookout, series, clock)


FIRING, RESOLVED = AlertState.FIRING, AlertState.RESOLVED


async def test_rules_fire_escalate_and_resolve(story: Story) -> None:
    story.series.gauge("cpu_usage_percent", story.clock.now(), 99)
    await story.watch.rules()
    assert await story.alerts() == {
        "high_cpu_usage": (FIRING, AlertSeverity.HIGH),
        "critical_cpu_usage": (FIRING, AlertSeverity.CRITICAL),
    }
    counts = {sample.labels[0][1]: sample.value for sample in story.metrics.samples() if sample.labels}
    assert counts == {"info": 0, "low": 0, "medium": 0, "high": 1, "critical": 1}
    # Nothing is measured for half an hour: nobody has acknowledged, and nothing says that it is over.
    story.clock.move(1_800)
    await story.watch.rules()
    assert (await story.alerts())["high_cpu_usage"] == (FIRING, AlertSeverity.CRITICAL)
    story.series.gauge("cpu_usage_percent", story.clock.now(), 10)
    await story.watch.rules()
    assert {state for state, _ in (await story.alerts()).values()} == {RESOLVED}


async def test_bad_health_alerts_by_how_bad_it_is(story: Story) -> None:
    for metric in ("cpu_usage_percent", "memory_usage_percent"):
        story.series.gauge(metric, story.clock.now(), 97)
    story.series.gauge("active_agents", story.clock.now(), 0)
    await story.watch.health()
    assert await story.alerts() == {"system_health_degraded": (FIRING, AlertSeverity.CRITICAL)}
    story.clock.move(400)
    story.series.gauge("cpu_usage_percent", story.clock.now(), 10)
    story.series.gauge("memory_usage_percent", story.clock.now(), 10)
    story.series.gauge("active_agents", story.clock.now(), 3)
    await story.watch.health()
    assert await story.alerts() == {"system_health_degraded": (RESOLVED, AlertSeverity.CRITICAL)}


async def test_signs_of_an_attack(story: Story) -> None:
    now = story.clock.now()
    story.series.count("failed_auth_attempts", now, 101)
    story.series.count("security_events", now, 50)
    story.series.count("blocked_requests", now, 1_001)
    await story.watch.security()
    assert set(await story.alerts()) == {"security_brute_force_attack", "security_potential_ddos"}
    assert {alert.source for alert in await story.ledger.all(ALERTS)} == {AlertSource.SECURITY}
    story.clock.move(400)
    await story.watch.security()
    assert {state for state, _ in (await story.alerts()).values()} == {RESOLVED}


async def test_an_anomaly_is_an_alert_while_it_lasts(story: Story) -> None:
    def minutes(number: int, value: float) -> None:
        for n in range(number):
            story.series.gauge("cpu_usage_percent", story.clock.now(), value + n % 3)
            story.series.spread("up_seconds", story.clock.now(), story.clock.now() + 60)
            story.clock.move(60)

    minutes(60, 20)
    await story.watch.anomalies()
    minutes(4, 70)
    await story.watch.anomalies()
    assert await story.alerts() == {"anomaly_cpu_usage": (FIRING, AlertSeverity.MEDIUM)}
    minutes(10, 20)
    await story.watch.anomalies()
    assert (await story.alerts())["anomaly_cpu_usage"][0] is RESOLVED
