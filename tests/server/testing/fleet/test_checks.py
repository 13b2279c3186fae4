"""The checks of a run find what they are there for."""

from __future__ import annotations

import pytest
from agenthive.v1 import event_pb2 as pb
from agenthive.v1 import task_pb2
from agenthive_server.testing.fleet.checks import Record, burned, check_acknowledged, check_followers, check_results
from agenthive_server.testing.followers import Follower
from agenthive_server.testing.task_operations import Call


def event(sequence: int, **fact: object) -> pb.Event:
    return pb.Event(sequence=sequence, namespace="default", task_id="t", **fact)  # type: ignore[arg-type]  # one fact


LOG = [event(n, task_succeeded=pb.TaskSucceeded(attempt=n)) for n in (1, 2, 3)]
TASK = task_pb2.Task(task_id="t")
DELEGATED = Call(caller="c", verb="delegate", task_id="t", start=0, asked=0, end=1, task=TASK)


def follower(*events: pb.Event) -> Follower:
    made = Follower("nowhere")
    made.events = list(events)
    return made


def record(*followers: Follower, log: list[pb.Event] = LOG, tasks: tuple[task_pb2.Task, ...] = (TASK,)) -> Record:
    return Record(len(log), log, {each.task_id: each for each in tasks}, [DELEGATED], [], dict(enumerate(followers)))  # type: ignore[arg-type]  # any names


def test_a_gap_a_repeat_and_another_order_are_found() -> None:
    check_followers(record(follower(*LOG), follower(*LOG)))
    for wrong in (LOG[:2], [LOG[0], *LOG], [LOG[0], LOG[2]], [LOG[1], LOG[0], LOG[2]]):
        with pytest.raises(AssertionError):
            check_followers(record(follower(*LOG), follower(*wrong)))


def test_a_second_accepted_result_and_a_result_of_another_attempt_are_found() -> None:
    check_results(record())
    with pytest.raises(AssertionError):
        check_results(record(log=[*LOG, LOG[-1]]))
    task = task_pb2.Task(task_id="t", attempts=[task_pb2.Attempt(lease_epoch=2)])
    task.result.content_type, task.result.data = "text/plain", b"t/2"
    check_results(record(tasks=(task,)))
    task.result.data = b"t/1"
    with pytest.raises(AssertionError):
        check_results(record(tasks=(task,)))


def test_a_task_that_is_missing_and_one_that_nobody_asked_for_are_found() -> None:
    check_acknowledged(record())
    with pytest.raises(AssertionError):
        check_acknowledged(record(tasks=()))
    with pytest.raises(AssertionError):
        check_acknowledged(record(tasks=(TASK, task_pb2.Task(task_id="other"))))


def test_attempts_that_a_restart_cost_are_named_and_no_others() -> None:
    told = task_pb2.TaskError(reason="AS_TOLD")
    log = [
        event(1, task_requeued=pb.TaskRequeued(reason="LEASE_LOST")),
        event(2, task_requeued=pb.TaskRequeued(reason="LEASE_LOST")),
        event(3, task_retry_scheduled=pb.TaskRetryScheduled(error=told)),
        event(4, task_requeued=pb.TaskRequeued(reason="RETRY_DUE")),
        event(5, task_failed=pb.TaskFailed(error=told)),
        event(6, task_quarantined=pb.TaskQuarantined()),
    ]
    assert [line.split()[0] for line in burned(log, [(1, 5)])] == ["2"]
    assert [line.split()[0] for line in burned(log, [(0, 1), (5, 6)])] == ["1", "6"]
