"""Events become bytes by the names of their fields."""

from __future__ import annotations

import pytest
from agenthive.v1 import event_pb2 as pb
from agenthive.v1 import message_pb2, task_pb2
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.tasks import ErrorClass, TaskError, TaskState
from agenthive_server.rpc.convert.events import event_bytes


def told(kind: EventType, **data: object) -> pb.Event:
    event = Event(type=kind, namespace="n", task_id="t", sequence=7, time=10.5, role="r", data=data)
    return pb.Event.FromString(event_bytes(event))


@pytest.mark.parametrize("kind", EventType)
def test_every_type_of_event_has_its_fact_even_without_data(kind: EventType) -> None:
    event = told(kind)
    assert event.WhichOneof("fact") == kind.name.lower()
    assert (event.sequence, event.time.ToMilliseconds(), event.namespace, event.role) == (7, 10_500, "n", "r")


def test_times_enums_errors_and_bytes() -> None:
    error = TaskError(error_class=ErrorClass.QUOTA, reason="R", message="m")
    retry = told(EventType.TASK_RETRY_SCHEDULED, attempt=2, error=error, retry_time=99.25).task_retry_scheduled
    assert (retry.attempt, retry.retry_time.ToMilliseconds()) == (2, 99_250)
    assert (retry.error.error_class, retry.error.reason) == (task_pb2.TASK_ERROR_CLASS_QUOTA, "R")
    assert told(EventType.TASK_RESUMED, state=TaskState.QUEUED).task_resumed.state == task_pb2.TASK_STATE_QUEUED
    assert told(EventType.TASK_RESUMED, state="RUNNING").task_resumed.state == task_pb2.TASK_STATE_RUNNING
    assert told(EventType.MESSAGE_SENT, urgency="NOW").message_sent.urgency == message_pb2.MESSAGE_URGENCY_NOW
    output = told(EventType.TASK_OUTPUT, attempt=1, offset=5, data=b"x", stream="STDERR").task_output
    assert (output.data, output.stream) == (b"x", pb.OUTPUT_STREAM_STDERR)
    assert told(EventType.TASK_OUTPUT, stream="").task_output.stream == pb.OUTPUT_STREAM_UNSPECIFIED


def test_severity_follows_from_the_type() -> None:
    assert told(EventType.TASK_FAILED).severity == pb.SEVERITY_ERROR
    assert told(EventType.TASK_REQUEUED).severity == pb.SEVERITY_WARNING


def test_a_field_the_contract_does_not_know_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    event = told(EventType.TASK_SUCCEEDED, attempt=3, surprise=1, other=None)
    assert event.task_succeeded.attempt == 3
    assert len(caplog.records) == 2
