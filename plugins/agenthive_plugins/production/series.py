"""Time series in bounded space: each is kept three times, finer for what is recent and coarser for what is long ago.

    ten seconds   for an hour      360 buckets   in memory only
    a minute      for a day      1,440 buckets   in the plugin's state
    an hour       for 40 days      960 buckets   in the plugin's state

A bucket takes 40 bytes, and one with a histogram 8 more for each bin that is not empty (at most 72): a gauge takes
110 KB when it is full, a time with ten used bins some 400 KB. Buckets in which nothing happened are not kept. There are
at most `MAX_SERIES` series. `series_chunks.py` says how they are stored.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from .buckets import Bucket, joined, pack_histogram, unpack_histogram

MAX_SERIES: Final = 96

TOUCHED: Final = 600
"""What changed is told by spans of so many seconds."""

SLACK: Final = 0.25
"""How much longer than wanted a level may get before its oldest buckets are cut off, as a share."""


class Span(NamedTuple):
    """How long the buckets of a level are, and for how long they are kept, in seconds."""

    width: int
    kept: int


FINE: Final = Span(10, 3_600)
MINUTES: Final = Span(60, 86_400)
HOURS: Final = Span(3_600, 40 * 86_400)


class Level:
    """The buckets of one series at one width, oldest first, in arrays; each has a number: its start over the width."""

    __slots__ = ("_counts", "_histograms", "_least", "_most", "_numbers", "_totals", "span")

    def __init__(self, span: Span) -> None:
        self.span = span
        self._numbers = array("q")
        self._counts = array("d")
        self._totals = array("d")
        self._least = array("d")
        self._most = array("d")
        self._histograms: list[bytes] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def merge(self, number: int, bucket: Bucket) -> None:
        """Add what a bucket holds to the one of that number."""
        place = self._place(number)
        if place < len(self._numbers) and self._numbers[place] == number:
            whole = self._bucket(place)
            whole.merge(bucket)
            self._write(place, whole)
        else:
            self._insert(place, number, bucket)

    def replace(self, number: int, bucket: Bucket) -> None:
        """Let the bucket of that number hold this and nothing else."""
        place = self._place(number)
        if place < len(self._numbers) and self._numbers[place] == number:
            self._write(place, bucket)
        else:
            self._insert(place, number, bucket)

    def between(self, first: int, end: int) -> Iterator[tuple[int, Bucket]]:
        """Yield the buckets with numbers from `first` to before `end`, with their numbers."""
        numbers = self._numbers
        for place in range(bisect_left(numbers, first), bisect_left(numbers, end)):
            yield numbers[place], self._bucket(place)

    def _place(self, number: int) -> int:
        numbers = self._numbers
        if not numbers or numbers[-1] < number:
            return len(numbers)
        return bisect_left(numbers, number)

    def _bucket(self, place: int) -> Bucket:
        return Bucket(
            self._counts[place],
            self._totals[place],
            self._least[place],
            self._most[place],
            unpack_histogram(self._histograms[place]),
        )

    def _write(self, place: int, bucket: Bucket) -> None:
        self._counts[place], self._totals[place] = bucket.count, bucket.total
        self._least[place], self._most[place] = bucket.least, bucket.most
        self._histograms[place] = pack_histogram(bucket.histogram)

    def _insert(self, place: int, number: int, bucket: Bucket) -> None:
        self._numbers.insert(place, number)
        self._counts.insert(place, bucket.count)
        self._totals.insert(place, bucket.total)
        self._least.insert(place, bucket.least)
        self._most.insert(place, bucket.most)
        self._histograms.insert(place, pack_histogram(bucket.histogram))
        most = self.span.kept // self.span.width
        if len(self._numbers) > most * (1 + SLACK):
            self._cut(self._numbers[-1] - most)

    def _cut(self, oldest: int) -> None:
        """Forget the buckets before a number; as many as are kept may stay, whatever their numbers."""
        end = bisect_left(self._numbers, oldest)
        for column in (self._numbers, self._counts, self._totals, self._least, self._most):
            del column[:end]
        del self._histograms[:end]


class Series:
    """One series at its three widths. `recorded_from` is when the finest began: in this process."""

    __slots__ = ("_recorded_from", "levels")

    def __init__(self, recorded_from: float) -> None:
        # Ten-second buckets are whole only from the next full minute on; before that, minutes tell.
        self._recorded_from = math.ceil(recorded_from / MINUTES.width) * MINUTES.width
        self.levels = (Level(FINE), Level(MINUTES), Level(HOURS))

    def add(self, time: float, bucket: Bucket) -> None:
        """Add what happened at about `time`, however long ago that was."""
        if not bucket.count:
            return
        for level in self.levels:
            level.merge(int(time // level.span.width), bucket)

    def steps(self, start: float, end: float, now: float) -> Iterator[tuple[float, int, Bucket]]:
        """Yield start, width and content of the buckets from `start` to before `end`, oldest first.

        Each is as fine as it is kept. The first may begin up to its width before `start`. No time is told twice. When
        the end is `now`, what happened in this very moment is told as well.
        """
        if end >= now:
            end = math.nextafter(now, math.inf)
        fine, minutes, hours = self.levels
        for_minutes = (math.floor((now - MINUTES.kept) / HOURS.width) + 1) * HOURS.width
        for_fine = (math.floor((now - FINE.kept) / MINUTES.width) + 1) * MINUTES.width
        for_fine = max(for_fine, self._recorded_from)
        yield from _part(hours, start, min(end, for_minutes))
        yield from _part(minutes, max(start, for_minutes), min(end, for_fine))
        yield from _part(fine, max(start, for_fine), end)

    def window(self, start: float, end: float, now: float) -> Bucket:
        """Return all that happened from `start` to before `end` as one bucket."""
        return joined(bucket for _, _, bucket in self.steps(start, end, now))


def _part(level: Level, start: float, end: float) -> Iterator[tuple[float, int, Bucket]]:
    if end <= start:
        return
    width = level.span.width
    for number, bucket in level.between(math.floor(start / width), math.ceil(end / width)):
        yield number * width, width, bucket


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an answer: when it began, how long it is, what happened in it."""

    start: float
    width: int
    bucket: Bucket


class SeriesSet:
    """All series by name."""

    def __init__(self, now: float) -> None:
        self._recorded_from = now
        self._series: dict[str, Series] = {}
        self._touched: set[int] = set()
        self.refused = 0
        """How often a new name was refused because there are too many."""

    @property
    def names(self) -> list[str]:
        """The names there are, sorted."""
        return sorted(self._series)

    def become(self, other: SeriesSet) -> None:
        """Hold what another set holds, which is not used any more."""
        self._recorded_from, self._series, self._touched = other._recorded_from, other._series, other._touched

    def take_touched(self) -> set[int]:
        """Return the spans of `TOUCHED` seconds in which something changed since the last time, by number."""
        touched, self._touched = self._touched, set()
        return touched

    def find(self, name: str) -> Series | None:
        """Return a series, or None."""
        return self._series.get(name)

    def open(self, name: str) -> Series | None:
        """Return a series, made if need be; None when there are too many."""
        series = self._series.get(name)
        if series is None:
            if len(self._series) >= MAX_SERIES:
                self.refused += 1
                return None
            series = self._series[name] = Series(self._recorded_from)
        return series

    def add(self, name: str, time: float, bucket: Bucket) -> None:
        """Add to a series what happened at about `time`."""
        series = self.open(name)
        if series is not None and bucket.count:
            series.add(time, bucket)
            self._touched.add(int(time // TOUCHED))

    def gauge(self, name: str, time: float, value: float) -> None:
        """Add one reading to a series."""
        self.add(name, time, Bucket(1, value, value, value))

    def count(self, name: str, time: float, number: float) -> None:
        """Add to a series that `number` of something happened; nothing when it is zero."""
        if number:
            self.add(name, time, Bucket(1, number, number, number))

    def spread(self, name: str, start: float, end: float) -> None:
        """Add to a series the seconds from `start` to `end`, each where it belongs; what is kept no more is left out.

        Of what is longer ago than the finer buckets are kept, only the coarser ones take notice.
        """
        series = self.open(name)
        if series is None:
            return
        self._touched.update(range(int(max(start, end - HOURS.kept) // TOUCHED), int(end // TOUCHED) + 1))
        for level in series.levels:
            width = level.span.width
            begin = max(start, end - level.span.kept)
            for number in range(math.floor(begin / width), math.ceil(end / width)):
                seconds = min(end, (number + 1) * width) - max(begin, number * width)
                if seconds > 0:
                    level.merge(number, Bucket(1, seconds, seconds, seconds))

    def window(self, name: str, start: float, end: float, now: float) -> Bucket:
        """Return all that a series holds of a window as one bucket; an empty one when there is no such series."""
        series = self._series.get(name)
        return Bucket() if series is None else series.window(start, end, now)

    def steps(self, name: str, start: float, end: float, now: float, *, width: float = 0.0) -> list[Step]:
        """Return a window of a series step by step, joined to at least `width` seconds, oldest first."""
        series = self._series.get(name)
        steps: list[Step] = []
        for began, span, bucket in series.steps(start, end, now) if series else ():
            longer = math.ceil(width / span) * span if width > span else span
            first = math.floor(began / longer) * longer
            if steps and steps[-1].start == first:
                steps[-1].bucket.merge(bucket)
            else:
                steps.append(Step(first, longer, bucket))
        return steps
