"""`hive events`: where it begins, what it leaves out, how it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agenthive.v1 import agent_pb2, event_pb2, orchestrator_service_pb2, task_pb2

Hive = Callable[..., Any]


@pytest.fixture
def story(fake: Any) -> Any:
    fake.happen(task_id="t-1", task_delegated=event_pb2.TaskDelegated(type="review", priority=2))
    fake.happen(task_id="t-1", agent_id="a-1", task_started=event_pb2.TaskStarted(attempt=1, lease_epoch=7))
    fake.happen(task_id="t-2", task_canceled=event_pb2.TaskCanceled(reason="not\nneeded"))
    return fake


def test_an_event_is_one_line(hive: Hive, story: Any) -> None:
    lines = hive("events", "--earliest", "--no-follow").out.splitlines()
    assert [line.split()[1:] for line in lines] == [
        ["1", "TASK_DELEGATED", "t-1", "type=review", "priority=2"],
        ["2", "TASK_STARTED", "t-1", "@a-1", "attempt=1"],
        ["3", "TASK_CANCELED", "t-2", "not", "needed"],
    ]


def test_a_script_gets_a_document_a_line(hive: Hive, story: Any) -> None:
    answer = hive("events", "--earliest", "--no-follow", "-o", "json")
    assert [line["sequence"] for line in answer.lines] == ["1", "2", "3"]
    assert answer.lines[0]["task_delegated"]["type"] == "review"
    assert answer.err == '{"cursor": "3"}\n'


def test_the_cursor_goes_on_where_it_ended(hive: Hive, story: Any) -> None:
    first = hive("events", "--earliest", "--no-follow")
    assert first.err == "cursor: 3\n"
    story.happen(task_id="t-3", task_paused=event_pb2.TaskPaused())
    assert "t-3" in hive("events", "--after", "3", "--no-follow").out


def test_it_follows_until_the_limit(hive: Hive, story: Any) -> None:
    answer = hive("events", "--earliest", "--limit", "2")
    assert answer.code == 0
    assert len(answer.out.splitlines()) == 2


def test_it_follows_for_a_time(hive: Hive, story: Any) -> None:
    answer = hive("events", "--for", "100ms")
    assert (answer.code, answer.out, answer.err) == (0, "", "cursor: 3\n")


def test_the_filter_is_the_servers(hive: Hive, story: Any) -> None:
    hive(
        "events", "--no-follow", "--type", "task-failed", "-t", "AGENT_LOST", "--task", "t-1", "--tree", "t-0",
        "--agent", "a-1", "--role", "r", "--label", "k=v", "--min-severity", "warning", "--output-class", "all", "-A",
    )  # fmt: skip
    [asked] = story.requests["StreamEventsRequest"]
    wanted = asked.filter
    assert wanted.types == [event_pb2.EVENT_TYPE_TASK_FAILED, event_pb2.EVENT_TYPE_AGENT_LOST]
    assert (wanted.task_ids, wanted.root_task_id, wanted.agent_ids, wanted.roles) == (["t-1"], "t-0", ["a-1"], ["r"])
    assert wanted.labels == {"k": "v"}
    assert wanted.minimum_severity == event_pb2.SEVERITY_WARNING
    assert wanted.all_namespaces
    assert asked.event_class == orchestrator_service_pb2.EVENT_CLASS_ALL
    assert asked.no_follow


def test_since_is_a_time(hive: Hive, story: Any) -> None:
    hive("events", "--no-follow", "--since", "10m")
    [asked] = story.requests["StreamEventsRequest"]
    assert asked.start == orchestrator_service_pb2.STREAM_START_AT_TIME
    assert asked.start_time.seconds > 1_700_000_000


def test_there_is_one_beginning(hive: Hive, story: Any) -> None:
    assert hive("events", "--earliest", "--since", "1m").code == 2
    assert hive("events", "--after", "1", "--snapshot").code == 2


def test_a_snapshot_tells_what_is_there(hive: Hive, fake: Any) -> None:
    agent = agent_pb2.Agent(agent_id="a-1", state=agent_pb2.AGENT_STATE_IDLE)
    task = task_pb2.Task(task_id="t-1", state=task_pb2.TASK_STATE_QUEUED, spec=task_pb2.TaskSpec(type="review"))
    fake.happen(agent_id="a-1", agent_snapshot=event_pb2.AgentSnapshot(agent=agent))
    fake.happen(task_id="t-1", task_snapshot=event_pb2.TaskSnapshot(task=task))
    for event in fake.events:
        event.sequence = 0
    out = hive("events", "--earliest", "--no-follow").out
    assert "- AGENT_SNAPSHOT        a-1  IDLE slots=0/1" in out
    assert "- TASK_SNAPSHOT         t-1  QUEUED type=review priority=3" in out
    hive("events", "--snapshot", "--no-follow")
    assert story_start(fake) == orchestrator_service_pb2.STREAM_START_SNAPSHOT_THEN_TAIL


def story_start(fake: Any) -> int:
    start: int = fake.requests["StreamEventsRequest"][-1].start
    return start


def test_output_and_progress_are_lines_too(hive: Hive, fake: Any) -> None:
    fake.happen(task_id="t-1", task_output=event_pb2.TaskOutput(attempt=1, data=b"hello\n"))
    fake.happen(task_id="t-1", task_progressed=event_pb2.TaskProgressed(attempt=1, fraction=0.25, text="reading"))
    out = hive("events", "--earliest", "--no-follow", "--output-class", "output").out
    assert "TASK_OUTPUT           t-1  hello\n" in out
    assert "TASK_PROGRESSED       t-1  25% reading\n" in out


def test_every_fact_of_the_contract_has_a_line(hive: Hive, fake: Any) -> None:
    facts = [field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["fact"].fields]
    for fact in facts:
        event = fake.happen(task_id="t-1")
        getattr(event, fact).SetInParent()
    lines = hive("events", "--earliest", "--no-follow", "--output-class", "all").out.splitlines()
    # The fake took them for lifecycle events, so they have numbers of their own.
    assert [line.split()[2] for line in lines] == [fact.upper() for fact in facts]
