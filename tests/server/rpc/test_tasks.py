"""The methods about tasks, from bytes to the kernel and back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive.v1 import payload_pb2, task_pb2

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Edge

Failure = Callable[[Any], Any]
Until = Callable[[Callable[[], object]], Awaitable[None]]
Spec = task_pb2.TaskSpec
NO_VALUE: Any = 99
UNSPECIFIED: Any = 0


def fields(failed: Any) -> list[str]:
    return [violation.field for violation in failed.details["BadRequest"].field_violations]


def new(task_id: str = "", **spec: Any) -> pb.DelegateTaskRequest:
    return pb.DelegateTaskRequest(task_id=task_id, spec=Spec(**{"type": "work", **spec}))


async def test_a_task_is_accepted_and_can_be_read(edge: Edge) -> None:
    spec = Spec(type="work", title="T", priority=2, labels={"k": "v"}, input=payload_pb2.Payload(data=b"in"))
    answer = await edge.orchestrator.DelegateTask(pb.DelegateTaskRequest(task_id="t", spec=spec))
    assert (answer.task.task_id, answer.task.state, answer.task.revision) == ("t", task_pb2.TASK_STATE_QUEUED, 1)
    task = (await edge.orchestrator.GetTask(pb.GetTaskRequest(task_id="t"))).task
    assert task == answer.task
    assert (task.spec.title, task.spec.priority, task.spec.input.data) == ("T", 2, b"in")
    assert task.create_time.seconds == int(edge.hive.clock.now())


async def test_a_repeat_with_the_same_request_id_has_one_effect(edge: Edge, failure: Failure) -> None:
    request = new()
    request.request_id = "r"
    first = (await edge.orchestrator.DelegateTask(request)).task
    # How long it waits is not part of what is compared.
    request.wait_for = pb.WAIT_FOR_RESULT
    request.wait_timeout.FromMilliseconds(1)
    again = (await edge.orchestrator.DelegateTask(request)).task
    assert again.task_id == first.task_id
    request.spec.title = "another"
    failed = await failure(edge.orchestrator.DelegateTask(request))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


async def test_an_id_in_use_is_an_error_or_the_existing_one(edge: Edge, failure: Failure) -> None:
    await edge.orchestrator.DelegateTask(new("t"))
    failed = await failure(edge.orchestrator.DelegateTask(new("t")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.ALREADY_EXISTS, "TASK_EXISTS")
    request = new("t", title="other")
    request.id_conflict_policy = pb.ID_CONFLICT_POLICY_USE_EXISTING
    assert (await edge.orchestrator.DelegateTask(request)).task.spec.title == ""


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.DelegateTaskRequest(), "spec"),
        (pb.DelegateTaskRequest(spec=Spec()), "spec.type"),
        (new(priority=6), "spec.priority"),
        (new(priority=-1), "spec.priority"),
        (new(agent_id="a b"), "spec.agent_id"),
        (new(fairness_weight=float("nan")), "spec.fairness_weight"),
        (new(labels={"k": "v" * 256}), "spec.labels"),
        (new(required_capabilities=["x"] * 65), "spec.required_capabilities"),
        (new(depends_on=["ok", "not ok"]), "spec.depends_on[1]"),
        (new(retry_policy=task_pb2.RetryPolicy(backoff_coefficient=0.5)), "spec.retry_policy.backoff_coefficient"),
        (new(routing_strategy=99), "spec.routing_strategy"),
        (new(input=payload_pb2.Payload(blob_id="sha256:x")), "spec.input.blob_id"),
        (new("a/b"), "task_id"),
        (pb.DelegateTaskRequest(request_id="x" * 129, spec=Spec(type="t")), "request_id"),
        (pb.DelegateTaskRequest(wait_for=NO_VALUE, spec=Spec(type="t")), "wait_for"),
        (pb.DelegateTaskRequest(id_conflict_policy=NO_VALUE, spec=Spec(type="t")), "id_conflict_policy"),
    ],
)
async def test_a_field_at_fault_is_named(edge: Edge, failure: Failure, request_: Any, field: str) -> None:
    failed = await failure(edge.orchestrator.DelegateTask(request_))
    assert (failed.code, failed.reason, fields(failed)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        [field],
    )


async def test_waiting_ends_with_the_result(edge: Edge, until: Until) -> None:
    worker = await edge.hive.worker("a")
    request = new("t")
    request.wait_for = pb.WAIT_FOR_RESULT
    waiting = asyncio.ensure_future(edge.orchestrator.DelegateTask(request, timeout=30))
    await until(worker.assignments)
    await worker.finish(worker.assignments()[0], b"42")
    answer = await waiting
    assert (answer.task.state, answer.task.result.data) == (task_pb2.TASK_STATE_SUCCEEDED, b"42")


async def test_waiting_answers_with_the_task_as_it_stands_before_the_deadline(edge: Edge) -> None:
    await edge.orchestrator.DelegateTask(new("t"))
    answer = await edge.orchestrator.WaitTask(pb.WaitTaskRequest(task_id="t"), timeout=0.5)
    assert answer.task.state == task_pb2.TASK_STATE_QUEUED
    request = pb.WaitTaskRequest(task_id="t")
    request.wait_timeout.FromMilliseconds(5)
    assert (await edge.orchestrator.WaitTask(request)).task.state == task_pb2.TASK_STATE_QUEUED


async def test_draining_answers_those_who_wait(edge: Edge, until: Until) -> None:
    await edge.orchestrator.DelegateTask(new("t"))
    waiting = asyncio.ensure_future(edge.orchestrator.WaitTask(pb.WaitTaskRequest(task_id="t")))
    await until(lambda: edge.hive.kernel.queries._waiters)
    edge.hive.kernel.drain()
    assert (await waiting).task.state == task_pb2.TASK_STATE_QUEUED


async def test_several_tasks_are_accepted_all_or_none(edge: Edge, failure: Failure) -> None:
    tasks = [
        pb.NewTask(task_id="a", spec=Spec(type="work")),
        pb.NewTask(task_id="b", spec=Spec(type="work", depends_on=["a"])),
    ]
    answer = await edge.orchestrator.DelegateTasks(pb.DelegateTasksRequest(tasks=tasks))
    assert [(t.task_id, t.state, t.revision) for t in answer.tasks] == [
        ("a", task_pb2.TASK_STATE_QUEUED, 1),
        ("b", task_pb2.TASK_STATE_BLOCKED, 1),
    ]
    circle = [pb.NewTask(task_id=a, spec=Spec(type="work", depends_on=[b])) for a, b in ("cd", "dc")]
    failed = await failure(edge.orchestrator.DelegateTasks(pb.DelegateTasksRequest(tasks=circle)))
    assert failed.reason == "DEPENDENCY_CYCLE"
    many = [pb.NewTask(spec=Spec(type="work"))] * 257
    failed = await failure(edge.orchestrator.DelegateTasks(pb.DelegateTasksRequest(tasks=many)))
    assert fields(failed) == ["tasks"]
    failed = await failure(edge.orchestrator.DelegateTasks(pb.DelegateTasksRequest()))
    assert fields(failed) == ["tasks"]
    failed = await failure(edge.orchestrator.DelegateTasks(pb.DelegateTasksRequest(tasks=[tasks[0], pb.NewTask()])))
    assert fields(failed) == ["tasks[1].spec"]


async def test_tasks_are_listed_newest_first_page_by_page(edge: Edge, failure: Failure) -> None:
    for number in range(5):
        await edge.orchestrator.DelegateTask(new(f"t{number}", labels={"odd": str(number % 2)}))
        edge.hive.clock.move(1)
    request = pb.ListTasksRequest(page_size=2)
    seen = []
    while True:
        answer = await edge.orchestrator.ListTasks(request)
        seen.append([task.task_id for task in answer.tasks])
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token
    assert seen == [["t4", "t3"], ["t2", "t1"], ["t0"]]
    request.labels["odd"] = "1"
    failed = await failure(edge.orchestrator.ListTasks(request))
    assert (failed.reason, fields(failed)) == ("INVALID_PAGE_TOKEN", ["page_token"])
    answer = await edge.orchestrator.ListTasks(pb.ListTasksRequest(labels={"odd": "1"}))
    assert [task.task_id for task in answer.tasks] == ["t3", "t1"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListTasksRequest(page_size=1_001), "page_size"),
        (pb.ListTasksRequest(page_size=-1), "page_size"),
        (pb.ListTasksRequest(page_token="nonsense"), "page_token"),
        (pb.ListTasksRequest(page_token="ä"), "page_token"),
        (pb.ListTasksRequest(page_token="AAAA"), "page_token"),
        (pb.ListTasksRequest(states=[NO_VALUE]), "states[0]"),
        (pb.ListTasksRequest(states=[UNSPECIFIED]), "states[0]"),
    ],
)
async def test_a_list_is_asked_for_properly(edge: Edge, failure: Failure, request_: Any, field: str) -> None:
    assert fields(await failure(edge.orchestrator.ListTasks(request_))) == [field]


async def test_lists_leave_out_payloads(edge: Edge) -> None:
    await edge.orchestrator.DelegateTask(new("t", input=payload_pb2.Payload(data=b"x")))
    (task,) = (await edge.orchestrator.ListTasks(pb.ListTasksRequest())).tasks
    assert not task.spec.HasField("input")


async def test_the_verbs_on_a_task(edge: Edge, failure: Failure) -> None:
    call, states = edge.orchestrator, task_pb2
    await call.DelegateTask(new("t"))
    assert (await call.PauseTask(pb.PauseTaskRequest(task_id="t"))).task.state == states.TASK_STATE_PAUSED
    assert (await call.ResumeTask(pb.ResumeTaskRequest(task_id="t"))).task.state == states.TASK_STATE_QUEUED
    canceled = (await call.CancelTask(pb.CancelTaskRequest(task_id="t", reason="why"))).task
    assert (canceled.state, canceled.state_reason) == (states.TASK_STATE_CANCELED, "why")
    assert canceled.HasField("end_time")
    assert (await call.RetryTask(pb.RetryTaskRequest(task_id="t"))).task.state == states.TASK_STATE_QUEUED
    failed = await failure(call.ResumeTask(pb.ResumeTaskRequest(task_id="t")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_TRANSITION")
    assert failed.details["PreconditionFailure"].violations[0].subject == "t"
    failed = await failure(call.CancelTask(pb.CancelTaskRequest(task_id="none")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND")


async def test_review_and_answers_need_what_they_need(edge: Edge, failure: Failure) -> None:
    failed = await failure(edge.orchestrator.ReviewTask(pb.ReviewTaskRequest(task_id="t")))
    assert fields(failed) == ["verdict"]
    failed = await failure(edge.orchestrator.RespondToTask(pb.RespondToTaskRequest(task_id="t")))
    assert fields(failed) == ["answer"]
    worker = await edge.hive.worker("a")
    await edge.orchestrator.DelegateTask(new("t", requires_review=True))
    await worker.finish(worker.assignments()[0])
    request = pb.ReviewTaskRequest(task_id="t", verdict=pb.REVIEW_VERDICT_ACCEPT)
    assert (await edge.orchestrator.ReviewTask(request)).task.state == task_pb2.TASK_STATE_SUCCEEDED


async def test_routing_is_explained_for_a_task_and_for_an_idea(edge: Edge, failure: Failure) -> None:
    await edge.hive.worker("able", capabilities=("python",))
    await edge.hive.worker("plain")
    idea = Spec(type="work", required_capabilities=["python"])
    answer = await edge.orchestrator.ExplainRouting(pb.ExplainRoutingRequest(spec=idea))
    assert [(c.agent_id, c.eligible, list(c.exclusions)) for c in answer.candidates] == [
        ("able", True, []),
        ("plain", False, ["CAPABILITIES"]),
    ]
    assert (answer.strategy, answer.queue_position) == (task_pb2.ROUTING_STRATEGY_CAPABILITY_FIRST, -1)
    assert fields(await failure(edge.orchestrator.ExplainRouting(pb.ExplainRoutingRequest()))) == ["subject"]
    failed = await failure(edge.orchestrator.ExplainRouting(pb.ExplainRoutingRequest(task_id="none")))
    assert failed.reason == "TASK_NOT_FOUND"


async def test_namespaces_do_not_see_each_other(edge: Edge, failure: Failure) -> None:
    red = {"metadata": (("agenthive-namespace", "red"),)}
    await edge.orchestrator.DelegateTask(new("t"), **red)
    assert (await failure(edge.orchestrator.GetTask(pb.GetTaskRequest(task_id="t")))).reason == "TASK_NOT_FOUND"
    assert (await edge.orchestrator.GetTask(pb.GetTaskRequest(task_id="t"), **red)).task.namespace == "red"
    assert not (await edge.orchestrator.ListTasks(pb.ListTasksRequest())).tasks
