"""Deadlines of many records."""

from __future__ import annotations

from agenthive_server.kernel.timers import Timers
from hypothesis import given
from hypothesis import strategies as st


def test_a_deadline_is_due_from_its_time_on_until_it_is_cleared() -> None:
    timers: Timers[str] = Timers()
    timers.set("a", 10.0)
    assert timers.due(9.99) == []
    assert timers.due(10.0) == timers.due(11.0) == ["a"]
    timers.set("a", None)
    assert timers.due(20.0) == []
    assert len(timers) == 0


def test_a_deadline_may_be_moved_both_ways() -> None:
    timers: Timers[str] = Timers()
    for time in (5.0, 50.0, 2.0, 2.05):
        timers.set("a", time)
    assert timers.due(2.04) == []
    assert timers.due(3.0) == ["a"]


operations = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.one_of(st.none(), st.floats(min_value=0, max_value=50)), st.floats(0, 50)),
    max_size=60,
)


@given(operations=operations)
def test_what_is_due_is_what_a_plain_table_says(operations: list[tuple[str, float | None, float]]) -> None:
    timers: Timers[str] = Timers()
    table: dict[str, float] = {}
    for key, time, now in operations:
        timers.set(key, time)
        table.pop(key, None)
        if time is not None:
            table[key] = time
        assert sorted(timers.due(now)) == sorted(k for k, t in table.items() if t <= now)
        assert len(timers) == len(table)
