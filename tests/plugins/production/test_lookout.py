"""The lookout: anomalies are found, kept, told once, and looked for again after a crash."""

from __future__ import annotations

import logging
import random

import pytest
from agenthive_plugins.production.anomalies import AnomalyKind
from agenthive_plugins.production.ledger import Ledger
from agenthive_plugins.production.lookout import ANOMALIES, Lookout
from agenthive_plugins.production.series import SeriesSet
from agenthive_server.plugin.api import ManualClock
from agenthive_server.plugin.state import PluginState


class Story:
    """A metric minute by minute, and whoever looks out."""

    def __init__(self, ledger: Ledger, state: PluginState, series: SeriesSet, clock: ManualClock) -> None:
        self.ledger, self.state, self.series, self.clock = ledger, state, series, clock
        self.lookout = self.new()
        self.rng = random.Random(1)

    def new(self) -> Lookout:
        log = logging.getLogger("plugin.production")
        return Lookout(self.ledger, self.state, self.series, self.clock, log, sensitivity=2.0)

    def minutes(self, number: int, level: float) -> None:
        for _ in range(number):
            self.series.gauge("cpu_usage_percent", self.clock.now(), self.rng.gauss(level, 2))
            self.series.spread("up_seconds", self.clock.now(), self.clock.now() + 60)
            self.clock.move(60)


@pytest.fixture
async def story(ledger: Ledger, state: PluginState, series: SeriesSet, clock: ManualClock) -> Story:
    made = Story(ledger, state, series, clock)
    await made.lookout.load()
    return made


async def test_an_anomaly_from_its_begin_to_its_end(story: Story) -> None:
    story.minutes(60, 30)
    assert await story.lookout.turn() == []
    story.minutes(4, 90)
    (found,) = await story.lookout.turn()
    assert (found.metric, found.kind, found.end) == ("cpu_usage_percent", AnomalyKind.SPIKE, 0.0)
    assert found.value > 80
    assert found.expected == pytest.approx(30, abs=3)
    story.minutes(10, 30)
    assert await story.lookout.turn() == []
    (kept,) = await story.ledger.all(ANOMALIES)
    assert kept.id == found.id
    assert 120 <= kept.end - kept.start <= 900


async def test_after_a_crash_it_looks_again_and_tells_nothing_twice(story: Story) -> None:
    story.minutes(60, 30)
    await story.lookout.turn()
    await story.lookout.save()
    story.minutes(4, 90)
    await story.lookout.turn()
    again = story.new()
    await again.load()
    story.minutes(10, 30)
    assert await again.turn() == []
    (kept,) = await story.ledger.all(ANOMALIES)
    assert kept.end


async def test_what_is_usual_is_remembered_over_a_restart(story: Story) -> None:
    story.minutes(60, 30)
    await story.lookout.turn()
    await story.lookout.save()
    again = story.new()
    await again.load()
    story.minutes(4, 90)
    assert len(await again.turn()) == 1


async def test_time_in_which_nobody_measured_says_nothing(story: Story) -> None:
    """While the server is down no call is counted; that is no anomaly of the calls."""
    for _ in range(120):
        story.series.count("calls", story.clock.now(), 600)
        story.minutes(1, 30)
    await story.lookout.turn()
    story.clock.move(3_600)
    for _ in range(30):
        story.series.count("calls", story.clock.now(), 600)
        story.minutes(1, 30)
    assert await story.lookout.turn() == []
    assert await story.ledger.all(ANOMALIES) == []


async def test_a_baseline_that_cannot_be_read_is_learned_anew(story: Story, caplog: pytest.LogCaptureFixture) -> None:
    await story.state.put("baseline/cpu_usage_percent", b"nonsense")
    again = story.new()
    await again.load()
    story.minutes(60, 30)
    assert await again.turn() == []
    assert "learned anew" in caplog.text


async def test_all_but_the_last_are_forgotten(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    from agenthive_plugins.production import lookout

    monkeypatch.setattr(lookout, "KEPT", 2)
    story.minutes(60, 30)
    for _ in range(4):
        story.minutes(2, 90)
        story.minutes(30, 30)
    await story.lookout.turn()
    assert len(await story.ledger.all(ANOMALIES)) == 2
