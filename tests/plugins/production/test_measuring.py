"""Measuring over the lives of a server: what counts as down, and what does not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agenthive_plugins.production import measuring as module
from agenthive_plugins.production.config import ProductionConfig
from agenthive_plugins.production.measuring import Measuring
from agenthive_plugins.production.metrics import value_of
from agenthive_server.plugin.api import ManualClock, PluginContext, PluginMetrics, VitalsReading
from agenthive_server.plugin.state import PluginState


@dataclass
class Server:
    """The server as the plugin sees it."""

    clock: ManualClock
    draining: bool = False

    def vitals(self) -> VitalsReading:
        return VitalsReading(time=self.clock.now(), draining=self.draining, agents={"IDLE": 1})


@pytest.fixture
def server(clock: ManualClock) -> Server:
    return Server(clock)


@pytest.fixture
def life(
    state: PluginState, clock: ManualClock, server: Server, new_id: Callable[[], str], tmp_path: Path
) -> Callable[[], Measuring]:
    """Begin a life of the plugin."""

    def begin() -> Measuring:
        surroundings: Any = server
        verbs: Any = None
        return Measuring(
            PluginContext(
                name="production",
                config=ProductionConfig(),
                state=state,
                verbs=verbs,
                clock=clock,
                log=logging.getLogger("plugin.production"),
                new_id=new_id,
                metrics=PluginMetrics("production"),
                data_dir=tmp_path,
                surroundings=surroundings,
            )
        )

    return begin


async def some_minutes(measuring: Measuring, clock: ManualClock) -> None:
    for _ in range(30):
        clock.move(10)
        await measuring.turn()


def availability(measuring: Measuring, clock: ManualClock) -> float | None:
    now = clock.now()
    return value_of(measuring.series, "availability_percent", now - 3_600, now, now)


async def test_a_server_that_ended_was_down_until_the_next_began(
    life: Callable[[], Measuring], server: Server, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = life()
    await first.load()
    await some_minutes(first, clock)
    server.draining = True
    await first.save()
    clock.move(300)
    server.draining = False
    monkeypatch.setattr(module, "process_identity", lambda: "another")
    second = life()
    await second.load()
    assert availability(second, clock) == pytest.approx(50.0)


async def test_a_killed_server_was_down_since_its_last_look(
    life: Callable[[], Measuring], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = life()
    await first.load()
    await some_minutes(first, clock)
    clock.move(100)
    monkeypatch.setattr(module, "process_identity", lambda: "another")
    second = life()
    await second.load()
    assert availability(second, clock) == pytest.approx(75.0)


async def test_while_only_the_plugin_is_off_nothing_is_known(
    life: Callable[[], Measuring], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = life()
    await first.load()
    await some_minutes(first, clock)
    await first.save()
    clock.move(300)
    again = life()
    await again.load()
    assert availability(again, clock) == 100.0
    await again.save()
    # Also when the server ended meanwhile: who was not there cannot know when.
    clock.move(300)
    monkeypatch.setattr(module, "process_identity", lambda: "another")
    third = life()
    await third.load()
    assert availability(third, clock) == 100.0


async def test_nothing_is_lost_when_it_is_switched_off_in_order(
    life: Callable[[], Measuring], clock: ManualClock
) -> None:
    first = life()
    await first.load()
    first.series.count("calls", clock.now(), 3)
    await first.save()
    again = life()
    await again.load()
    now = clock.now()
    assert value_of(again.series, "calls", now - 60, now, now) == 3


async def test_what_was_compacted_is_told_and_not_counted(
    life: Callable[[], Measuring], caplog: pytest.LogCaptureFixture
) -> None:
    measuring = life()
    await measuring.load()
    await measuring.missed(5, 90)
    assert measuring.outcomes.fold() == 90
    assert "compacted" in caplog.text
