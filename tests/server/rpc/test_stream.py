"""Event streams over a real port."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from agenthive.v1 import event_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive_server.kernel.records import Payload

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Edge

Failure = Callable[[Any], Any]
NO_VALUE: Any = 99
EARLIEST = pb.STREAM_START_EARLIEST


async def read(edge: Edge, **request: Any) -> list[event_pb2.Event]:
    """Return all events up to the head of the log."""
    events: list[event_pb2.Event] = []
    async for response in edge.orchestrator.StreamEvents(pb.StreamEventsRequest(no_follow=True, **request)):
        events += response.events
    return events


def facts(events: list[event_pb2.Event]) -> list[str | None]:
    return [event.WhichOneof("fact") for event in events]


async def finish(edge: Edge, task_id: str, **spec: Any) -> None:
    worker = await edge.hive.worker("a")
    await edge.hive.delegate(task_id, **spec)
    await worker.finish(worker.assignments()[-1])


async def test_the_story_of_a_task_is_told_in_order(edge: Edge) -> None:
    await finish(edge, "t", labels={"k": "v"}, role="")
    events = await read(edge, start=EARLIEST)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert facts(await read(edge, start=EARLIEST, filter=event_pb2.EventFilter(task_ids=["t"]))) == [
        "task_delegated",
        "task_assigned",
        "task_started",
        "task_succeeded",
    ]
    (assigned,) = [event for event in events if event.HasField("task_assigned")]
    assert (assigned.task_id, assigned.agent_id, assigned.namespace) == ("t", "a", "default")
    assert (assigned.task_assigned.attempt, assigned.task_assigned.lease_epoch) == (1, 1)
    assert assigned.time.seconds == int(edge.hive.clock.now())
    (delegated,) = [event for event in events if event.HasField("task_delegated")]
    assert delegated.task_delegated.state == task_pb2.TASK_STATE_QUEUED
    assert delegated.severity == event_pb2.SEVERITY_INFO


async def test_a_stream_begins_with_its_cursor_follows_and_can_be_resumed(edge: Edge) -> None:
    call = edge.orchestrator.StreamEvents(pb.StreamEventsRequest())
    first = await call.read()
    assert first.cursor
    assert not first.events
    await edge.hive.delegate("t")
    response = await call.read()
    assert facts(list(response.events)) == ["task_delegated"]
    call.cancel()
    assert facts(await read(edge, after_cursor=first.cursor)) == ["task_delegated"]
    assert await read(edge, after_cursor=response.cursor) == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"types": [event_pb2.EVENT_TYPE_TASK_DELEGATED]}, ["task_delegated", "task_delegated"]),
        ({"task_ids": ["u"], "types": [event_pb2.EVENT_TYPE_TASK_DELEGATED]}, ["task_delegated"]),
        ({"labels": {"k": "v"}, "types": [event_pb2.EVENT_TYPE_TASK_DELEGATED]}, ["task_delegated"]),
        ({"roles": ["nobody"]}, []),
        ({"minimum_severity": event_pb2.SEVERITY_ERROR}, []),
        ({"root_task_id": "t", "types": [event_pb2.EVENT_TYPE_TASK_DELEGATED]}, ["task_delegated", "task_delegated"]),
    ],
)
async def test_filters(edge: Edge, wanted: dict[str, Any], found: list[str]) -> None:
    await edge.hive.delegate("t", labels={"k": "v"})
    await edge.hive.delegate("u", parent_task_id="t")
    assert facts(await read(edge, start=EARLIEST, filter=event_pb2.EventFilter(**wanted))) == found


async def test_a_snapshot_comes_before_the_tail(edge: Edge) -> None:
    await edge.hive.worker("a", role="r")
    await edge.hive.delegate("open", input=Payload(data=b"x"), required_capabilities=("none",))
    events = await read(edge, start=pb.STREAM_START_SNAPSHOT_THEN_TAIL)
    assert facts(events) == ["agent_snapshot", "task_snapshot", "snapshot_end"]
    agent, task, end = events
    assert (agent.agent_id, agent.role, agent.sequence) == ("a", "r", 0)
    assert agent.agent_snapshot.agent.spec.role == "r"
    assert task.task_snapshot.task.task_id == "open"
    assert not task.task_snapshot.task.spec.HasField("input")
    assert (end.snapshot_end.agent_count, end.snapshot_end.task_count) == (1, 1)


async def test_streams_of_a_namespace_and_of_all(edge: Edge) -> None:
    metadata = (("agenthive-namespace", "red"),)
    request = pb.DelegateTaskRequest(spec=task_pb2.TaskSpec(type="work"))
    await edge.orchestrator.DelegateTask(request, metadata=metadata)
    assert await read(edge, start=EARLIEST) == []
    (event,) = await read(edge, start=EARLIEST, filter=event_pb2.EventFilter(all_namespaces=True))
    assert event.namespace == "red"


async def test_draining_ends_a_stream_with_a_last_cursor_and_ok(edge: Edge, failure: Failure) -> None:
    call = edge.orchestrator.StreamEvents(pb.StreamEventsRequest())
    await call.read()
    edge.subscriptions.drain()
    last = await call.read()
    assert last.cursor
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    failed = await failure(edge.orchestrator.StreamEvents(pb.StreamEventsRequest()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


async def test_a_stream_ends_by_itself_when_it_is_old_enough(edge: Edge) -> None:
    edge.services.stream._longest = lambda: 0.02
    call = edge.orchestrator.StreamEvents(pb.StreamEventsRequest())
    while await call.read() is not grpc.aio.EOF:
        pass
    assert await call.code() is grpc.StatusCode.OK


async def test_a_cursor_that_is_too_old_says_where_to_go_on(edge: Edge, failure: Failure) -> None:
    first = await edge.orchestrator.StreamEvents(pb.StreamEventsRequest(no_follow=True)).read()
    for number in range(3):
        await edge.hive.delegate(f"t{number}")
    await edge.log.compact(3)
    failed = await failure(edge.orchestrator.StreamEvents(pb.StreamEventsRequest(after_cursor=first.cursor)))
    assert (failed.code, failed.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_COMPACTED")
    assert len(await read(edge, after_cursor=failed.metadata["oldest_cursor"])) == 1


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (pb.StreamEventsRequest(after_cursor="nonsense"), "INVALID_CURSOR", "after_cursor"),
        (pb.StreamEventsRequest(start=pb.STREAM_START_AFTER), "INVALID_FIELD", "after_cursor"),
        (pb.StreamEventsRequest(start=EARLIEST, after_cursor="c1.x.0"), "INVALID_FIELD", "after_cursor"),
        (pb.StreamEventsRequest(start=pb.STREAM_START_AT_TIME), "INVALID_FIELD", "start_time"),
        (pb.StreamEventsRequest(start=NO_VALUE), "INVALID_FIELD", "start"),
        (pb.StreamEventsRequest(event_class=NO_VALUE), "INVALID_FIELD", "event_class"),
        (pb.StreamEventsRequest(filter=event_pb2.EventFilter(types=[NO_VALUE])), "INVALID_FIELD", "filter.types[0]"),
        (
            pb.StreamEventsRequest(filter=event_pb2.EventFilter(minimum_severity=NO_VALUE)),
            "INVALID_FIELD",
            "filter.minimum_severity",
        ),
        (
            pb.StreamEventsRequest(output_positions=[pb.OutputPosition(task_id="t")]),
            "INVALID_FIELD",
            "output_positions[0].attempt",
        ),
    ],
)
async def test_what_makes_no_sense_is_refused(
    edge: Edge, failure: Failure, request_: Any, reason: str, field: str
) -> None:
    failed = await failure(edge.orchestrator.StreamEvents(request_))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert failed.details["BadRequest"].field_violations[0].field == field
