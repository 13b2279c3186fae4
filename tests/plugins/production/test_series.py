"""Series: every value is told once, however fine, however late it came, within bounded space."""

from __future__ import annotations

import pytest
from agenthive_plugins.production.buckets import Bucket
from agenthive_plugins.production.series import FINE, HOURS, MAX_SERIES, MINUTES, Level, Series, SeriesSet
from hypothesis import given, settings
from hypothesis import strategies as st

START = 1_700_000_000.0
DAY = 86_400.0


def one(value: float = 1.0) -> Bucket:
    return Bucket(1, value, value, value)


@given(st.lists(st.tuples(st.floats(0, 3 * DAY), st.floats(0, 100)), max_size=80), st.floats(0, 3 * DAY))
@settings(max_examples=60, deadline=None)
def test_a_window_over_everything_holds_everything_once(values: list[tuple[float, float]], started: float) -> None:
    series = SeriesSet(START + started)
    for time, value in values:
        series.gauge("x", START + time, value)
    now = START + 3 * DAY + 1
    found = series.window("x", START - HOURS.width, now, now)
    assert found.count == len(values)
    assert found.total == pytest.approx(sum(value for _, value in values))


@given(st.lists(st.floats(0, 2 * DAY), min_size=1, max_size=60), st.floats(0, 2 * DAY), st.floats(0, DAY))
@settings(max_examples=60, deadline=None)
def test_a_window_is_exact_up_to_one_bucket_at_each_end(times: list[float], start: float, length: float) -> None:
    series = SeriesSet(START)
    for time in times:
        series.count("x", START + time, 1)
    now = START + 2 * DAY
    begin, end = START + start, min(START + start + length, now)
    found = series.window("x", begin, end, now).total
    width = HOURS.width
    assert sum(begin <= START + time < end for time in times) <= found
    assert found <= sum(begin - width <= START + time < end + width for time in times)


def test_steps_are_as_fine_as_they_are_kept() -> None:
    series = SeriesSet(START)
    for minute in range(3 * 24 * 60):
        series.count("x", START + 60 * minute, 1)
    now = START + 3 * DAY
    steps = series.steps("x", START, now, now)
    assert {step.width for step in steps} == {FINE.width, MINUTES.width, HOURS.width}
    assert [step.start for step in steps] == sorted(step.start for step in steps)
    ends = [step.start + step.width for step in steps]
    assert all(end <= step.start for end, step in zip(ends, steps[1:], strict=False))
    assert sum(step.bucket.total for step in steps) == 3 * 24 * 60


def test_steps_can_be_joined() -> None:
    series = SeriesSet(START)
    for second in range(0, 3_600, 10):
        series.count("x", START + second, 1)
    now = START + 3_600
    steps = series.steps("x", START, now, now, width=600)
    assert {step.width for step in steps} == {600}
    assert sum(step.bucket.total for step in steps) == 360


def test_what_came_late_is_in_the_span_it_belongs_to() -> None:
    series = SeriesSet(START)
    series.count("x", START + 7_200, 1)
    series.count("x", START, 5)
    series.count("x", START + 1, 2)
    now = START + 7_300
    assert series.window("x", START, START + 60, now).total == 7


def test_after_a_restart_the_minutes_tell_what_ten_seconds_cannot() -> None:
    """The finest buckets are in memory only; a window that begins before the start finds the minutes."""
    before = SeriesSet(START)
    for second in range(0, 600, 10):
        before.count("x", START + second, 1)
    after = SeriesSet(START + 615)
    found, old = after.open("x"), before.find("x")
    assert found is not None
    assert old is not None
    for number, bucket in old.levels[1].between(0, 2**40):
        found.levels[1].replace(number, bucket)
    after.count("x", START + 620, 1)
    after.count("x", START + 700, 1)
    now = START + 710
    assert after.window("x", START, now, now).total == 62


def test_a_level_keeps_what_it_should_and_not_much_more() -> None:
    level = Level(FINE)
    for number in range(5_000):
        level.merge(number, one())
    most = FINE.kept // FINE.width
    assert most <= len(level) <= most * 1.25 + 1
    assert len(list(level.between(5_000 - most, 5_000))) == most


def test_the_number_of_series_is_bounded() -> None:
    series = SeriesSet(START)
    for number in range(MAX_SERIES + 10):
        series.count(f"x{number}", START, 1)
    assert len(series.names) == MAX_SERIES
    assert series.refused == 10
    assert series.window("nobody", START, START + 1, START + 1).count == 0


def test_an_empty_bucket_leaves_no_trace() -> None:
    series = Series(START)
    series.add(START, Bucket())
    assert [len(level) for level in series.levels] == [0, 0, 0]
