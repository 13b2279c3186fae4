"""Blame: who was behind what was bad, in bounded space, over restarts."""

from __future__ import annotations

import pytest
from agenthive_plugins.production.blame import NAMES, Blame, expired_blame
from hypothesis import given
from hypothesis import strategies as st

START = 1_700_002_800.0
DAY = 86_400.0


def test_the_worst_come_first_and_kinds_are_apart() -> None:
    blame = Blame()
    blame.add("fault", "/a/B", 3, START)
    blame.add("fault", "/a/C", 5, START + 700)
    blame.add("slow", "/a/B", 100, START)
    assert blame.worst("fault", START, START + 3_600, START + 3_600) == [("/a/C", 5), ("/a/B", 3)]
    assert blame.worst("slow", START, START + 3_600, START + 3_600) == [("/a/B", 100)]
    assert blame.worst("fault", START, START + 600, START + 3_600) == [("/a/B", 3)]


def test_what_is_long_ago_is_told_by_the_hour_and_nothing_twice() -> None:
    blame = Blame()
    for hour in range(72):
        blame.add("fault", "x", 1, START + 3_600 * hour)
    now = START + 72 * 3_600
    assert blame.worst("fault", START, now, now) == [("x", 72)]
    blame.expire(now + 39 * DAY)
    assert 0 < blame.worst("fault", START, now, now + 39 * DAY)[0][1] < 72


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=200))
def test_a_name_that_matters_is_never_underrated(found: list[tuple[int, int]]) -> None:
    blame = Blame()
    sums: dict[str, int] = {}
    for name, amount in found:
        blame.add("fault", str(name), amount, START)
        sums[str(name)] = sums.get(str(name), 0) + amount
    told = dict(blame.worst("fault", START, START + 600, START + 600, most=100))
    assert len(told) <= NAMES
    assert all(amount >= sums[name] for name, amount in told.items())
    limit = sum(sums.values()) / NAMES
    assert {name for name, amount in sums.items() if amount > limit} <= set(told)


def test_it_comes_back_as_it_was() -> None:
    blame = Blame()
    blame.add("fault", "/a/B", 3, START)
    blame.add("task", "TOOL", 2, START + DAY)
    chunks = blame.changed()
    assert len(chunks) == 2
    assert blame.changed() == {}
    again = Blame()
    for raw in chunks.values():
        again.unpack(raw)
    now = START + DAY + 60
    for kind in ("fault", "task"):
        assert again.worst(kind, START, now, now) == blame.worst(kind, START, now, now)
    assert expired_blame(list(chunks), START + 40.5 * DAY) == [min(chunks)]


@pytest.mark.parametrize("raw", [b"", b"nonsense", b"x\x9c\xab\x00\x00"])
def test_what_is_damaged_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="blame"):
        Blame().unpack(raw)
