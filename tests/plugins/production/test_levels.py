"""Service levels turn by turn: breaches and burning budgets alert, and a report says who did it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agenthive_plugins.production.alerts import AlertState
from agenthive_plugins.production.blame import Blame
from agenthive_plugins.production.defaults import TARGETS as BUILT_IN
from agenthive_plugins.production.desk import ALERTS
from agenthive_plugins.production.ledger import Ledger
from agenthive_plugins.production.levels import HISTORIES, TARGETS, Levels
from agenthive_plugins.production.series import SeriesSet
from agenthive_server.plugin.api import ManualClock, PluginMetrics


class Story:
    def __init__(self, ledger: Ledger, made: Any, series: SeriesSet, clock: ManualClock) -> None:
        self.ledger, self.series, self.clock, self.blame = ledger, series, clock, Blame()
        self.metrics = PluginMetrics("production")
        gauge = self.metrics.gauge("sla_compliance_percent", ("target",))
        self.levels = Levels(ledger, made.desk, series, self.blame, clock, gauge)

    def minute(self, *, good: int, failed: int) -> None:
        self.series.count("tasks_succeeded", self.clock.now(), good)
        self.series.count("tasks_failed", self.clock.now(), failed)
        self.blame.add("task", "TOOL", failed, self.clock.now())
        self.clock.move(60)


@pytest.fixture
async def story(ledger: Ledger, desks: Callable[..., Any], series: SeriesSet, clock: ManualClock) -> Story:
    await ledger.seed(TARGETS, {target.id: target for target in BUILT_IN})
    return Story(ledger, desks(), series, clock)


async def test_a_breach_alerts_once_and_ends(story: Story) -> None:
    for _ in range(10):
        story.minute(good=10, failed=0)
    await story.levels.turn()
    assert await story.ledger.all(ALERTS) == []
    for _ in range(5):
        story.minute(good=0, failed=10)
    for _ in range(3):
        await story.levels.turn()
    titles = {alert.title.split(":")[0]: alert for alert in await story.ledger.all(ALERTS)}
    assert set(titles) == {"sla_breach_task_completion_rate", "sla_burn_task_completion_rate"}
    assert titles["sla_breach_task_completion_rate"].rule_id == "task_completion_rate"
    history = await story.ledger.get(HISTORIES, "task_completion_rate")
    assert (history.missed, history.breaches) == (True, 1)
    # A day later the window has slid on.
    story.clock.move(90_000)
    story.minute(good=100, failed=0)
    await story.levels.turn()
    assert {alert.state for alert in await story.ledger.all(ALERTS)} == {AlertState.RESOLVED}
    assert not (await story.ledger.get(HISTORIES, "task_completion_rate")).missed


async def test_a_report_says_when_and_who(story: Story) -> None:
    start = story.clock.now()
    for _ in range(10):
        story.minute(good=10, failed=0)
    for _ in range(5):
        story.minute(good=0, failed=10)
    await story.levels.turn()
    target = await story.ledger.get(TARGETS, "task_completion_rate")
    report = await story.levels.report(target)
    assert not report.standing.met
    (span,) = report.intervals
    assert start + 540 <= span.start <= start + 600
    assert span.bad == span.total == 50
    assert list(report.culprits) == [("TOOL", 50.0)]
    assert {alert.rule_id for alert in report.alerts} == {"task_completion_rate"}
    short = await story.levels.report(target, why=False)
    assert short.standing == report.standing
    assert not short.intervals


async def test_compliance_is_a_metric(story: Story) -> None:
    story.minute(good=1, failed=1)
    await story.levels.turn()
    found = {sample.labels[0][1]: sample.value for sample in story.metrics.samples()}
    assert found["system_availability"] == 100.0
    assert found["task_completion_rate"] == pytest.approx(100 - 100 * 45 / 95)


async def test_where_nothing_is_measured_nothing_is_said(story: Story) -> None:
    await story.levels.turn()
    assert await story.ledger.all(ALERTS) == []
