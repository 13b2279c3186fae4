"""A clock that follows another goes by what is sure and no further."""

from __future__ import annotations

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.storage.postgres.clock import DatabaseClock


@pytest.fixture
def own() -> ManualClock:
    return ManualClock(1_000.0)


def test_it_is_this_machines_until_it_is_told_otherwise(own: ManualClock) -> None:
    clock = DatabaseClock(own)
    own.move(5)
    assert (clock.now(), clock.monotonic()) == (1_005.0, 1_005.0)


def test_it_is_set_by_an_answer_that_took_no_time(own: ManualClock) -> None:
    clock = DatabaseClock(own)
    clock.follow(clock.now(), 900.0)
    own.move(1)
    assert (clock.now(), clock.offset) == (901.0, -100.0)
    assert clock.monotonic() == 1_001.0


@pytest.mark.parametrize(
    ("told", "moved"), [(1_000.5, 0.0), (1_000.0, 0.0), (1_002.0, 0.0), (1_003.0, 1.0), (999.0, -1.0)]
)
def test_an_answer_that_took_a_while_moves_it_by_no_more_than_is_sure(
    own: ManualClock, told: float, moved: float
) -> None:
    clock = DatabaseClock(own)
    asked = clock.now()
    own.move(2)
    clock.follow(asked, told)
    assert clock.offset == moved


async def test_it_sleeps_as_this_machine_does(own: ManualClock) -> None:
    clock = DatabaseClock(own)
    clock.follow(clock.now(), 9_000.0)
    await clock.sleep(0)


@pytest.mark.parametrize(("told", "warned"), [(1_000.9, False), (1_001.5, True), (950.0, True)])
def test_clocks_that_differ_much_are_told_of(
    own: ManualClock, caplog: pytest.LogCaptureFixture, told: float, warned: bool
) -> None:
    DatabaseClock(own).follow(1_000.0, told)
    assert ("clock_differs" in caplog.text) is warned
