"""Specifications and tasks there and back."""

from __future__ import annotations

from agenthive.v1 import task_pb2 as pb
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.tasks import (
    DEFAULT_RETRY,
    DEFAULT_TIMEOUTS,
    Attempt,
    ErrorClass,
    Lease,
    Progress,
    Question,
    Task,
    TaskError,
    TaskSpec,
    TaskState,
    Usage,
)
from agenthive_server.rpc.convert.attempts import error_from, question_from
from agenthive_server.rpc.convert.tasks import fill_spec, fill_task, spec_from
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

IDS = st.text("abcXYZ019._-", min_size=1, max_size=10)
TEXTS = st.text(st.characters(exclude_characters="\x00", codec="utf-8"), max_size=10)
SPANS = st.builds(Duration, seconds=st.integers(0, 10**6), nanos=st.sampled_from([0, 1_000, 500_000_000]))
SPECS = st.builds(
    pb.TaskSpec,
    type=st.just("work"),
    title=TEXTS,
    priority=st.integers(0, 5),
    fairness_key=TEXTS,
    fairness_weight=st.sampled_from([0.0, 0.01, 1.0, 100.0]),
    required_capabilities=st.lists(TEXTS.filter(bool), max_size=3),
    role=TEXTS,
    agent_id=st.just("") | IDS,
    labels=st.dictionaries(TEXTS.filter(bool), TEXTS, max_size=3),
    depends_on=st.lists(IDS, max_size=3),
    dependency_policy=st.sampled_from(pb.DependencyPolicy.values()),
    parent_task_id=st.just("") | IDS,
    children_policy=st.sampled_from(pb.ChildrenPolicy.values()),
    exclusive=st.booleans(),
    requires_review=st.booleans(),
    routing_strategy=st.sampled_from(pb.RoutingStrategy.values()),
    retry_policy=st.none()
    | st.builds(
        pb.RetryPolicy,
        initial_interval=SPANS,
        maximum_interval=SPANS,
        backoff_coefficient=st.sampled_from([0.0, 1.0, 2.5]),
        maximum_attempts=st.integers(0, 10),
        non_retryable_reasons=st.lists(IDS, max_size=2),
    ),
    timeouts=st.none()
    | st.builds(pb.TaskTimeouts, start_to_close_timeout=SPANS, progress_timeout=SPANS, input_timeout=SPANS),
)


@given(SPECS)
def test_a_specification_that_was_written_reads_the_same(message: pb.TaskSpec) -> None:
    spec = spec_from(message, "spec")
    written = pb.TaskSpec()
    fill_spec(written, spec)
    assert spec_from(pb.TaskSpec.FromString(written.SerializeToString()), "spec") == spec


def test_what_is_left_out_is_the_shared_default() -> None:
    spec = spec_from(pb.TaskSpec(type="t"), "spec")
    assert spec == TaskSpec(type="t")
    assert spec.retry is DEFAULT_RETRY
    assert spec.timeouts is DEFAULT_TIMEOUTS
    message = pb.TaskSpec()
    fill_spec(message, spec)
    assert not message.HasField("retry_policy")
    assert not message.HasField("timeouts")


def test_a_task_is_told_with_all_it_has() -> None:
    error = TaskError(error_class=ErrorClass.TOOL, reason="EXIT", message="m", next_retry_delay=2.0)
    attempt = Attempt(number=1, agent_id="a", epoch=3, assign_time=10.0, start_time=0.0, end_time=12.0, error=error)
    task = Task(
        namespace="n",
        id="t",
        revision=4,
        spec=TaskSpec(type="work"),
        state=TaskState.INPUT_REQUIRED,
        reason="why",
        attempt=2,
        counted_attempts=1,
        lease=Lease(agent_id="b", session_id="s", epoch=5, assign_time=20.0, start_time=21.0),
        attempts=(attempt,),
        waiting_on=("u",),
        error=error,
        result=Payload(data=b"r"),
        question=Question(question="?", schema='{"a":1}', default=Payload(data=b"d"), release_slot=True),
        create_time=1.0,
        update_time=2.0,
        output_blob_id="b",
    )
    progress = Progress(
        namespace="n",
        id="t",
        attempt=2,
        fraction=0.5,
        text="x",
        checkpoint=b"c",
        usage=Usage(input_tokens=1, output_tokens=2, cost_micros=3),
        context_usage=0.25,
        update_time=3.0,
    )
    message = pb.Task()
    fill_task(message, task, progress)
    assert (message.task_id, message.namespace, message.revision, message.state_reason) == ("t", "n", 4, "why")
    assert message.state == pb.TASK_STATE_INPUT_REQUIRED
    assert (message.lease.lease_epoch, message.lease.start_time.seconds) == (5, 21)
    (tried,) = message.attempts
    assert (tried.number, tried.lease_epoch, tried.error.reason, tried.HasField("start_time")) == (1, 3, "EXIT", False)
    assert error_from(message.error, "f") == error
    assert question_from(message.input_request, "f") == task.question
    assert (message.progress.fraction, message.progress.usage.cost_micros, message.progress.checkpoint) == (
        0.5,
        3,
        b"c",
    )
    brief = pb.Task()
    fill_task(brief, task, progress, brief=True)
    for field in ("result", "progress"):
        assert not brief.HasField(field)
    assert not brief.input_request.HasField("default_answer")


def test_texts_of_a_worker_are_cut_and_not_refused() -> None:
    told = error_from(pb.TaskError(reason="R" * 100, message="m" * 5_000), "f")
    assert (told.error_class, len(told.reason), len(told.message)) == (ErrorClass.TOOL, 63, 4_096)
