"""Alerts: the life of one, whatever its condition does; who is told, and of what not."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from agenthive_plugins.production.alert_life import FLAP_QUIET, acknowledge, resolve_by_hand, step
from agenthive_plugins.production.alerts import (
    CLEAR,
    UNKNOWN,
    Alert,
    AlertSeverity,
    AlertSource,
    AlertState,
    Change,
    EscalationStep,
    Look,
    Notice,
    Plan,
    Sighting,
    Track,
)
from agenthive_server.plugin.api import Refused
from hypothesis import given, settings
from hypothesis import strategies as st

START = 1_700_000_000.0
HIGH, CRITICAL = AlertSeverity.HIGH, AlertSeverity.CRITICAL
PLAN = Plan(hold=60, cooldown=600, escalation=(EscalationStep(after=1_800, severity=CRITICAL),))


def sighting(severity: AlertSeverity = HIGH, value: float = 90.0) -> Sighting:
    return Sighting(source=AlertSource.RULE, severity=severity, title="hot", metric="cpu", value=value, threshold=80)


class Watch:
    """One condition, looked at again and again."""

    def __init__(self, plan: Plan = PLAN) -> None:
        self.plan = plan
        self.track = Track(fingerprint="f")
        self.now = START
        self.told: list[tuple[float, Notice]] = []
        self._ids = itertools.count(1)

    def look(self, look: Look, after: float = 0.0) -> list[Change]:
        self.now += after
        self.track, notices = step(self.track, self.plan, look, self.now, lambda: f"a{next(self._ids)}")
        self.told += [(self.now, notice) for notice in notices]
        return [notice.change for notice in notices]

    @property
    def alert(self) -> Alert:
        assert self.track.alert is not None
        return self.track.alert


def test_a_condition_must_hold_before_it_fires() -> None:
    watch = Watch()
    assert watch.look(sighting()) == []
    assert watch.look(sighting(), 30) == []
    assert watch.look(CLEAR, 15) == []
    assert watch.look(sighting(), 30) == []
    assert watch.look(sighting(), 60) == [Change.FIRED]
    assert watch.alert.state is AlertState.FIRING


def test_what_goes_on_is_one_alert() -> None:
    watch = Watch(replace(PLAN, hold=0))
    watch.look(sighting())
    for n in range(5):
        assert watch.look(sighting(value=91.0 + n), 60) == []
    assert (watch.alert.occurrences, watch.alert.value, watch.track.triggers) == (6, 95.0, 1)
    assert watch.look(CLEAR, 60) == [Change.RESOLVED]
    assert watch.track.alert is None


def test_no_other_begins_within_the_cooldown() -> None:
    watch = Watch(replace(PLAN, hold=0))
    watch.look(sighting())
    watch.look(CLEAR, 60)
    assert watch.look(sighting(), 60) == []
    assert watch.look(sighting(), 479) == []
    assert watch.look(sighting(), 1) == [Change.FIRED]


def test_a_higher_tier_makes_it_worse_and_is_told() -> None:
    watch = Watch(replace(PLAN, hold=0))
    watch.look(sighting())
    assert watch.look(sighting(CRITICAL), 60) == [Change.WORSENED]
    assert watch.alert.severity is CRITICAL
    assert watch.look(sighting(HIGH), 60) == []
    assert watch.alert.severity is HIGH


def test_it_is_escalated_until_somebody_acknowledges() -> None:
    plan = Plan(
        escalation=(
            EscalationStep(after=600, webhooks=("second",)),
            EscalationStep(after=1_200, severity=CRITICAL, webhooks=("boss",)),
        )
    )
    watch = Watch(plan)
    watch.look(sighting())
    assert watch.look(sighting(), 599) == []
    assert watch.look(sighting(), 1) == [Change.ESCALATED]
    assert watch.told[-1][1].webhooks == ("second",)
    watch.track = replace(watch.track, alert=acknowledge(watch.alert, "anna", "on it", watch.now))
    assert watch.look(sighting(), 3_600) == []
    assert (watch.alert.level, watch.alert.acknowledged_by, watch.alert.note) == (1, "anna", "on it")


def test_an_escalated_severity_stays_while_the_condition_goes_on() -> None:
    watch = Watch(replace(PLAN, hold=0))
    watch.look(sighting())
    watch.look(sighting(), 1_800)
    assert watch.alert.severity is CRITICAL
    watch.look(sighting(HIGH), 60)
    assert watch.alert.severity is CRITICAL


def test_it_is_escalated_also_while_nothing_can_be_measured() -> None:
    watch = Watch(replace(PLAN, hold=0))
    watch.look(sighting())
    assert watch.look(UNKNOWN, 1_800) == [Change.ESCALATED]
    assert watch.alert.state is AlertState.FIRING


def test_what_comes_and_goes_is_told_once_and_ends_when_it_is_quiet() -> None:
    watch = Watch(Plan(cooldown=0))
    for _ in range(20):
        watch.look(sighting(), 30)
        watch.look(CLEAR, 30)
    changes = [notice.change for _, notice in watch.told]
    assert changes.count(Change.FLAPPING) == 1
    assert changes[changes.index(Change.FLAPPING) :] == [Change.FLAPPING]
    assert watch.alert.flapping
    assert watch.look(CLEAR, FLAP_QUIET - 31) == []
    assert watch.look(CLEAR, 31) == [Change.RESOLVED]


def test_what_was_resolved_by_hand_fires_again_only_after_it_was_false() -> None:
    watch = Watch(Plan(cooldown=0))
    watch.look(sighting())
    watch.track, ended = resolve_by_hand(watch.track, watch.alert, "anna", "known", watch.now)
    assert (ended.state, ended.resolved_by) == (AlertState.RESOLVED, "anna")
    assert watch.look(sighting(), 3_600) == []
    assert watch.look(CLEAR, 60) == []
    assert watch.look(sighting(), 60) == [Change.FIRED]


def test_a_resolved_alert_cannot_be_acknowledged_and_an_acknowledged_one_stays_as_it_is() -> None:
    watch = Watch(Plan())
    watch.look(sighting())
    once = acknowledge(watch.alert, "anna", "", START + 5)
    assert acknowledge(once, "bert", "me too", START + 9) == once
    _, ended = resolve_by_hand(watch.track, once, "", "", START + 9)
    with pytest.raises(Refused):
        acknowledge(ended, "anna", "", START + 10)


looks = st.lists(
    st.tuples(
        st.sampled_from(["seen", "worse", "clear", "unknown", "acknowledge", "resolve"]), st.floats(0.1, 2_000.0)
    ),
    max_size=60,
)
plans = st.builds(
    Plan,
    hold=st.sampled_from([0.0, 60.0, 600.0]),
    cooldown=st.sampled_from([0.0, 600.0]),
    escalation=st.sampled_from([(), PLAN.escalation, (EscalationStep(after=60), EscalationStep(after=120))]),
)


@given(plans, looks)
@settings(max_examples=200, deadline=None)
def test_whatever_happens_an_alert_lives_one_life(plan: Plan, history: list[tuple[str, float]]) -> None:
    watch = Watch(plan)
    begun: list[float] = []
    states: dict[str, AlertState] = {}
    for what, after in history:
        before = watch.track.alert
        if what == "acknowledge" and before is not None:
            watch.track = replace(watch.track, alert=acknowledge(before, "anna", "", watch.now))
        elif what == "resolve" and before is not None:
            watch.track, _ = resolve_by_hand(watch.track, before, "anna", "", watch.now)
            states[before.id] = AlertState.RESOLVED
        else:
            found: dict[str, Look] = {"seen": sighting(), "worse": sighting(CRITICAL), "clear": CLEAR}
            seen = found.get(what, UNKNOWN)
            told = watch.look(seen, after)
            if Change.ESCALATED in told:
                assert before is None or before.state is AlertState.FIRING
        now = watch.track.alert
        if now is not None:
            assert states.get(now.id, AlertState.FIRING) <= now.state < AlertState.RESOLVED
            assert now.level <= len(plan.escalation)
            if now.id not in states:
                begun.append(watch.now)
            states[now.id] = now.state
        # Of one cause there is one that is not resolved; the one before it has ended.
        if before is not None and (now is None or now.id != before.id):
            states[before.id] = AlertState.RESOLVED
    assert all(later - earlier >= plan.cooldown for earlier, later in itertools.pairwise(begun))
