"""Outcomes: each event counted once, where it belongs, with who was to blame."""

from __future__ import annotations

from typing import Any

import pytest
from agenthive_plugins.production import outcomes
from agenthive_plugins.production.blame import Blame
from agenthive_plugins.production.outcomes import Outcomes
from agenthive_plugins.production.series import SeriesSet
from agenthive_server.plugin.api import ErrorClass, Event, EventType, TaskError

START = 1_700_000_000.0


class Story:
    def __init__(self, sequence: int = 0) -> None:
        self.series, self.blame = SeriesSet(START), Blame()
        self.outcomes = Outcomes(self.series, self.blame, sequence)
        self.sequence = 0

    async def happens(self, kind: EventType, after: float, task_id: str = "t", **data: Any) -> Event:
        self.sequence += 1
        event = Event(kind, "default", task_id, data=data, sequence=self.sequence, time=START + after)
        await self.outcomes.handlers[kind](event)
        return event

    def total(self, name: str) -> float:
        self.outcomes.fold()
        return self.series.window(name, START - 60, START + 7_200, START + 7_200).total


async def test_a_task_that_succeeds() -> None:
    story = Story()
    await story.happens(EventType.TASK_DELEGATED, 0, state="QUEUED")
    await story.happens(EventType.TASK_STARTED, 4)
    await story.happens(EventType.TASK_SUCCEEDED, 64)
    assert [story.total(name) for name in ("tasks_delegated", "tasks_succeeded", "tasks_failed")] == [1, 1, 0]
    assert [story.total(name) for name in ("task_queue_wait_ms", "task_run_time_ms")] == [4_000, 60_000]


async def test_what_failed_is_blamed_on_its_cause() -> None:
    story = Story()
    error = TaskError(error_class=ErrorClass.TOOL, message="a secret")
    await story.happens(EventType.TASK_FAILED, 1, error=error)
    await story.happens(EventType.TASK_FAILED, 2, error=error)
    await story.happens(EventType.TASK_EXPIRED, 3, clock="SCHEDULE_TO_START")
    await story.happens(EventType.TASK_QUARANTINED, 4)
    await story.happens(EventType.TASK_CANCELED, 5)
    assert (story.total("tasks_failed"), story.total("tasks_canceled")) == (4, 1)
    assert story.blame.worst("task", START, START + 60, START + 60) == [
        ("TOOL", 2),
        ("EXPIRED SCHEDULE_TO_START", 1),
        ("QUARANTINED", 1),
    ]


async def test_a_repeat_after_a_crash_counts_nothing_twice() -> None:
    story = Story()
    event = await story.happens(EventType.TASK_SUCCEEDED, 1)
    await story.outcomes.handlers[event.type](event)
    assert story.total("tasks_succeeded") == 1
    again = Story(sequence=5)
    for _ in range(7):
        await again.happens(EventType.TASK_SUCCEEDED, 1)
    assert again.total("tasks_succeeded") == 2
    assert again.outcomes.sequence == 7


async def test_waiting_begins_anew_with_each_attempt_and_blocked_tasks_do_not_wait() -> None:
    story = Story()
    await story.happens(EventType.TASK_DELEGATED, 0, state="BLOCKED")
    await story.happens(EventType.TASK_RELEASED, 100)
    await story.happens(EventType.TASK_STARTED, 101)
    await story.happens(EventType.TASK_RETRY_SCHEDULED, 102)
    await story.happens(EventType.TASK_STARTED, 200)
    await story.happens(EventType.TASK_REQUEUED, 210)
    await story.happens(EventType.TASK_STARTED, 215)
    await story.happens(EventType.TASK_SUCCEEDED, 216)
    assert story.total("task_queue_wait_ms") == 6_000
    assert story.total("task_run_time_ms") == 1_000


async def test_agents_and_findings() -> None:
    story = Story()
    await story.happens(EventType.AGENT_FAILED, 1)
    await story.happens(EventType.AGENT_LOST, 2)
    await story.happens(EventType.PLUGIN_REPORTED, 3, plugin="security", severity="WARNING")
    await story.happens(EventType.PLUGIN_REPORTED, 3, plugin="security", severity="INFO")
    await story.happens(EventType.PLUGIN_REPORTED, 4, plugin="production", severity="ERROR")
    assert (story.total("agent_failures"), story.total("security_events")) == (2, 1)


async def test_what_is_remembered_of_open_tasks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "MOST_OPEN", 100)
    story = Story()
    for n in range(110):
        await story.happens(EventType.TASK_DELEGATED, 0, f"t{n}", state="QUEUED")
    await story.happens(EventType.TASK_STARTED, 5, "t0")
    await story.happens(EventType.TASK_STARTED, 5, "t105")
    assert story.total("task_queue_wait_ms") == 5_000
