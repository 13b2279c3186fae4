"""What is usual for a metric: a level that follows slowly, how much it scatters, and a profile of the hours of a week.

Level and scatter are robust exponential smoothing after Gelper, Fried and Croux, "Robust forecasting with exponential
and Holt-Winters smoothing" (Journal of Forecasting 29, 2010): a value is pulled in to two standard deviations before
the level follows it, and the scatter follows a bounded (biweight) loss, so that what is unusual does not become usual
by itself. The profile holds, for each hour of a week, how far its median lies from the mean of the day around it (the
classical centred moving average). Until an hour of the week was seen twice, what the same hour of other days agrees on
takes its place; nothing of it is used before every hour of the day was seen twice, which takes three days.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Final

HOURS_OF_WEEK: Final = 168
WARM: Final = 20
"""Values seen before anything is said."""

FOLLOW: Final = 0.01
"""The share of a deviation the level follows at each value: it takes some hundred to get used to something."""
SCATTER_FOLLOW: Final = 0.01
_CLIP: Final = 2.0
_BIWEIGHT: Final = 2.52
"""Makes the bounded loss consistent at the normal distribution for a clip of two."""
_MAD: Final = 1.4826
_CAREFUL: Final = 1.5
"""The scatter of so few values as at the start may well be this much larger than it looks."""
_WEEKS: Final = 0.3
"""The share of its deviation a cell of the profile follows each week."""
_AROUND: Final = 25
"""Hours of which the middle one is settled by the mean of all."""
_LEAST_OF_HOUR: Final = 10
"""Values an hour must have had for its median to count."""


@dataclass(slots=True)
class Profile:
    """By hour of the week: how far it lies from the usual; None where nothing is known."""

    cells: list[float | None] = field(default_factory=lambda: [None] * HOURS_OF_WEEK)
    seen: list[int] = field(default_factory=lambda: [0] * HOURS_OF_WEEK)
    """How often each cell was settled."""
    hour: int = -1
    values: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    """Medians of the hours before this one, without a gap; a day around the one that is settled next."""

    def at(self, time: float) -> float | None:
        """Return the usual offset at a time, between the middles of two hours; None while it cannot be known."""
        place = time / 3_600.0 - 0.5
        first = math.floor(place)
        low, high = self._cell(first), self._cell(first + 1)
        if low is None or high is None:
            return None
        return low + (high - low) * (place - first)

    def _cell(self, hour: int) -> float | None:
        cell = self.cells[hour % HOURS_OF_WEEK]
        if cell is not None and self.seen[hour % HOURS_OF_WEEK] > 1:
            return cell
        same_hour = [self.cells[n] for n in range(hour % 24, HOURS_OF_WEEK, 24)]
        return _agreed([cell for cell in same_hour if cell is not None])

    def learn(self, time: float, value: float) -> None:
        """Take in a value; the hour before it is over when a new one begins."""
        hour = math.floor(time / 3_600.0)
        if hour != self.hour:
            self._over()
            if hour != self.hour + 1:
                self.recent = []
            self.hour, self.values = hour, []
        self.values.append(value)

    def shift(self, by: float) -> None:
        """Take it that everything lies higher from now on: that is not because of the hour."""
        self.recent = [value + by for value in self.recent]
        self.values = []

    def _over(self) -> None:
        if len(self.values) < _LEAST_OF_HOUR:
            self.recent = []
            return
        self.recent = [*self.recent[-_AROUND + 1 :], median(self.values)]
        if len(self.recent) < _AROUND:
            return
        # The ends are the same hour of the day: each counts half.
        mean = (sum(self.recent) - (self.recent[0] + self.recent[-1]) / 2.0) / (_AROUND - 1)
        place = (self.hour - _AROUND // 2) % HOURS_OF_WEEK
        cell, offset = self.cells[place], self.recent[_AROUND // 2] - mean
        self.cells[place] = offset if cell is None else cell + _WEEKS * (offset - cell)
        self.seen[place] += 1

    @property
    def ready(self) -> bool:
        """Whether every hour of the day was seen twice."""
        return sum(self.seen) >= 48 and all(self._cell(hour) is not None for hour in range(24))


@dataclass(slots=True)
class Baseline:
    """What is usual for one metric. `scale` is the robust standard deviation."""

    count: int = 0
    level: float = 0.0
    scale: float = 0.0
    warming: list[float] = field(default_factory=list)
    profile: Profile = field(default_factory=Profile)
    seasonal: bool = False
    """Whether the level is that of the values less the profile."""

    @property
    def warm(self) -> bool:
        """Whether enough was seen to say anything."""
        return self.count >= WARM

    def expect(self, time: float) -> float:
        """Return the value that would be usual at a time."""
        return self.level + self._season(time)

    def _season(self, time: float) -> float:
        return (self.profile.at(time) or 0.0) if self.seasonal else 0.0

    def learn(self, time: float, value: float, floor: float, *, unusual: bool = False) -> None:
        """Take in a value. The scatter never counts as less than `floor`; what is unusual says nothing of the hour."""
        if not unusual:
            self.profile.learn(time, value)
        self.count += 1
        if self.count <= WARM:
            self.warming.append(value)
            if self.count == WARM:
                self.level = median(self.warming)
                self.scale = _CAREFUL * _spread(self.warming, self.level)
                self.warming = []
            return
        if not self.seasonal and self.profile.ready:
            self.seasonal = True
            self.level -= self._season(time)
        scale = max(self.scale, floor)
        off = (value - self.expect(time)) / scale
        # The first guess rests on little, and is mended sooner.
        follow, scatter_follow = max(FOLLOW, 1.0 / self.count), max(SCATTER_FOLLOW, 1.0 / self.count)
        self.level += follow * scale * max(-_CLIP, min(_CLIP, off))
        self.scale = scale * math.sqrt(1.0 - scatter_follow + scatter_follow * _loss(off))

    def restart(self, values: list[float], time: float) -> None:
        """Take these values, the newest at `time`, as usual from now on."""
        middle = median(values)
        level = middle - self._season(time)
        self.profile.shift(level - self.level)
        self.level = level
        self.scale = max(self.scale, _spread(values, middle))


def _spread(values: list[float], middle: float) -> float:
    """Return the robust standard deviation of a few values: the median of their distances from the middle, scaled."""
    return _MAD * median(abs(value - middle) for value in values)


def _agreed(offsets: list[float]) -> float | None:
    """Return what an hour of the day is like by several days: their median, of two the one that claims less.

    One day alone proves nothing: that something was unusual once must not make it expected the day after.
    """
    if len(offsets) < 2:
        return None
    if len(offsets) > 2:
        return median(offsets)
    low, high = sorted(offsets)
    return low if low > 0 else high if high < 0 else 0.0


def _loss(off: float) -> float:
    """Return the bounded loss of a deviation in standard deviations; one on average at the normal distribution."""
    if abs(off) >= _CLIP:
        return _BIWEIGHT
    return _BIWEIGHT * (1.0 - (1.0 - (off / _CLIP) ** 2) ** 3)
