"""Metrics of plugins: named after them, bounded, and as Prometheus expects."""

from __future__ import annotations

import pytest
from agenthive_server.plugin.metrics import MAX_SERIES, PluginMetrics


def values(metrics: PluginMetrics) -> dict[tuple[str, ...], float]:
    return {(name, *(value for _, value in labels)): value for name, labels, value in metrics.samples()}


def test_counters_gauges_and_histograms() -> None:
    metrics = PluginMetrics("my-plugin")
    metrics.counter("seen", ("kind",)).add(2, "a")
    metrics.counter("seen_total", ("kind",)).add(1, "a")
    gauge = metrics.gauge("depth")
    gauge.set(3)
    for seconds in (0.05, 0.5, 99):
        metrics.histogram("took", bounds=(0.1, 1)).observe(seconds)
    assert values(metrics) == {
        ("agenthive_my_plugin_seen_total", "a"): 3,
        ("agenthive_my_plugin_depth",): 3,
        ("agenthive_my_plugin_took_bucket", "0.1"): 1,
        ("agenthive_my_plugin_took_bucket", "1"): 2,
        ("agenthive_my_plugin_took_bucket", "+Inf"): 3,
        ("agenthive_my_plugin_took_sum",): 99.55,
        ("agenthive_my_plugin_took_count",): 3,
    }
    gauge.remove()
    assert ("agenthive_my_plugin_depth",) not in values(metrics)


@pytest.mark.parametrize("name", ["", "Upper", "1st", "with space", "a" * 102])
def test_a_name_is_checked(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a metric"):
        PluginMetrics("p").gauge(name)


def test_a_name_is_of_one_kind_and_its_labels_are_given() -> None:
    metrics = PluginMetrics("p")
    gauge = metrics.gauge("x", ("a",))
    with pytest.raises(ValueError, match="is a gauge already"):
        metrics.histogram("x")
    with pytest.raises(ValueError, match="has the labels a"):
        gauge.set(1)


def test_series_are_bounded() -> None:
    counter = PluginMetrics("p").counter("seen", ("who",))
    for number in range(MAX_SERIES + 10):
        counter.add(1, str(number))
    found = {labels[0][1]: value for _, labels, value in counter.samples()}
    assert (len(found), found["other"]) == (MAX_SERIES + 1, 10)
