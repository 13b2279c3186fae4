"""What is exposed is what an independent parser reads back, in both formats."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from agenthive_server.exposition import CATALOGUE, DROPPED, MOST_SERIES, exposed
from agenthive_server.telemetry import Histogram, Sample
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_plain

Read = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(samples: Iterable[Sample], *, openmetrics: bool = False) -> tuple[dict[str, str], Read]:
    """Return what a scraper makes of it: the type of each family, and the value of each series."""
    text = exposed(samples, openmetrics=openmetrics).decode()
    families = list((parse_open if openmetrics else parse_plain)(text))
    found = {(s.name, tuple(s.labels.items())): s.value for family in families for s in family.samples}
    return {family.name: family.type for family in families}, found


def histogram(name: str, *values: float) -> list[Sample]:
    made = Histogram((0.1, 1.0))
    for value in values:
        made.observe(value)
    return list(made.samples(name, (("method", "m"),)))


ALL = [
    Sample("agenthive_rpc_calls_total", (("method", "/s/M"), ("code", "OK")), 7),
    Sample("agenthive_tasks_queued", (), 3),
    *histogram("agenthive_rpc_duration_seconds", 0.05, 0.5, 5.0),
    Sample("made_up_by_a_plugin_total", (("who", "me"),), 1.5),
    Sample("made_up_too", (), -2.5),
    *histogram("agenthive_plug_in_seconds", 0.2),
]


@pytest.mark.parametrize("openmetrics", [False, True])
def test_types_and_values_are_read_back(openmetrics: bool) -> None:
    types, found = read(ALL, openmetrics=openmetrics)
    # The plain parser strips the suffix by itself.
    assert types["agenthive_rpc_calls"] == "counter"
    assert types["agenthive_rpc_duration_seconds"] == types["agenthive_plug_in_seconds"] == "histogram"
    assert types["agenthive_tasks_queued"] == "gauge"
    for sample in ALL:
        assert found[sample.name, sample.labels] == sample.value
    assert found["agenthive_rpc_duration_seconds_bucket", (("method", "m"), ("le", "1.0"))] == 2
    assert found["agenthive_rpc_duration_seconds_bucket", (("method", "m"), ("le", "+Inf"))] == 3
    assert found["agenthive_rpc_duration_seconds_sum", (("method", "m"),)] == pytest.approx(5.55)


@pytest.mark.parametrize("value", ["", '"', "\\", "\n", 'a"b\\c\nd', "\\n", "ü€\u2028\N{ROCKET}", '{x="y"} 1', '\\\\"'])
@pytest.mark.parametrize("openmetrics", [False, True])
def test_label_values_come_back_whatever_is_in_them(value: str, openmetrics: bool) -> None:
    sample = Sample("agenthive_x", (("a", value), ("b", "plain")), 1)
    _, found = read([sample], openmetrics=openmetrics)
    assert found["agenthive_x", (("a", value), ("b", "plain"))] == 1


@pytest.mark.parametrize("value", [0, -1, 1e300, 1e-300, 2.0**60, 0.1, math.inf, -math.inf, math.nan, True])
def test_numbers_come_back_as_they_are(value: float) -> None:
    _, found = read([Sample("x", (), value)])
    assert found["x", ()] == value or (math.isnan(value) and math.isnan(found["x", ()]))


def test_what_would_make_a_scraper_refuse_everything_is_left_out() -> None:
    bad = [
        Sample("9x", (), 1),
        Sample("a b", (), 1),
        Sample("", (), 1),
        Sample("x", (("1", "v"),), 1),
        Sample("x", (("a-b", "v"),), 1),
    ]
    _, found = read([*bad, Sample("x", (), 1), Sample("x", (), 2)])
    assert {key: value for key, value in found.items() if key[0] != DROPPED} == {("x", ()): 1}


def test_the_lines_of_a_family_stand_together_under_one_head() -> None:
    samples = [Sample("x", (("n", str(n)),), n) for n in range(3)] + [Sample("a", (), 0), Sample("x", (("n", "9"),), 9)]
    lines = exposed(samples).decode().splitlines()
    assert [line for line in lines if line.startswith("# TYPE x ")] == ["# TYPE x gauge"]
    places = [number for number, line in enumerate(lines) if line.startswith("x{")]
    assert places == list(range(places[0], places[0] + 4))


def test_there_is_a_bound_on_series_and_what_is_beyond_is_counted() -> None:
    _, found = read(Sample("x", (("n", str(n)),), n) for n in range(MOST_SERIES + 5))
    assert found[DROPPED, ()] == 5
    assert len(found) == MOST_SERIES + 1


@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_counter_and_a_gauge_may_be_called_almost_the_same(openmetrics: bool) -> None:
    _, found = read([Sample("x_total", (), 1), Sample("x", (), 2)], openmetrics=openmetrics)
    assert (found["x_total", ()], found["x", ()]) == (1, 2)


def test_openmetrics_ends_as_it_has_to() -> None:
    assert exposed([], openmetrics=True).endswith(b"# EOF\n")
    assert b"# EOF" not in exposed([])


def test_every_metric_says_what_it_is() -> None:
    for name, (kind, text) in CATALOGUE.items():
        assert (kind == "counter") == name.endswith("_total"), name
        assert text.endswith("."), name
