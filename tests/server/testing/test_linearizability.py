"""The search finds an order when there is one, and only then: compared with trying out every order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from agenthive_server.testing.linearizability import Operation, Undecided, check
from hypothesis import given, settings
from hypothesis import strategies as st

Register = Operation[int]


def read(value: int, start: float = 0, end: float = 10, *, after: tuple[int, ...] = ()) -> Register:
    return Operation(
        name=f"read {value}",
        start=start,
        end=end,
        reads=True,
        after=after,
        step=lambda now: now if now == value else None,
    )


def write(value: int, start: float = 0, end: float = 10, *, optional: bool = False) -> Register:
    return Operation(name=f"write {value}", start=start, end=end, kind=value, optional=optional, step=lambda now: value)


def swap(old: int, new: int, start: float = 0, end: float = 10, *, optional: bool = False) -> Register:
    return Operation(
        name=f"swap {old} for {new}",
        start=start,
        end=end,
        kind=(old, new),
        optional=optional,
        step=lambda now: new if now == old else None,
    )


def tick(below: float, start: float = 0, end: float = 10, *, optional: bool = False) -> Register:
    return Operation(
        name=f"tick below {below}",
        start=start,
        end=end,
        kind="tick",
        rank=below,
        optional=optional,
        step=lambda now: now + 1 if now < below else None,
        hopeless=lambda now: now >= below,
    )


def see(values: frozenset[int], start: float = 0, end: float = 10, *, after: tuple[int, ...] = ()) -> Register:
    return Operation(
        name=f"see {sorted(values)}",
        start=start,
        end=end,
        reads=True,
        after=after,
        step=lambda now: now if now in values else None,
        hopeless=lambda now: now > max(values),
    )


def by_trying(operations: Sequence[Register]) -> bool:
    """What linearizable means, word by word."""
    required = [number for number, each in enumerate(operations) if not each.optional]
    optional = [number for number, each in enumerate(operations) if each.optional]
    for count in range(len(optional) + 1):
        for chosen in itertools.combinations(optional, count):
            if any(stands(operations, order) for order in itertools.permutations([*required, *chosen])):
                return True
    return False


def stands(operations: Sequence[Register], order: Sequence[int]) -> bool:
    state: int | None = 0
    for position, number in enumerate(order):
        each = operations[number]
        for later in order[position + 1 :]:
            if operations[later].end < each.start or later in each.after:
                return False
        state = each.step(state) if state is not None else None
        if state is None:
            return False
    return True


@st.composite
def histories(draw: st.DrawFn) -> list[Register]:
    """Of a register that is read, written and swapped, or of a counter that only grows."""
    counts = draw(st.booleans())
    found: list[Register] = []
    for number in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, 6))
        end = draw(st.one_of(st.integers(start, 8), st.just(math.inf)))
        if draw(st.booleans()):
            before = [n for n in range(number) if not found[n].optional]
            after = tuple(draw(st.lists(st.sampled_from(before), max_size=1))) if before else ()
            values = draw(st.frozensets(st.integers(0, 3), min_size=1, max_size=2))
            found.append(see(values, start, end, after=after) if counts else read(min(values), start, end, after=after))
        elif counts:
            below = draw(st.sampled_from((1, 2, 3, math.inf)))
            found.append(tick(below, start, end, optional=draw(st.booleans())))
        else:
            old, new, optional = draw(st.integers(-1, 2)), draw(st.integers(0, 2)), draw(st.booleans())
            made = (
                write(new, start, end, optional=optional) if old < 0 else swap(old, new, start, end, optional=optional)
            )
            found.append(made)
    return found


@settings(max_examples=500, deadline=None)
@given(histories())
def test_the_verdict_is_that_of_trying_every_order(history: list[Register]) -> None:
    assert (check(history, 0) is None) == by_trying(history)


def test_a_read_of_what_was_overwritten_before_is_shown() -> None:
    found = check([write(1, 0, 1), write(2, 2, 3), read(1, 4, 5), read(2, 4, 5)], 0)
    assert found is not None
    assert [found.operations[number].name for number, _ in found.placed] == ["write 1", "write 2", "read 2"]
    assert [found.operations[number].name for number in found.stuck] == ["read 1"]
    text = found.describe(lambda state: f"register at {state}")
    assert "the state then: register at 2" in text
    assert text.splitlines()[-1].endswith("read 1")
    assert [line.split("#")[0].strip() for line in text.splitlines()[1:5]] == ["1", "2", "-", "3"]


def test_what_nobody_heard_of_may_have_happened_late_or_never() -> None:
    late = write(1, 0, math.inf, optional=True)
    assert check([late, read(0, 1, 2), read(1, 3, 4)], 0) is None
    assert check([late, read(0, 1, 2), read(0, 3, 4)], 0) is None
    assert check([late, read(1, 1, 2), read(0, 3, 4)], 0) is not None


def test_many_at_once_are_decided_quickly() -> None:
    """A search that tried the orders of what does the same would not end."""
    swaps = [swap(n % 5, (n + 1) % 5) for n in range(100)]
    reads = [read(n % 5) for n in range(100)]
    assert check([*swaps, *reads], 0) is None
    assert check([*swaps, *reads, read(7)], 0) is not None


def test_a_search_that_leads_nowhere_ends() -> None:
    odd = [Operation[int](name=f"add {1 << n}", step=lambda now, n=n: now + (1 << n)) for n in range(30)]  # type: ignore[misc]
    with pytest.raises(Undecided):
        check([*odd, read(-1)], 0, limit=1_000)
