"""What a span of time is boiled down to: count, sum, least, most, and for times a histogram of fixed bounds.

The histogram has ten bins a decade from 0.1 ms to 1,000 s, so that 1, 10, 100 and 1,000 ms are bounds and a quantile is
off by at most one bin's width (a factor of 1.26). Bins of fixed, logarithmic bounds can be added up over buckets,
methods and restarts without losing anything: the idea of Masson, Rim and Lee, "DDSketch" (PVLDB 12, 2019), with a fixed
range.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

BINS_PER_DECADE: Final = 10
DECADES: Final = 7
LEAST_MS: Final = 0.1

BOUNDS_MS: Final[tuple[float, ...]] = tuple(
    LEAST_MS * 10 ** (n / BINS_PER_DECADE) for n in range(DECADES * BINS_PER_DECADE + 1)
)
"""Upper bounds of the bins, inclusive, in milliseconds; one more bin holds what is above the last."""

BINS: Final = len(BOUNDS_MS) + 1

Histogram = dict[int, int]
"""Counts by bin; bins that are not there are zero. At most `BINS` entries."""


def bin_of(milliseconds: float) -> int:
    """Return the bin of a time."""
    return bisect_left(BOUNDS_MS, milliseconds)


@dataclass(slots=True)
class Bucket:
    """One span of a series, boiled down. An empty one has a count of zero and says nothing of least and most."""

    count: float = 0.0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    histogram: Histogram | None = None

    def add(self, value: float) -> None:
        """Add one value, without histogram."""
        self.count += 1
        self.total += value
        self.least = min(self.least, value)
        self.most = max(self.most, value)

    def add_time(self, milliseconds: float) -> None:
        """Add one time."""
        self.add(milliseconds)
        histogram = self.histogram
        if histogram is None:
            histogram = self.histogram = {}
        place = bin_of(milliseconds)
        histogram[place] = histogram.get(place, 0) + 1

    def merge(self, other: Bucket) -> None:
        """Add all that another bucket holds."""
        self.count += other.count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.most = max(self.most, other.most)
        if other.histogram:
            mine = self.histogram
            if mine is None:
                mine = self.histogram = {}
            for place, count in other.histogram.items():
                mine[place] = mine.get(place, 0) + count

    @property
    def mean(self) -> float:
        """The mean; zero when it is empty."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Return the time below which `share` (0 to 1) of the values lie, in milliseconds; zero without histogram.

        Right up to the width of a bin, and never outside of what was seen.
        """
        if not self.histogram:
            return 0.0
        wanted = share * sum(self.histogram.values())
        seen = 0.0
        for place in sorted(self.histogram):
            count = self.histogram[place]
            if seen + count >= wanted:
                inside = (wanted - seen) / count
                return min(max(_between(place, inside), self.least), self.most)
            seen += count
        return self.most

    def above(self, milliseconds: float) -> float:
        """Return how many times were longer than this; exact when it is a bound, else up to the bin it falls in."""
        if not self.histogram:
            return 0.0
        limit = bin_of(milliseconds)
        whole = float(sum(count for place, count in self.histogram.items() if place > limit))
        inside = self.histogram.get(limit, 0)
        if not inside:
            return whole
        if self.most <= milliseconds:
            return 0.0
        return whole + inside * (1.0 - _share(limit, milliseconds))


def _between(place: int, inside: float) -> float:
    """Return the time a share into a bin, on the logarithmic scale."""
    if place >= len(BOUNDS_MS):
        return BOUNDS_MS[-1]
    high = BOUNDS_MS[place]
    low = BOUNDS_MS[place - 1] if place else 0.0
    return high * inside if not low else float(low * (high / low) ** inside)


def _share(place: int, milliseconds: float) -> float:
    """Return which share of a bin lies at or below a time."""
    if place >= len(BOUNDS_MS):
        return 0.0
    high = BOUNDS_MS[place]
    if milliseconds >= high:
        return 1.0
    low = BOUNDS_MS[place - 1] if place else 0.0
    if not low:
        return milliseconds / high
    return min(1.0, max(0.0, math.log(milliseconds / low) / math.log(high / low)))


def joined(buckets: Iterable[Bucket]) -> Bucket:
    """Return one bucket with all that several hold."""
    whole = Bucket()
    for bucket in buckets:
        whole.merge(bucket)
    return whole


def pack_histogram(histogram: Histogram | None) -> bytes:
    """Return a histogram as bytes: bin and count as pairs of 32-bit numbers."""
    if not histogram:
        return b""
    flat = array("I")
    for place in sorted(histogram):
        flat.extend((place, min(histogram[place], 0xFFFFFFFF)))
    return flat.tobytes()


def unpack_histogram(raw: bytes) -> Histogram | None:
    """Return what `pack_histogram` made; raises `ValueError` when it is not that."""
    if not raw:
        return None
    flat = array("I")
    flat.frombytes(raw)
    if len(flat) % 2:
        raise ValueError("half a pair")
    pairs: Sequence[int] = flat
    histogram = {pairs[n]: pairs[n + 1] for n in range(0, len(pairs), 2)}
    if any(place >= BINS for place in histogram):
        raise ValueError("no such bin")
    return histogram
