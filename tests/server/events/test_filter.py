"""Filters: every condition alone, all of them together, and equality."""

from __future__ import annotations

from typing import Any

import pytest
from agenthive_server.events.filter import EventFilter
from agenthive_server.kernel.events import Event, EventType, Severity


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
