"""Metrics: what they are worked out of, and that nothing is made up where nothing was measured."""

from __future__ import annotations

import pytest
from agenthive_plugins.production.buckets import Bucket
from agenthive_plugins.production.metrics import METRICS, SERIES, Kind, base_of, points_of, value_of
from agenthive_plugins.production.series import MAX_SERIES, SeriesSet

START = 1_700_002_800.0
NOW = START + 300


def test_where_nothing_was_measured_there_is_no_value() -> None:
    series = SeriesSet(START)
    counted = {name for name, kind in SERIES.items() if kind is Kind.COUNT}
    for metric in METRICS:
        found = value_of(series, metric, START, NOW, NOW)
        if metric in counted or metric in ("failed_tasks_last_hour", "task_throughput_per_second"):
            assert found == 0
        else:
            assert found is None


def test_the_names_fit() -> None:
    assert len(SERIES) <= MAX_SERIES
    assert all(base_of(metric) in SERIES for metric in METRICS)
    with pytest.raises(KeyError):
        value_of(SeriesSet(START), "redis_latency_ms", START, NOW, NOW)


def test_values_by_kind() -> None:
    series = SeriesSet(START)
    for n, agents in enumerate((9, 9, 2)):
        series.gauge("active_agents", START + 100 * n, agents)
        series.gauge("cpu_usage_percent", START + 100 * n, 10 * n)
        series.count("tasks_failed", START + 100 * n, 3)
    assert value_of(series, "active_agents", START, NOW, NOW) == 2
    assert value_of(series, "cpu_usage_percent", START, NOW, NOW) == 10
    assert value_of(series, "tasks_failed", START, NOW, NOW) == 9
    assert value_of(series, "failed_tasks_last_hour", NOW - 10, NOW, NOW) == 9


def test_an_old_level_is_no_present_one() -> None:
    series = SeriesSet(START)
    series.gauge("active_agents", START, 5)
    assert value_of(series, "active_agents", START, NOW, NOW) is None


def test_shares() -> None:
    series = SeriesSet(START)
    series.spread("up_seconds", START, START + 270)
    series.spread("down_seconds", START + 270, NOW)
    series.count("calls", START, 200)
    series.count("call_faults", START, 5)
    series.count("tasks_succeeded", START, 3)
    series.count("tasks_failed", START, 1)
    found = {
        name: value_of(series, name, START, NOW, NOW)
        for name in ("availability_percent", "error_rate_percent", "task_completion_percent")
    }
    assert found == {
        "availability_percent": 90.0,
        "error_rate_percent": 2.5,
        "task_completion_percent": 75.0,
    }


def test_a_derived_metric_step_by_step() -> None:
    series = SeriesSet(START)
    for minute in range(5):
        bucket = Bucket()
        for _ in range(100):
            bucket.add_time(10.0 * (minute + 1))
        series.add("response_time_ms", START + 60 * minute, bucket)
    points = points_of(series, "response_time_p95_ms", START, NOW, NOW, width=60)
    assert [round(point.bucket.mean, -1) for point in points] == [10, 20, 30, 40, 50]
    assert points_of(series, "error_rate_percent", START, NOW, NOW) == []
