"""Anomalies on labelled series: what is found, what is missed, what is raised without a cause.

The series are made by generators of fixed seeds; they are data to test with, as a recorded file would be. An anomaly
that was raised counts as right when it overlaps a label, with a quarter of an hour for what follows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from agenthive_plugins.production.anomalies import WATCHED, AnomalyKind, Detector, Finding

START = 1_699_999_200.0
DAY = 1_440
GRACE = 15
SEEDS = range(4)

Make = Callable[[random.Random, int], list[float]]


def steady(mean: float, scatter: float) -> Make:
    return lambda rng, length: [max(0.0, rng.gauss(mean, scatter)) for _ in range(length)]


def factors(mean: float, scatter: float) -> Make:
    return lambda rng, length: [mean * math.exp(rng.gauss(0.0, scatter)) for _ in range(length)]


def rare(share: float) -> Make:
    return lambda rng, length: [float(rng.random() < share) for _ in range(length)]


def daily(mean: float, swing: float, scatter: float) -> Make:
    def make(rng: random.Random, length: int) -> list[float]:
        return [max(0.0, mean + swing * math.sin(2 * math.pi * n / DAY) + rng.gauss(0, scatter)) for n in range(length)]

    return make


NOISE = {
    "cpu_usage_percent": steady(30, 4),
    "response_time_p95_ms": factors(80, 0.15),
    "calls": steady(600, 60),
    "tasks_failed": rare(0.05),
    "pending_tasks": steady(2, 2),
}
BUSY = ("cpu_usage_percent", "response_time_p95_ms", "calls")


@dataclass
class Labelled:
    metric: str
    values: list[float]
    labels: list[tuple[int, int]] = field(default_factory=list)


def spikes(rng: random.Random, metric: str) -> Labelled:
    """One to three minutes at 2.6 to 4 times the usual: six standard deviations and more."""
    made = Labelled(metric, NOISE[metric](rng, 4 * DAY))
    for n in range(5):
        at, length = 300 + 700 * n + rng.randrange(300), rng.choice((1, 2, 3))
        for minute in range(at, at + length):
            made.values[minute] *= rng.uniform(2.6, 4.0)
        made.labels.append((at, at + length - 1))
    return made


def shifts(rng: random.Random, metric: str) -> Labelled:
    """Up by 1.7 to 2.5, twenty hours later down again; what has lasted an hour is usual."""
    made = Labelled(metric, NOISE[metric](rng, 4 * DAY))
    at, factor = 500 + rng.randrange(500), rng.choice((1.7, 2.0, 2.5))
    for minute in range(at, at + 1_200):
        made.values[minute] *= factor
    made.labels += [(at, at + 60), (at + 1_200, at + 1_260)]
    return made


def ramps(rng: random.Random, metric: str) -> Labelled:
    """Drifting up to 2.2 times the usual over one to four hours."""
    made = Labelled(metric, NOISE[metric](rng, 5 * DAY))
    at, length = 4_400 + rng.randrange(1_400), rng.choice((60, 120, 240))
    for minute in range(at, 5 * DAY):
        made.values[minute] *= 1 + 1.2 * min(1.0, (minute - at) / length)
    made.labels.append((at, at + length + 60))
    return made


def seasons(rng: random.Random, metric: str = "cpu_usage_percent") -> Labelled:
    """Ten days that go up and down by 25 around 40; surges from the fourth day on."""
    made = Labelled(metric, daily(40, 25, 2)(rng, 10 * DAY))
    for n in range(4):
        at, length = (4 + n) * DAY + rng.randrange(1_200), rng.choice((2, 5, 20))
        for minute in range(at, at + length):
            made.values[minute] = min(100.0, made.values[minute] + max(25.0, 0.8 * made.values[minute]))
        made.labels.append((at, at + length - 1))
    return made


def found_in(series: Labelled, sensitivity: float = 2.0) -> list[tuple[float, float, Finding]]:
    detector = Detector(WATCHED[series.metric], sensitivity)
    last: dict[float, Finding] = {}
    for minute, value in enumerate(series.values):
        finding = detector.update(START + 60 * minute, value)
        if finding is not None:
            last[finding.start] = finding
    end = START + 60 * len(series.values)
    return [((f.start - START) / 60, ((f.end or end) - START) / 60, f) for f in last.values()]


@dataclass
class Score:
    hit: int = 0
    labels: int = 0
    right: int = 0
    raised: int = 0

    def add(self, series: Labelled) -> None:
        found = found_in(series)
        self.labels += len(series.labels)
        self.raised += len(found)
        self.hit += sum(any(a <= e + GRACE and b >= s for a, b, _ in found) for s, e in series.labels)
        self.right += sum(any(a <= e + GRACE and b >= s for s, e in series.labels) for a, b, _ in found)

    @property
    def recall(self) -> float:
        return self.hit / self.labels

    @property
    def precision(self) -> float:
        return self.right / self.raised


def all_series() -> Iterator[tuple[str, Labelled]]:
    for seed in SEEDS:
        rng = random.Random(seed)
        for metric in BUSY:
            yield "spike", spikes(rng, metric)
            yield "shift", shifts(rng, metric)
            yield "ramp", ramps(rng, metric)
        yield "season", seasons(rng)


def test_precision_and_recall_on_labelled_series() -> None:
    scores: dict[str, Score] = {}
    total = Score()
    for kind, series in all_series():
        scores.setdefault(kind, Score()).add(series)
        total.add(series)
    assert total.labels > 100
    assert total.recall >= 0.97, scores
    assert total.precision >= 0.97, scores
    for kind, score in scores.items():
        assert score.recall >= 0.9, (kind, score)
        assert score.precision >= 0.9, (kind, score)


@pytest.mark.parametrize("metric", NOISE)
def test_steady_noise_raises_nothing(metric: str) -> None:
    raised = 0
    for seed in SEEDS:
        raised += len(found_in(Labelled(metric, NOISE[metric](random.Random(seed), 4 * DAY))))
    assert raised <= 1


def test_a_flat_line_is_usual_and_leaving_it_is_not() -> None:
    made = Labelled("pending_tasks", [0.0] * 300 + [40.0] * 3 + [0.0] * 60)
    ((start, end, finding),) = found_in(made)
    assert (start, finding.kind) == (300, AnomalyKind.SPIKE)
    assert end <= 310
    assert (finding.value, finding.expected) == (40.0, 0.0)


def test_what_makes_no_difference_is_no_anomaly_however_rare_it_is() -> None:
    """A hundred standard deviations of one percent of the processors."""
    values = [5.0 + 0.01 * (n % 3) for n in range(600)]
    values[500] = 9.0
    assert found_in(Labelled("cpu_usage_percent", values)) == []


def test_what_lasts_an_hour_becomes_usual() -> None:
    rng = random.Random(1)
    values = steady(30, 3)(rng, 600) + steady(70, 3)(rng, 600)
    ((start, end, finding),) = found_in(Labelled("cpu_usage_percent", values))
    assert start in (600, 601)
    assert end - start <= 60
    assert finding.kind is AnomalyKind.SHIFT
    assert finding.expected == pytest.approx(30, abs=3)


def test_the_hour_of_the_day_is_learned_but_not_from_what_was_unusual() -> None:
    rng = random.Random(3)
    values = steady(30, 3)(rng, 5 * DAY)
    for minute in range(600, 640):
        values[minute] += 50
    found = found_in(Labelled("cpu_usage_percent", values))
    assert [start for start, _, _ in found] == [600]


def test_a_lower_sensitivity_finds_more() -> None:
    rng = random.Random(5)
    made = Labelled("response_time_p95_ms", factors(80, 0.15)(rng, 4 * DAY))
    for n in range(20):
        made.values[300 + 200 * n] *= 1.85
    counts = [len(found_in(made, sensitivity)) for sensitivity in (1.2, 2.0, 3.0)]
    assert counts[0] > counts[1] >= counts[2]
    assert counts[0] >= 18
