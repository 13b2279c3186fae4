"""A schedule follows from its seed, and leaves no kind of fault out."""

from __future__ import annotations

from agenthive_server.testing.fleet.faults import KINDS, plan


def test_a_seed_makes_the_same_schedule_again_and_another_makes_another() -> None:
    assert plan(7, 40) == plan(7, 40)
    assert plan(7, 40) != plan(8, 40)
    # A shorter run is the beginning of a longer one of as many rounds of all kinds.
    assert [fault.kind for fault in plan(7, 9)] == [fault.kind for fault in plan(7, 40)][:9]


def test_every_kind_comes_before_any_comes_again() -> None:
    kinds = [fault.kind for fault in plan(3, 2 * len(KINDS))]
    assert sorted(kinds[: len(KINDS)]) == sorted(kinds[len(KINDS) :]) == sorted(KINDS)
