"""Buckets: what they keep of a span, and how far their quantiles may be off."""

from __future__ import annotations

import math

import pytest
from agenthive_plugins.production.buckets import (
    BINS,
    BOUNDS_MS,
    Bucket,
    bin_of,
    joined,
    pack_histogram,
    unpack_histogram,
)
from hypothesis import given, settings
from hypothesis import strategies as st

WIDTH = 10 ** (1 / 10)
times = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=60)


def of(values: list[float]) -> Bucket:
    bucket = Bucket()
    for value in values:
        bucket.add_time(value)
    return bucket


@given(times, st.floats(0.0, 1.0))
@settings(deadline=None)
def test_a_quantile_is_right_up_to_the_width_of_a_bin(values: list[float], share: float) -> None:
    place = max(0, math.ceil(share * len(values)) - 1)
    exact = sorted(values)[place]
    found = of(values).quantile(share)
    assert min(values) <= found <= max(values)
    assert exact / WIDTH / 1.0001 <= found <= exact * WIDTH * 1.0001


@given(times, times)
@settings(deadline=None)
def test_joined_buckets_are_the_bucket_of_all_values(one: list[float], two: list[float]) -> None:
    both, whole = joined((of(one), of(two))), of(one + two)
    assert (both.count, both.least, both.most, both.histogram) == (
        whole.count,
        whole.least,
        whole.most,
        whole.histogram,
    )
    assert both.total == pytest.approx(whole.total)


@given(times, st.integers(0, 7))
@settings(deadline=None)
def test_what_lies_above_a_power_of_ten_is_counted_exactly(values: list[float], power: int) -> None:
    limit = BOUNDS_MS[power * 10]
    assert of(values).above(limit) == pytest.approx(sum(value > limit for value in values))


@given(times, st.floats(0.1, 1e6))
@settings(deadline=None)
def test_what_lies_above_anything_else_is_right_up_to_its_bin(values: list[float], limit: float) -> None:
    found = of(values).above(limit)
    assert sum(value > limit * WIDTH for value in values) <= found + 1e-6
    assert found - 1e-6 <= sum(value > limit / WIDTH for value in values)


def test_the_bounds_are_where_people_look() -> None:
    assert {1.0, 10.0, 100.0, 1_000.0} <= set(BOUNDS_MS)
    assert bin_of(1_000.0) < bin_of(1_000.1)
    assert bin_of(1e9) == BINS - 1


def test_an_empty_bucket_says_nothing() -> None:
    empty = Bucket()
    assert (empty.mean, empty.quantile(0.95), empty.above(10)) == (0.0, 0.0, 0.0)


@given(st.dictionaries(st.integers(0, BINS - 1), st.integers(1, 2**32 - 1)))
@settings(deadline=None)
def test_a_histogram_comes_back_as_it_was(histogram: dict[int, int]) -> None:
    assert (unpack_histogram(pack_histogram(histogram)) or {}) == histogram


@pytest.mark.parametrize("raw", [b"\x01\x00\x00\x00", b"\x01", b"\xff\xff\x00\x00\x01\x00\x00\x00"])
def test_what_is_no_histogram_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"pair|bin|bytes|multiple"):
        unpack_histogram(raw)
