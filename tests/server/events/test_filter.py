"""Filters: every condition alone, all of them together, and equality."""

from __future__ import annotations

from typing import Any

import pytest
from agenthive_server.events.filter import EventFilter, named_in
from agenthive_server.kernel.events import Event, EventType, Severity
from hypothesis import given
from hypothesis import strategies as st


def event(**changes: Any) -> Event:
    fields: dict[str, Any] = {
        "type": EventType.TASK_STARTED,
        "namespace": "default",
        "task_id": "t",
        "agent_id": "a",
        "role": "coder",
        "labels": {"team": "red", "tier": "1"},
        "ancestors": ("root", "parent"),
    }
    return Event(**(fields | changes))


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        ({}, True),
        ({"namespace": "default"}, True),
        ({"namespace": "other"}, False),
        ({"types": frozenset({EventType.TASK_STARTED, EventType.TASK_FAILED})}, True),
        ({"types": frozenset({EventType.TASK_FAILED})}, False),
        ({"agent_ids": frozenset({"a", "b"})}, True),
        ({"agent_ids": frozenset({"b"})}, False),
        ({"task_ids": frozenset({"t", "u"})}, True),
        ({"task_ids": frozenset({"root"})}, False),
        ({"root_task_id": "root"}, True),
        ({"root_task_id": "parent"}, True),
        ({"root_task_id": "t"}, True),
        ({"root_task_id": "other"}, False),
        ({"roles": frozenset({"coder"})}, True),
        ({"roles": frozenset({"tester"})}, False),
        ({"labels": frozenset({("team", "red")})}, True),
        ({"labels": frozenset({("team", "red"), ("tier", "1")})}, True),
        ({"labels": frozenset({("team", "red"), ("tier", "2")})}, False),
        ({"minimum_severity": Severity.WARNING}, False),
        ({"namespace": "default", "roles": frozenset({"coder"}), "agent_ids": frozenset({"b"})}, False),
    ],
)
def test_a_condition_decides(wanted: dict[str, Any], matches: bool) -> None:
    assert EventFilter(**wanted).matches(event()) is matches


def test_severity_and_types_must_both_hold() -> None:
    wanted = EventFilter(
        types=frozenset({EventType.TASK_FAILED, EventType.TASK_STARTED}), minimum_severity=Severity.ERROR
    )
    assert wanted.matches(event(type=EventType.TASK_FAILED))
    assert not wanted.matches(event(type=EventType.TASK_STARTED))
    assert not wanted.matches(event(type=EventType.AGENT_LOST))


def test_types_that_are_never_severe_enough_match_nothing() -> None:
    wanted = EventFilter(types=frozenset({EventType.TASK_STARTED}), minimum_severity=Severity.ERROR)
    assert not any(wanted.matches(event(type=kind)) for kind in EventType)


def test_equal_filters_are_one_key() -> None:
    first = EventFilter(namespace="default", labels=frozenset({("a", "b")}))
    second = EventFilter(namespace="default", labels=frozenset({("a", "b")}))
    assert {first: 1}[second] == 1
    assert first != EventFilter(namespace="default")


NAMES = st.sampled_from(["", "a", "b", "c"])
SOME = st.frozensets(st.sampled_from(["a", "b", "c"]), max_size=2)


@given(
    wanted=st.builds(EventFilter, task_ids=SOME, agent_ids=SOME, root_task_id=NAMES, roles=SOME),
    subjects=st.lists(st.tuples(NAMES, NAMES, st.lists(NAMES, max_size=2)), min_size=1, max_size=4),
)
def test_what_is_excluded_by_name_would_not_match(
    wanted: EventFilter, subjects: list[tuple[str, str, list[str]]]
) -> None:
    events = [event(task_id=task, agent_id=agent, ancestors=tuple(above)) for task, agent, above in subjects]
    if wanted.excludes(named_in(events)):
        assert not any(wanted.matches(each) for each in events)
