"""Nobody gets more than his rate, everybody who keeps to it gets all of it, and memory stays bounded."""

from __future__ import annotations

from agenthive_server.plugin.buckets import LocalBuckets, Rate
from hypothesis import given
from hypothesis import strategies as st


@given(
    rate=st.builds(Rate, st.integers(1, 50), st.sampled_from([1.0, 10.0, 60.0])),
    gaps=st.lists(st.floats(0, 20), max_size=200),
)
def test_no_span_ever_has_more_than_the_burst_and_what_refills(rate: Rate, gaps: list[float]) -> None:
    buckets, now = LocalBuckets(), 1_000.0
    taken: list[float] = []
    for gap in gaps:
        now += gap
        wait = buckets.take(("k",), rate, now)
        assert 0 <= wait <= rate.seconds
        if not wait:
            taken.append(now)
    for first, begin in enumerate(taken):
        for last in range(first, len(taken)):
            allowed = rate.count + (taken[last] - begin) / rate.interval
            # A hundredth of one is no reason to refuse it.
            assert last - first + 1 <= allowed + 0.01 + 1e-6


@given(st.builds(Rate, st.integers(1, 200), st.sampled_from([1.0, 60.0])), st.floats(0, 1e8))
def test_a_full_bucket_gives_its_burst_and_then_says_how_long_to_wait(rate: Rate, now: float) -> None:
    buckets = LocalBuckets()
    assert [buckets.take(("k",), rate, now) for _ in range(rate.count)] == [0.0] * rate.count
    wait = buckets.take(("k",), rate, now)
    assert 0 < wait <= rate.interval * 1.01
    assert buckets.wait(("k",), rate, now) == wait
    assert buckets.take(("k",), rate, now + wait + 1e-6) == 0.0


def test_zero_is_no_limit_and_keeps_nothing() -> None:
    buckets = LocalBuckets()
    assert all(buckets.take(("k",), Rate(0), 0.0) == 0.0 for _ in range(1_000))
    assert len(buckets) == 0


def test_buckets_are_bounded_and_those_in_use_are_kept_longest() -> None:
    buckets, rate = LocalBuckets(kept=100), Rate(10, 60.0)
    for _ in range(10):
        assert buckets.take(("busy",), rate, 0.0) == 0.0
    for n in range(1_000):
        buckets.take((str(n),), rate, 0.0)
        assert len(buckets) <= 100
    assert buckets.take(("busy",), rate, 0.0) > 0


def test_a_bucket_can_be_drained_and_never_filled() -> None:
    buckets, rate = LocalBuckets(), Rate(60, 60.0)
    buckets.drain(("k",), 90.0, now=0.0)
    assert buckets.missing(("k",), 10.0) == 80.0
    buckets.drain(("k",), 5.0, now=10.0)
    assert buckets.take(("k",), rate, 10.0) == 21.0
    assert buckets.take(("k",), rate, 31.0) == 0.0
    assert buckets.missing(("another",), 0.0) == 0.0
