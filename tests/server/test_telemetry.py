"""The registry of what is measured, and histograms."""

from __future__ import annotations

from collections.abc import Iterator

from agenthive_server.telemetry import Histogram, Metrics, Sample


def test_sources_come_and_go() -> None:
    def one() -> Iterator[Sample]:
        yield Sample("one", (), 1)

    def two() -> Iterator[Sample]:
        yield Sample("two", (), 2)

    metrics = Metrics(one)
    assert [sample.name for sample in metrics.samples()] == ["one"]
    metrics.add(two)
    asked = metrics.samples()
    next(asked)
    # A plugin may go while somebody asks.
    metrics.remove(one)
    assert [sample.name for sample in asked] == ["two"]
    assert [sample.name for sample in metrics.samples()] == ["two"]


def test_a_histogram_counts_by_upper_bounds() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 99.0):
        histogram.observe(value)
    found = {(sample.name, sample.labels): sample.value for sample in histogram.samples("h", (("a", "b"),))}
    assert found == {
        ("h_bucket", (("a", "b"), ("le", "1.0"))): 2,
        ("h_bucket", (("a", "b"), ("le", "2.0"))): 4,
        ("h_bucket", (("a", "b"), ("le", "+Inf"))): 5,
        ("h_sum", (("a", "b"),)): 104.0,
        ("h_count", (("a", "b"),)): 5,
    }
