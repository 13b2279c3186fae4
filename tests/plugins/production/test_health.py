"""The health of the hive follows the four scores the callers know."""

from __future__ import annotations

import pytest
from agenthive_plugins.production.buckets import Bucket
from agenthive_plugins.production.health import Scores, SystemHealth, scores_of
from agenthive_plugins.production.series import SeriesSet

START = 1_700_000_000.0
NOW = START + 60


def hive(cpu: float, memory: float, agents: int, errors: int, milliseconds: float) -> SeriesSet:
    series = SeriesSet(START)
    series.gauge("cpu_usage_percent", START, cpu)
    series.gauge("memory_usage_percent", START, memory)
    series.gauge("active_agents", START + 50, agents)
    series.count("calls", START, 100)
    series.count("call_faults", START, errors)
    bucket = Bucket()
    bucket.add_time(milliseconds)
    series.add("response_time_ms", START, bucket)
    return series


@pytest.mark.parametrize(
    ("measured", "scores", "health"),
    [
        ((10, 10, 1, 0, 5), (1, 1, 1, 1), SystemHealth.HEALTHY),
        ((81, 10, 1, 0, 5), (0.5, 1, 1, 1), SystemHealth.DEGRADED),
        ((96, 86, 1, 0, 5), (0, 0.5, 1, 1), SystemHealth.DEGRADED),
        ((96, 96, 1, 6, 5), (0, 0, 0.6, 1), SystemHealth.UNHEALTHY),
        ((96, 96, 1, 11, 2_600), (0, 0, 0.2, 0.5), SystemHealth.CRITICAL),
        ((10, 10, 0, 0, 5), (1, 1, 0, 1), SystemHealth.DEGRADED),
        ((10, 10, 1, 0, 8_000), (1, 1, 1, 0), SystemHealth.DEGRADED),
        ((80, 85, 1, 5, 2_000), (1, 1, 1, 1), SystemHealth.HEALTHY),
    ],
)
def test_scores(
    measured: tuple[float, float, int, int, float], scores: tuple[float, ...], health: SystemHealth
) -> None:
    found = scores_of(hive(*measured), NOW)
    assert (found.cpu, found.memory, found.application, found.response_time) == scores
    assert found.health is health


def test_where_nothing_was_measured_only_the_known_parts_count() -> None:
    assert scores_of(SeriesSet(START), NOW) == Scores(None, None, None, 1.0)
    assert Scores(None, None, None, None).health is None
