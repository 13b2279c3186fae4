"""Chunks: what is stored comes back as it was, what is damaged is refused, what is old is removed."""

from __future__ import annotations

import zlib

import pytest
from agenthive_plugins.production.buckets import Bucket
from agenthive_plugins.production.series import MAX_SERIES, SeriesSet
from agenthive_plugins.production.series_chunks import (
    HOURS_PREFIX,
    MINUTES_PREFIX,
    PART_BYTES,
    Damaged,
    chunk_of,
    expired,
    pack,
    rebuild_hours,
    unpack,
)
from hypothesis import given, settings
from hypothesis import strategies as st

START = 1_700_000_400.0
"""The begin of a chunk of minutes."""

values = st.lists(
    st.tuples(st.sampled_from(["cpu", "calls", "response_time_ms"]), st.floats(0, 599), st.floats(0.1, 1e5)),
    min_size=1,
    max_size=50,
)


def minutes_of(series: SeriesSet, name: str) -> list[tuple[int, Bucket]]:
    found = series.find(name)
    return [] if found is None else list(found.levels[1].between(0, 2**40))


@given(values)
@settings(max_examples=60, deadline=None)
def test_what_is_stored_comes_back_as_it_was(given_values: list[tuple[str, float, float]]) -> None:
    series = SeriesSet(START)
    for name, time, value in given_values:
        bucket = Bucket()
        bucket.add_time(value)
        series.add(name, START + time, bucket)
    again = SeriesSet(START + 600)
    for key, raw in pack(series, chunk_of(MINUTES_PREFIX, START)).items():
        unpack(again, key, raw)
    assert again.names == series.names
    for name in series.names:
        assert minutes_of(again, name) == minutes_of(series, name)


def test_reading_a_chunk_twice_changes_nothing() -> None:
    series = SeriesSet(START)
    series.count("x", START, 3)
    parts = pack(series, chunk_of(MINUTES_PREFIX, START))
    again = SeriesSet(START + 600)
    for _ in range(2):
        for key, raw in parts.items():
            unpack(again, key, raw)
    assert minutes_of(again, "x") == minutes_of(series, "x")


def test_a_chunk_of_many_full_series_comes_in_parts_that_the_state_takes() -> None:
    series = SeriesSet(START)
    full = {place: 1_000_000 + 7919 * place for place in range(72)}
    for number in range(MAX_SERIES):
        for minute in range(10):
            time = START + 60 * minute
            noise = {place: count * (number + 1) * (minute + 3) % 4_000_037 for place, count in full.items()}
            series.add(f"series_{number}", time, Bucket(72.0 + number / 7, time / 3, 0.1 * number, time, noise))
    parts = pack(series, chunk_of(MINUTES_PREFIX, START))
    assert len(parts) > 1
    assert max(map(len, parts.values())) <= PART_BYTES
    again = SeriesSet(START + 600)
    for key, raw in parts.items():
        unpack(again, key, raw)
    assert all(minutes_of(again, name) == minutes_of(series, name) for name in series.names)


@pytest.mark.parametrize(
    "raw", [b"", b"nonsense", zlib.compress(b""), zlib.compress(b"\x01\x05\x00"), zlib.compress(b"\x09\x00\x00")]
)
def test_what_is_damaged_is_refused_and_says_so(raw: bytes) -> None:
    with pytest.raises(Damaged, match="minutes/"):
        unpack(SeriesSet(START), chunk_of(MINUTES_PREFIX, START), raw)


def test_only_what_is_older_than_it_is_kept_is_removed() -> None:
    now = START + 90 * 86_400
    keys = [
        chunk_of(prefix, now - age * 86_400)
        for prefix in (MINUTES_PREFIX, HOURS_PREFIX)
        for age in (0, 0.9, 1.1, 39, 42)
    ]
    gone = expired([f"{key}/0" for key in keys], now)
    assert gone == [f"{key}/0" for key in (keys[2], keys[3], keys[4], keys[9])]


def test_the_hours_of_the_last_day_follow_from_its_minutes() -> None:
    series = SeriesSet(START)
    found = series.open("x")
    assert found is not None
    for minute in range(180):
        found.levels[1].replace(int(START // 60) + minute, Bucket(1, 2.0, 2.0, 2.0))
    rebuild_hours(series, START + 180 * 60)
    hours = [bucket for _, bucket in found.levels[2].between(0, 2**40)]
    assert sum(bucket.total for bucket in hours) == 360
