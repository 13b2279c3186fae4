"""Metrics a plugin makes: counters, gauges and histograms, in bounded numbers, under its own prefix."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from agenthive_server.telemetry import Sample

Labels = tuple[tuple[str, str], ...]

MAX_SERIES: Final = 1_000
"""Series one metric may have; what comes beyond is added up under the label value `other`."""

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Bucket bounds that suit times."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,100}")


class _Metric:
    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self.name = name
        self._names = tuple(labels)
        self._series: dict[tuple[str, ...], float] = {}

    def _key(self, values: tuple[str, ...]) -> tuple[str, ...]:
        if values in self._series:
            return values
        if len(values) != len(self._names):
            raise ValueError(f"{self.name} has the labels {', '.join(self._names) or 'none'}")
        return values if len(self._series) < MAX_SERIES else ("other",) * len(values)

    def _labels(self, values: tuple[str, ...]) -> Labels:
        return tuple(zip(self._names, values, strict=True))

    def samples(self) -> Iterator[Sample]:
        """Yield the values."""
        for values, value in self._series.items():
            yield Sample(self.name, self._labels(values), value)


class Counter(_Metric):
    """Only ever grows; its name ends in `_total`."""

    def add(self, amount: float = 1.0, *values: str) -> None:
        """Count; `values` are those of its labels, in their order."""
        try:
            self._series[values] += amount
        except KeyError:
            key = self._key(values)
            self._series[key] = self._series.get(key, 0.0) + amount


class Gauge(_Metric):
    """Goes up and down."""

    def set(self, value: float, *values: str) -> None:
        """Take a value; `values` are those of its labels, in their order."""
        self._series[self._key(values)] = value

    def remove(self, *values: str) -> None:
        """Forget a series."""
        self._series.pop(values, None)


class Histogram(_Metric):
    """Counts values by size; exported as `_bucket`, `_sum` and `_count`, as Prometheus expects."""

    def __init__(self, name: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        super().__init__(name, labels)
        self.bounds = tuple(sorted(bounds))
        self._buckets: dict[tuple[str, ...], list[int]] = {}

    def observe(self, value: float, *values: str) -> None:
        """Count a value; `values` are those of its labels, in their order."""
        key = self._key(values)
        self._series[key] = self._series.get(key, 0.0) + value
        buckets = self._buckets.get(key)
        if buckets is None:
            buckets = self._buckets[key] = [0] * (len(self.bounds) + 1)
        buckets[bisect_left(self.bounds, value)] += 1

    def samples(self) -> Iterator[Sample]:
        """Yield the values."""
        for values, buckets in self._buckets.items():
            labels, total = self._labels(values), 0
            for bound, count in zip((*map(str, self.bounds), "+Inf"), buckets, strict=True):
                total += count
                yield Sample(f"{self.name}_bucket", (*labels, ("le", bound)), total)
            yield Sample(f"{self.name}_sum", labels, self._series[values])
            yield Sample(f"{self.name}_count", labels, total)


M = TypeVar("M", bound=_Metric)


class PluginMetrics:
    """Makes the metrics of one plugin. A name asked for twice is the same metric."""

    def __init__(self, plugin: str) -> None:
        self._prefix = f"agenthive_{plugin.replace('-', '_')}_"
        self._metrics: dict[str, _Metric] = {}

    def counter(self, name: str, labels: Sequence[str] = ()) -> Counter:
        """Return a counter `agenthive_PLUGIN_NAME_total`."""
        return self._made(Counter(self._full(name.removesuffix("_total")) + "_total", labels))

    def gauge(self, name: str, labels: Sequence[str] = ()) -> Gauge:
        """Return a gauge `agenthive_PLUGIN_NAME`."""
        return self._made(Gauge(self._full(name), labels))

    def histogram(self, name: str, labels: Sequence[str] = (), bounds: Sequence[float] = SECONDS) -> Histogram:
        """Return a histogram `agenthive_PLUGIN_NAME`."""
        return self._made(Histogram(self._full(name), labels, bounds))

    def _full(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a metric: lower case letters, digits and `_`")
        return self._prefix + name

    def _made(self, metric: M) -> M:
        present = self._metrics.setdefault(metric.name, metric)
        if type(present) is not type(metric):
            raise ValueError(f"{metric.name} is a {type(present).__name__.lower()} already")
        return present

    def samples(self) -> Iterator[Sample]:
        """Yield all values."""
        for metric in self._metrics.values():
            yield from metric.samples()
