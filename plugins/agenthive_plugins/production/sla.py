"""Service levels: how a target stands over a sliding window, its error budget, how fast that burns, and what broke it.

Everything is counted in bad and all of something: seconds of down time, slow calls, failed calls, failed tasks. The
error budget is what a target allows to be bad. Its burn rate is how many times faster than allowed things go bad;
alerts follow the multiwindow, multi-burn-rate method of Google's "The Site Reliability Workbook", chapter 5 (table
5-8): a long window that says it matters, and a short one, a twelfth of it, that says it still goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from .series import SeriesSet, Step

MAX_INTERVALS: Final = 20
_INTERVAL: Final = 60.0
"""Bad spans are told by the minute, and not finer than a thousandth of the window."""
LEAST_EVENTS: Final = 10
"""With fewer calls or tasks than this in the long window no budget is said to burn: a single one would be too much.
Of time as much as the short window must have been seen: in the first minute of a hive a second is much, too."""
_ROUNDING: Final = 1e-9


class Indicator(IntEnum):
    """What a target is about; numbers as in the protos."""

    AVAILABILITY = 1
    RESPONSE_TIME = 2
    ERROR_RATE = 3
    TASK_COMPLETION = 4


AT_LEAST: Final = frozenset({Indicator.AVAILABILITY, Indicator.TASK_COMPLETION})
"""Indicators whose value should be high."""

SECONDS: Final = frozenset({Indicator.AVAILABILITY})
"""Indicators that count seconds, not events."""

_SERIES: Final[dict[Indicator, tuple[str, str]]] = {
    Indicator.AVAILABILITY: ("down_seconds", "up_seconds"),
    Indicator.ERROR_RATE: ("call_faults", "calls"),
    Indicator.TASK_COMPLETION: ("tasks_failed", "tasks_succeeded"),
}
"""By indicator: the series of what is bad, and that of what is good or, of calls, of all."""

_TIMES: Final = "response_time_ms"


@dataclass(frozen=True, kw_only=True)
class SlaTarget:
    """What we promise. Times in seconds."""

    id: str
    indicator: Indicator
    target_value: float
    description: str = ""
    percentile: float = 95.0
    window: float = 86_400.0
    breach_threshold_percent: float = 5.0
    built_in: bool = False
    revision: int = 1

    @property
    def allowed(self) -> float:
        """The share that may be bad."""
        if self.indicator is Indicator.RESPONSE_TIME:
            return 1.0 - self.percentile / 100.0
        if self.indicator is Indicator.ERROR_RATE:
            return self.target_value / 100.0
        return 1.0 - self.target_value / 100.0


class Tally(NamedTuple):
    """What was bad, of how much in all: seconds, calls or tasks."""

    bad: float
    total: float

    @property
    def share(self) -> float:
        """The share that was bad; zero of nothing."""
        return self.bad / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class BurnLimit:
    """When a budget burns too fast: in both windows at least at this rate. For urgent ones people are woken."""

    long: float
    rate: float
    urgent: bool

    @property
    def short(self) -> float:
        """The short window."""
        return self.long / 12


BURN_LIMITS: Final = (
    BurnLimit(3_600.0, 14.4, True),
    BurnLimit(21_600.0, 6.0, True),
    BurnLimit(259_200.0, 1.0, False),
)
"""Two, five and ten percent of a budget of 30 days in an hour, six hours and three days."""


@dataclass(frozen=True, slots=True)
class BurnRate:
    """How fast a budget burns in the two windows of a limit."""

    limit: BurnLimit
    long_rate: float
    short_rate: float
    burning: bool


@dataclass(frozen=True, slots=True)
class BadInterval:
    """A span in which more was bad than allowed."""

    start: float
    end: float
    bad: float
    total: float


@dataclass(frozen=True, slots=True)
class Standing:
    """How a target stands. `value` is None where nothing was measured; such a target counts as met."""

    target: SlaTarget
    tally: Tally
    value: float | None
    met: bool
    deviation_percent: float
    burn_rates: tuple[BurnRate, ...]

    @property
    def compliance_percent(self) -> float:
        """100 when it is met, else 100 less the percentage by which it is missed."""
        return 100.0 if self.met else max(0.0, 100.0 - self.deviation_percent)

    @property
    def budget(self) -> float:
        """What may be bad in the window."""
        return self.target.allowed * self.tally.total

    @property
    def budget_left(self) -> float:
        """The part of the budget that is left; negative when more was bad than allowed."""
        if not self.budget:
            return -self.tally.bad if self.tally.bad else 1.0
        return 1.0 - self.tally.bad / self.budget

    @property
    def breached(self) -> bool:
        """Whether it is missed by more than the target tolerates."""
        return not self.met and self.deviation_percent > self.target.breach_threshold_percent

    @property
    def burning(self) -> BurnRate | None:
        """The most urgent of the limits that are exceeded."""
        return next((burn for burn in self.burn_rates if burn.burning), None)


def tally(series: SeriesSet, target: SlaTarget, start: float, end: float, now: float) -> Tally:
    """Return what was bad in a window."""
    return _measured(series, target, start, end, now)[0]


def _measured(series: SeriesSet, target: SlaTarget, start: float, end: float, now: float) -> tuple[Tally, float | None]:
    """Return what was bad in a window, and the value the target is about; None where nothing was measured."""
    if target.indicator is Indicator.RESPONSE_TIME:
        bucket = series.window(_TIMES, start, end, now)
        found = Tally(bucket.above(target.target_value), bucket.count)
        return found, bucket.quantile(target.percentile / 100.0) if found.total else None
    bad_name, other_name = _SERIES[target.indicator]
    bad = series.window(bad_name, start, end, now).total
    found = _tally(target.indicator, bad, series.window(other_name, start, end, now).total)
    if not found.total:
        return found, None
    return found, 100.0 * (1.0 - found.share if target.indicator in AT_LEAST else found.share)


def _tally(indicator: Indicator, bad: float, other: float) -> Tally:
    return Tally(bad, other if indicator is Indicator.ERROR_RATE else bad + other)


def stand(series: SeriesSet, target: SlaTarget, now: float, *, window: float | None = None) -> Standing:
    """Return how a target stands over its window, or another one."""
    found, value = _measured(series, target, now - (window or target.window), now, now)
    met = found.share <= target.allowed + _ROUNDING
    deviation = 0.0 if value is None or met else _deviation(target, value)
    rates = tuple(_burn(series, target, limit, now) for limit in BURN_LIMITS)
    return Standing(target, found, value, met, deviation, rates)


def _deviation(target: SlaTarget, value: float) -> float:
    """Return by how many percent of the target it is missed."""
    missed = target.target_value - value if target.indicator in AT_LEAST else value - target.target_value
    if not target.target_value:
        return 100.0
    return max(0.0, 100.0 * missed / target.target_value)


def _burn(series: SeriesSet, target: SlaTarget, limit: BurnLimit, now: float) -> BurnRate:
    found = tally(series, target, now - limit.long, now, now)
    long_rate = _rate(found, target)
    short_rate = _rate(tally(series, target, now - limit.short, now, now), target)
    enough = found.total >= (limit.short if target.indicator in SECONDS else LEAST_EVENTS)
    burning = enough and min(long_rate, short_rate) >= limit.rate
    return BurnRate(limit, long_rate, short_rate, burning)


def _rate(found: Tally, target: SlaTarget) -> float:
    if not found.bad:
        return 0.0
    return found.share / target.allowed if target.allowed > 0 else math.inf


def bad_intervals(series: SeriesSet, target: SlaTarget, start: float, now: float) -> list[BadInterval]:
    """Return the spans in which more was bad than allowed, worst first; steps that touch are one span."""
    joined: list[BadInterval] = []
    for began, width, found in _tallies(series, target, start, now):
        if found.share <= target.allowed + _ROUNDING:
            continue
        last = joined[-1] if joined else None
        if last is not None and last.end >= began:
            joined[-1] = BadInterval(last.start, began + width, last.bad + found.bad, last.total + found.total)
        else:
            joined.append(BadInterval(began, began + width, found.bad, found.total))
    joined.sort(key=lambda interval: -interval.bad)
    return joined[:MAX_INTERVALS]


def _tallies(series: SeriesSet, target: SlaTarget, start: float, now: float) -> list[tuple[float, int, Tally]]:
    width = max(_INTERVAL, (now - start) / 1_000)
    if target.indicator is Indicator.RESPONSE_TIME:
        steps = series.steps(_TIMES, start, now, now, width=width)
        limit = target.target_value
        return [(step.start, step.width, Tally(step.bucket.above(limit), step.bucket.count)) for step in steps]
    bad_name, other_name = _SERIES[target.indicator]
    bad = _by_start(series.steps(bad_name, start, now, now, width=width))
    other = _by_start(series.steps(other_name, start, now, now, width=width))
    found: list[tuple[float, int, Tally]] = []
    for place in sorted(bad | other):
        sums = [steps[place].bucket.total if place in steps else 0.0 for steps in (bad, other)]
        found.append((*place, _tally(target.indicator, *sums)))
    return found


def _by_start(steps: Sequence[Step]) -> dict[tuple[float, int], Step]:
    return {(step.start, step.width): step for step in steps}
