"""Service levels: met or missed, the budget, how fast it burns, and where it went."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agenthive_plugins.production.buckets import Bucket
from agenthive_plugins.production.defaults import TARGETS
from agenthive_plugins.production.series import SeriesSet
from agenthive_plugins.production.sla import BURN_LIMITS, Indicator, SlaTarget, bad_intervals, stand
from hypothesis import given, settings
from hypothesis import strategies as st

START = 1_700_002_800.0
"""A full hour."""
DAY = 86_400.0
AVAILABILITY, RESPONSE_TIME, ERRORS, COMPLETION = TARGETS


def times(series: SeriesSet, time: float, *milliseconds: float) -> None:
    bucket = Bucket()
    for value in milliseconds:
        bucket.add_time(value)
    series.add("response_time_ms", time, bucket)


def test_nothing_measured_is_no_breach() -> None:
    for target in TARGETS:
        found = stand(SeriesSet(START), target, START)
        assert (found.met, found.value, found.compliance_percent, found.breached) == (True, None, 100.0, False)


def test_down_time_counts() -> None:
    series = SeriesSet(START)
    series.spread("up_seconds", START, START + DAY - 864)
    series.spread("down_seconds", START + DAY - 864, START + DAY)
    now = START + DAY
    found = stand(series, AVAILABILITY, now)
    assert found.value == pytest.approx(99.0)
    assert not found.met
    assert found.deviation_percent == pytest.approx(100 * 0.9 / 99.9)
    assert found.compliance_percent == pytest.approx(100 - 100 * 0.9 / 99.9)
    assert found.budget == pytest.approx(86.4)
    assert found.budget_left == pytest.approx(-9.0)
    # By less than the five percent that the target tolerates: no breach, but the budget burns.
    assert not found.breached
    assert found.burning is not None
    (worst, *_) = bad_intervals(series, AVAILABILITY, START, now)
    assert worst.bad == pytest.approx(864)
    assert worst.start >= START + DAY - 864 - 60


def test_slow_calls_are_a_breach_above_the_target_and_not_below_it() -> None:
    """The old one took a time below its target for a breach."""
    series = SeriesSet(START)
    for minute in range(60):
        times(series, START + 60 * minute, *[50.0] * 95, *[3_000.0] * 5)
    now = START + 3_600
    assert stand(series, RESPONSE_TIME, now).met
    times(series, now - 1, *[3_000.0] * 600)
    found = stand(series, RESPONSE_TIME, now)
    assert not found.met
    assert found.breached
    assert found.value == pytest.approx(3_000, rel=0.26)
    assert found.compliance_percent == 0.0


def test_errors_and_failed_tasks() -> None:
    series = SeriesSet(START)
    series.count("calls", START, 1_000)
    series.count("call_faults", START, 11)
    series.count("tasks_succeeded", START, 90)
    series.count("tasks_failed", START, 10)
    errors, completion = (stand(series, target, START + 60) for target in (ERRORS, COMPLETION))
    assert errors.value == pytest.approx(1.1)
    assert errors.breached
    assert completion.value == pytest.approx(90.0)
    assert completion.compliance_percent == pytest.approx(100 - 100 * 5 / 95)
    assert completion.breached


def test_exactly_what_was_promised_is_met() -> None:
    series = SeriesSet(START)
    series.count("tasks_succeeded", START, 95)
    series.count("tasks_failed", START, 5)
    found = stand(series, COMPLETION, START + 60)
    assert found.met
    assert found.budget_left == pytest.approx(0.0)


def test_a_window_slides() -> None:
    series = SeriesSet(START)
    target = replace(COMPLETION, window=3_600.0)
    series.count("tasks_failed", START, 10)
    series.count("tasks_succeeded", START + 1_800, 100)
    assert not stand(series, target, START + 1_900).met
    assert stand(series, target, START + 3_700).met


def burning_at(series: SeriesSet, target: SlaTarget, now: float) -> list[float]:
    return [burn.limit.rate for burn in stand(series, target, now).burn_rates if burn.burning]


def test_a_budget_burns_when_both_windows_say_so() -> None:
    """2 % of the budget of 30 days within an hour, and still going on."""
    series = SeriesSet(START - 10 * DAY)
    for minute in range(3 * 24 * 60):
        series.count("calls", START - 3 * DAY + 60 * minute, 100)
    assert burning_at(series, ERRORS, START) == []
    for minute in range(60):
        series.count("calls", START + 60 * minute, 100)
        series.count("call_faults", START + 60 * minute, 15)
    now = START + 3_600
    assert burning_at(series, ERRORS, now)[0] == 14.4
    # Half an hour later it is over: the long window is still bad, the short one is not.
    for minute in range(30):
        series.count("calls", now + 60 * minute, 100)
    assert 14.4 not in burning_at(series, ERRORS, now + 1_800)
    rates = {burn.limit.rate: burn for burn in stand(series, ERRORS, now + 1_800).burn_rates}
    assert rates[14.4].short_rate == 0.0
    assert rates[14.4].long_rate > 5


def test_one_failure_in_the_night_wakes_nobody() -> None:
    series = SeriesSet(START)
    series.count("calls", START, 5)
    series.count("call_faults", START, 1)
    assert burning_at(series, ERRORS, START + 60) == []


def test_a_second_in_the_first_minute_of_a_hive_wakes_nobody() -> None:
    series = SeriesSet(START)
    series.spread("up_seconds", START, START + 57)
    series.spread("down_seconds", START + 57, START + 60)
    assert burning_at(series, AVAILABILITY, START + 60) == []
    series.spread("up_seconds", START + 60, START + 300)
    series.spread("down_seconds", START + 300, START + 400)
    assert 14.4 in burning_at(series, AVAILABILITY, START + 400)


def test_bad_spans_that_touch_are_one_and_the_worst_comes_first() -> None:
    series = SeriesSet(START - 2 * DAY)
    for minute in range(600):
        series.count("calls", START + 60 * minute, 100)
    for minute in (10, 11, 12, 300):
        series.count("call_faults", START + 60 * minute, 50)
    now = START + 600 * 60
    found = bad_intervals(series, ERRORS, START, now)
    assert [(each.start - START, each.end - START, each.bad) for each in found] == [
        (600, 780, 150),
        (18_000, 18_060, 50),
    ]


def test_the_limits_are_those_of_the_workbook() -> None:
    assert [(limit.long, limit.short, limit.rate) for limit in BURN_LIMITS] == [
        (3_600, 300, 14.4),
        (21_600, 1_800, 6.0),
        (259_200, 21_600, 1.0),
    ]


@given(
    st.sampled_from([Indicator.ERROR_RATE, Indicator.TASK_COMPLETION]),
    st.integers(0, 500),
    st.integers(1, 500),
    st.floats(0.1, 99.9),
)
@settings(max_examples=200, deadline=None)
def test_met_and_budget_agree(indicator: Indicator, bad: int, good: int, value: float) -> None:
    series = SeriesSet(START)
    target = SlaTarget(id="t", indicator=indicator, target_value=value)
    if indicator is Indicator.ERROR_RATE:
        series.count("calls", START, bad + good)
        series.count("call_faults", START, bad)
    else:
        series.count("tasks_succeeded", START, good)
        series.count("tasks_failed", START, bad)
    found = stand(series, target, START + 60)
    assert found.met == (found.budget_left >= -1e-6)
    assert 0.0 <= found.compliance_percent <= 100.0
    assert found.tally == (bad, bad + good)


def test_a_target_of_everything_leaves_no_budget() -> None:
    series = SeriesSet(START)
    series.count("tasks_succeeded", START, 99)
    target = replace(COMPLETION, target_value=100.0)
    assert stand(series, target, START + 60).budget_left == 1.0
    series.count("tasks_failed", START, 1)
    found = stand(series, target, START + 60)
    assert not found.met
    assert found.budget_left < 0
