"""The keeper: series survive a restart, a kill loses one turn, what is damaged is left out and told."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest
from agenthive_plugins.production.blame import Blame
from agenthive_plugins.production.buckets import Bucket
from agenthive_plugins.production.keeper import Keeper
from agenthive_plugins.production.series import SeriesSet
from agenthive_plugins.production.uptime import LastLook
from agenthive_server.plugin.api import ManualClock
from agenthive_server.plugin.state import PluginState

DAY = 86_400.0


@dataclass
class Life:
    """One life of the plugin."""

    state: PluginState
    clock: ManualClock
    series: SeriesSet = field(init=False)
    blame: Blame = field(init=False)
    keeper: Keeper = field(init=False)

    def __post_init__(self) -> None:
        self.series, self.blame = SeriesSet(self.clock.now()), Blame()
        log = logging.getLogger("plugin.production")
        self.keeper = Keeper(self.state, self.series, self.blame, self.clock, log)

    async def flush(self, sequence: int = 0, *, all_of_it: bool = False) -> None:
        await self.keeper.flush(LastLook(time=self.clock.now()), sequence, all_of_it=all_of_it)

    def total(self, name: str, span: float) -> float:
        now = self.clock.now()
        return self.series.window(name, now - span, now + 1, now + 1).total


async def test_a_new_hive_has_nothing(state: PluginState, clock: ManualClock) -> None:
    life = Life(state, clock)
    assert await life.keeper.load() == (None, 0)
    assert life.series.names == []


async def test_series_survive_a_restart(state: PluginState, clock: ManualClock) -> None:
    life = Life(state, clock)
    await life.keeper.load()
    for _ in range(3 * 60):
        bucket = Bucket()
        bucket.add_time(42.0)
        life.series.add("response_time_ms", clock.now(), bucket)
        life.series.count("calls", clock.now(), 2)
        clock.move(60)
        await life.flush(sequence=7)
    life.blame.add("fault", "/a/B", 3, clock.now())
    await life.flush(sequence=9)
    again = Life(state, clock)
    last, sequence = await again.keeper.load()
    assert (last, sequence) == (LastLook(time=clock.now()), 9)
    assert again.total("calls", 4 * 3_600) == 360
    now = clock.now()
    found = again.series.window("response_time_ms", now - DAY, now, now)
    assert found.count == 180
    assert found.quantile(0.95) == pytest.approx(42.0, rel=0.26)
    assert again.blame.worst("fault", now - 60, now + 60, now) == [("/a/B", 3)]


async def test_a_kill_loses_what_came_since_the_last_turn(state: PluginState, clock: ManualClock) -> None:
    life = Life(state, clock)
    await life.keeper.load()
    life.series.count("calls", clock.now(), 5)
    await life.flush()
    life.series.count("calls", clock.now(), 100)
    again = Life(state, clock)
    await again.keeper.load()
    assert again.total("calls", 60) == 5


async def test_forty_days_in_bounded_space(state: PluginState, clock: ManualClock) -> None:
    """Hours stay for 40 days, minutes for one; what is older is removed from the state as well."""
    life = Life(state, clock)
    await life.keeper.load()
    for _ in range(45 * 24):
        life.series.count("calls", clock.now(), 1)
        clock.move(3_600)
        await life.flush()
    keys = [stored.key for stored in await state.scan(limit=1_000)]
    assert len([key for key in keys if key.startswith("minutes/")]) <= 26
    assert len([key for key in keys if key.startswith("hours/")]) <= 42
    again = Life(state, clock)
    await again.keeper.load()
    assert 39 * 24 <= again.total("calls", 60 * DAY) <= 42 * 24


async def test_what_is_damaged_is_left_out(
    state: PluginState, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(state, clock)
    await life.keeper.load()
    life.series.count("calls", clock.now(), 5)
    await life.flush()
    clock.move(3_600)
    life.series.count("calls", clock.now(), 7)
    await life.flush()
    (oldest, *_) = await state.scan("minutes/")
    await state.put(oldest.key, b"nonsense")
    again = Life(state, clock)
    await again.keeper.load()
    assert again.keeper.damaged == 1
    assert again.total("calls", 60) == 7
    assert "cannot be read" in caplog.text


async def test_an_hour_that_ended_while_the_server_was_down_is_made_from_its_minutes(
    state: PluginState, clock: ManualClock
) -> None:
    life = Life(state, clock)
    await life.keeper.load()
    life.series.count("calls", clock.now(), 5)
    await life.flush()
    clock.move(20 * 3_600)
    again = Life(state, clock)
    await again.keeper.load()
    clock.move(10 * 3_600)
    assert again.total("calls", 40 * 3_600) == 5


async def test_events_that_come_late_change_the_hours_they_belong_to(state: PluginState, clock: ManualClock) -> None:
    life = Life(state, clock)
    await life.keeper.load()
    life.series.count("tasks_failed", clock.now() - 3 * DAY, 4)
    await life.flush(all_of_it=True)
    again = Life(state, clock)
    await again.keeper.load()
    assert again.total("tasks_failed", 4 * DAY) == 4
    assert again.total("tasks_failed", 2 * DAY) == 0
