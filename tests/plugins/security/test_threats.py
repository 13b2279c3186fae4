"""Enough signals within a span are a threat, fewer never are; blocks end, grow when it comes back, and are bounded."""

from __future__ import annotations

from agenthive_plugins.security.threats import (
    LONGEST_BLOCK,
    RULES,
    SUBJECTS,
    Blocks,
    Detector,
    Finding,
    Rule,
    Signal,
    ThreatKind,
    ThreatSeverity,
)
from hypothesis import given
from hypothesis import strategies as st

FAILED = ThreatKind.FAILED_LOGINS
PROBING = ThreatKind.PRIVILEGE_PROBING


def signal(kind: ThreatKind = FAILED, detail: str = "", *, principal: str = "", peer: str = "10.0.0.7") -> Signal:
    return Signal(kind=kind, detail=detail, principal=principal, peer=peer)


def some(detector: Detector, count: int, now: float = 0.0) -> list[Finding | None]:
    return [detector.notice(signal(), now) for _ in range(count)]


@given(
    gaps=st.lists(st.floats(0.0, 100.0), min_size=1, max_size=100),
    count=st.integers(2, 10),
    seconds=st.floats(1.0, 100.0),
)
def test_a_finding_means_that_many_signals_within_the_span(gaps: list[float], count: int, seconds: float) -> None:
    detector = Detector({FAILED: Rule(count, seconds, ThreatSeverity.HIGH)})
    fresh: list[float] = []
    now = 0.0
    for gap in gaps:
        now += gap
        fresh = [at for at in fresh if at > now - seconds] + [now]
        found = detector.notice(signal(), now)
        assert (found is not None) == (len(fresh) >= count)
        if found is not None:
            assert found.count == count
            fresh = []


def test_who_is_within_bounds_is_never_found() -> None:
    detector = Detector()
    for kind, rule in RULES.items():
        for n in range(200):
            # One fewer than the rule names, over and over.
            for m in range(rule.count - 1):
                assert detector.notice(signal(kind, str(m), principal="p"), n * rule.seconds * 1.01) is None


def test_probing_counts_rpcs_that_differ() -> None:
    detector = Detector()
    for _ in range(50):
        assert detector.notice(signal(PROBING, "/S/Same", principal="p"), 0.0) is None
    found = [detector.notice(signal(PROBING, f"/S/{n}", principal="p"), 1.0) for n in range(4)]
    assert found[:3] == [None] * 3
    assert found[3] is not None
    assert found[3].evidence == ("/S/Same", "/S/0", "/S/1", "/S/2", "/S/3")
    assert found[3].principal == "p"


def test_callers_are_counted_apart_and_a_known_one_by_name_not_by_address() -> None:
    detector = Detector({FAILED: Rule(3, 60.0, ThreatSeverity.HIGH)})
    for n in range(20):
        assert detector.notice(signal(peer=f"10.0.0.{n}"), 0.0) is None
    assert detector.notice(signal(principal="p", peer="a"), 0.0) is None
    assert detector.notice(signal(principal="p", peer="b"), 0.0) is None
    assert detector.notice(signal(principal="p", peer="c"), 0.0) is not None


def test_a_block_doubles_while_the_same_comes_back_and_is_bounded() -> None:
    detector = Detector({FAILED: Rule(1, 60.0, ThreatSeverity.HIGH, block=900.0)})
    blocks = [found.block for n in range(5) if (found := detector.notice(signal(), n * 100.0))]
    assert blocks == [900.0, 1_800.0, LONGEST_BLOCK, LONGEST_BLOCK, LONGEST_BLOCK]
    # After a day it is forgotten; when it was resolved, at once.
    later = detector.notice(signal(), 400.0 + 86_400.0)
    assert later is not None
    assert (later.block, later.again) == (900.0, False)
    detector.forget(FAILED, "", "10.0.0.7", "")
    again = detector.notice(signal(), 500.0 + 86_400.0)
    assert again is not None
    assert again.block == 900.0


def test_a_rule_of_zero_is_off() -> None:
    assert some(Detector({FAILED: Rule(0, 60.0, ThreatSeverity.HIGH)}), 1_000) == [None] * 1_000
    assert some(Detector({}), 10) == [None] * 10


def test_memory_is_bounded_whoever_calls() -> None:
    detector = Detector()
    for n in range(SUBJECTS + 500):
        detector.notice(signal(peer=str(n)), 0.0)
    assert len(detector) == SUBJECTS


def test_a_block_ends_by_itself_and_can_be_lifted() -> None:
    time = [100.0]
    blocks = Blocks(lambda: time[0])
    assert not blocks
    blocks.add("", "10.0.0.7", 200.0)
    blocks.add("p", "10.0.0.8", 150.0)
    assert blocks.peer("10.0.0.7") == 100.0
    # Where the principal is known, its address is not blocked.
    assert blocks.peer("10.0.0.8") == 0.0
    assert blocks.principal("p") == 50.0
    # A shorter one does not shorten it.
    blocks.add("", "10.0.0.7", 120.0)
    assert blocks.peer("10.0.0.7") == 100.0
    blocks.lift("", "10.0.0.7")
    assert blocks.peer("10.0.0.7") == 0.0
    time[0] = 150.0
    assert blocks.principal("p") == 0.0
    assert not blocks
