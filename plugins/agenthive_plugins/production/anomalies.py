"""Anomalies: spans in which a metric behaves unlike itself, found as its values come in, one a minute.

Two tests stand on the baseline of `baseline.py`, both in robust standard deviations:

    spike   one value is at least `2.5 x sensitivity` away from what was expected
    shift   Page's cumulative sum (Biometrika 41, 1954), two-sided, of what is beyond `sensitivity / 2` passes
            `4 x sensitivity`: values that are off by less, but stay there or drift away

and either counts only if the value is off by `sensitivity / 2` times what makes a difference for the metric: half of
what was expected for the processors, three tenths for memory, four tenths for response times. At the usual sensitivity
of 2.0 these are 5 standard deviations, a slack of 1 and a limit of 8, under which steady noise raises next to nothing
(the average run to a false alarm is beyond a year of minutes); a lower sensitivity finds more and errs more. Times are
compared by their logarithms, for they scatter by factors.

An anomaly is over when five values in a row are near what was expected, or when it has lasted an hour: then this is
what is usual.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum
from statistics import fmean
from typing import Final, NamedTuple

from .baseline import Baseline

SENSITIVITY: Final = 2.0
CALM: Final = 5
"""Values that, on average, lie as expected again, and end an anomaly."""
SHIFT_AFTER: Final = 5
"""Values after which a spike that goes on is a shift."""
USUAL_AFTER: Final = 60
"""Values after which what is unusual is usual."""
_MOST: Final = 4.0
"""A single value counts at most this much in the sum, in standard deviations."""


class AnomalyKind(IntEnum):
    """How a metric behaved unlike itself; numbers as in the protos."""

    SPIKE = 1
    SHIFT = 2


@dataclass(frozen=True, kw_only=True)
class Watched:
    """How a metric is watched: by its logarithm or not, which share of it makes a difference, and which amount."""

    effect: float
    amount: float
    logarithm: bool = False


WATCHED: Final[dict[str, Watched]] = {
    "cpu_usage_percent": Watched(effect=0.5, amount=10.0),
    "memory_usage_percent": Watched(effect=0.3, amount=5.0),
    "response_time_p95_ms": Watched(effect=0.4, amount=5.0, logarithm=True),
    "db_query_time_p95_ms": Watched(effect=0.4, amount=5.0, logarithm=True),
    "task_queue_wait_p95_ms": Watched(effect=0.4, amount=50.0, logarithm=True),
    "task_run_time_p95_ms": Watched(effect=0.4, amount=50.0, logarithm=True),
    "error_rate_percent": Watched(effect=0.5, amount=1.0),
    "pending_tasks": Watched(effect=0.5, amount=10.0),
    "calls": Watched(effect=0.5, amount=60.0),
    "tasks_failed": Watched(effect=0.5, amount=5.0),
    "failed_auth_attempts": Watched(effect=0.5, amount=5.0),
    "security_events": Watched(effect=0.5, amount=5.0),
}
"""The metrics that are watched."""


@dataclass(frozen=True, kw_only=True)
class Anomaly:
    """A span in which a metric behaved unlike itself. Times are seconds since 1970; `end` is zero while it goes on."""

    id: str
    metric: str
    kind: AnomalyKind
    start: float
    value: float
    expected: float
    score: float
    end: float = 0.0

    @property
    def deviation_percent(self) -> float:
        """How far the value was from what was expected; zero when nothing was."""
        return 100.0 * (self.value - self.expected) / abs(self.expected) if self.expected else 0.0


class Finding(NamedTuple):
    """What is known of an anomaly now: `end` is zero while it goes on, `value` the worst one so far."""

    start: float
    kind: AnomalyKind
    value: float
    expected: float
    score: float
    end: float


@dataclass(slots=True)
class Detector:
    """Looks at the values of one metric, in order. `update` says when something begins, changes or ends."""

    watched: Watched
    sensitivity: float = SENSITIVITY
    baseline: Baseline = field(default_factory=Baseline)
    above: float = 0.0
    below: float = 0.0
    scores: list[float] = field(default_factory=list)
    """Of the last few values."""
    unusual: list[float] = field(default_factory=list)
    """The values since the open anomaly began."""
    worst: tuple[float, float, float] | None = None
    """Value, expected value and score of the worst of them."""
    started: float = 0.0
    shifted: bool = False
    away: int = 0
    """Values since it began that were far from what was expected."""

    @property
    def open(self) -> bool:
        """Whether something is unusual now."""
        return self.worst is not None

    def update(self, time: float, value: float) -> Finding | None:
        """Take in the value of the minute that began at `time`.

        Returns what is known of an anomaly when one begins, becomes worse or another kind, or ends; else None.
        """
        seen = self._scaled(value)
        baseline = self.baseline
        if not baseline.warm:
            baseline.learn(time, seen, self._floor(seen))
            return None
        expected = baseline.expect(time)
        floor = self._floor(expected)
        score = (seen - expected) / max(baseline.scale, floor)
        unusual = self._unusual(score, seen, expected)
        baseline.learn(time, seen, floor, unusual=unusual or self.open)
        if self.open:
            return self._go_on(time, value, expected, score, unusual=unusual)
        return self._begin(time, value, expected, score) if unusual else None

    def _unusual(self, score: float, seen: float, expected: float) -> bool:
        limit = 4.0 * self.sensitivity
        # Until it is known what belongs to the hour of the day, a slow drift proves less.
        slack = self.sensitivity / (2.0 if self.baseline.seasonal else 1.0)
        bounded = max(-_MOST, min(_MOST, score))
        self.above = max(0.0, self.above + bounded - slack)
        self.below = max(0.0, self.below - bounded - slack)
        beyond = abs(score) >= 2.5 * self.sensitivity or max(self.above, self.below) >= limit
        return beyond and self._matters(seen, expected)

    def _matters(self, seen: float, expected: float) -> bool:
        value, usual = self._plain(seen), self._plain(expected)
        factor = self.sensitivity / 2.0
        off = abs(value - usual)
        return off >= self.watched.amount * factor and off >= self.watched.effect * factor * abs(usual)

    def _begin(self, time: float, value: float, expected: float, score: float) -> Finding:
        self.started, self.scores, self.unusual = time, [score], [self._scaled(value)]
        self.worst, self.away = (value, self._plain(expected), score), 1
        # A sum that has grown over several values is a shift from the start.
        self.shifted = abs(score) < 2.5 * self.sensitivity
        return self._told()

    def _go_on(self, time: float, value: float, expected: float, score: float, *, unusual: bool) -> Finding | None:
        assert self.worst is not None
        self.unusual.append(self._scaled(value))
        self.scores = [*self.scores[1 - CALM :], score]
        if self._calm():
            return self._ended(time)
        if len(self.unusual) >= USUAL_AFTER:
            self.baseline.restart(self.unusual[-20:], time)
            return self._ended(time)
        worse = unusual and abs(score) > abs(self.worst[2])
        if worse:
            self.worst = (value, self._plain(expected), score)
        self.away += abs(score) >= 1.25 * self.sensitivity
        turns = not self.shifted and self.away > SHIFT_AFTER
        self.shifted = self.shifted or turns
        return self._told() if worse or turns else None

    def _calm(self) -> bool:
        slack, limit = self.sensitivity / 2.0, 2.5 * self.sensitivity
        calm = len(self.scores) == CALM and abs(fmean(self.scores)) < slack
        return calm and max(map(abs, self.scores)) < limit

    def _ended(self, time: float) -> Finding:
        told = self._told(end=time)
        self.worst, self.unusual, self.above, self.below, self.scores = None, [], 0.0, 0.0, []
        return told

    def _told(self, end: float = 0.0) -> Finding:
        assert self.worst is not None
        kind = AnomalyKind.SHIFT if self.shifted else AnomalyKind.SPIKE
        return Finding(self.started, kind, *self.worst, end)

    def _scaled(self, value: float) -> float:
        return math.log(value + self.watched.amount / 2.0) if self.watched.logarithm else value

    def _plain(self, scaled: float) -> float:
        return math.exp(scaled) - self.watched.amount / 2.0 if self.watched.logarithm else scaled

    def _floor(self, expected: float) -> float:
        """Return the least scatter to reckon with: a fifth of what makes a difference."""
        if self.watched.logarithm:
            return math.log1p(self.watched.effect) / 5.0
        return max(self.watched.amount, self.watched.effect * abs(expected)) / 5.0
