"""A line: the first by order is found although orders move unsaid, at a bounded cost however many there are."""

from __future__ import annotations

import random

from agenthive_server.kernel.line import PATIENCE, Line, Order


class _Member:
    """Stands where it is told, and counts how often it was asked."""

    asked = 0

    def __init__(self, name: str, place: float, priority: int = 3) -> None:
        self.name = name
        self.place: float | None = place
        self.priority = priority

    def order(self) -> Order | None:
        _Member.asked += 1
        return None if self.place is None else (self.priority, self.place, 0.0, 0)


def _line(*members: _Member) -> Line[_Member]:
    line: Line[_Member] = Line()
    for member in members:
        line.put(member)
    return line


def _name(line: Line[_Member]) -> str:
    first = line.first()
    return first.name if first else ""


def test_the_smallest_order_is_first_also_when_orders_have_grown() -> None:
    a, b = _Member("a", 1.0), _Member("b", 2.0)
    line = _line(b, a)
    assert _name(line) == "a"
    a.place = 3.0
    assert _name(line) == "b"
    b.place = None
    assert _name(line) == "a"
    assert b not in line


def test_an_order_that_has_shrunk_counts_once_it_is_said() -> None:
    a, b = _Member("a", 1.0), _Member("b", 2.0)
    line = _line(a, b)
    b.place = 0.0
    line.put(b)
    assert _name(line) == "b"
    line.discard(b)
    assert _name(line) == "a"
    line.discard(a)
    assert _name(line) == ""
    assert not line


def test_it_agrees_with_sorting_whatever_happens() -> None:
    dice = random.Random(3)
    members = [_Member(f"m{n}", dice.random()) for n in range(PATIENCE)]
    line = _line(*members)
    for _ in range(2_000):
        member = dice.choice(members)
        member.place = dice.choice([None, dice.random()]) if member.place is None else member.place + dice.random()
        if dice.random() < 0.1:
            member.place = dice.random()
        line.put(member)
        standing = [m for m in members if m.place is not None]
        assert line.first() is min(standing, key=lambda m: m.place or 0.0, default=None)


def test_when_all_have_moved_a_few_are_asked_and_the_turns_even_out() -> None:
    members = [_Member(str(n), 0.0) for n in range(1_000)]
    line = _line(*members)
    served = dict.fromkeys(members, 0)
    for turn in range(1, 4_001):
        # One task taken moves all: their turns come from one clock.
        for member in members:
            member.place = max(member.place or 0.0, turn / 2.0)
        before, first = _Member.asked, line.first()
        assert first is not None
        assert _Member.asked - before <= PATIENCE + 1
        served[first] += 1
        first.place = turn + 500.0
    assert max(served.values()) <= 10


def test_a_better_priority_never_waits_for_turns_to_be_put_right() -> None:
    fallen = [_Member(f"fallen{n}", 0.0, priority=1) for n in range(10 * PATIENCE)]
    second = _Member("second", 9.0, priority=2)
    line = _line(*fallen, second)
    for member in fallen:
        member.priority = 4
    assert line.first() is second


def test_what_is_put_again_and_again_takes_no_more_room() -> None:
    member, other = _Member("a", 0.0), _Member("b", 10_000.0)
    line = _line(member, other)
    for place in range(5_000):
        member.place = float(5_000 - place)
        line.put(member)
    assert len(line._heap) < 100
