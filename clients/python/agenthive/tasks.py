# ruff: noqa: ASYNC109 - `timeout` is sent as the deadline of the call, it is not a wait of ours
"""The calls about tasks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypedDict

from agenthive.connection import Connection, new_request_id
from agenthive.errors import Cancelled, DeadlineExceeded, TaskNotSucceeded, Unavailable
from agenthive.payload import payload, value
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.v1 import task_pb2
from agenthive.waiting import Backoff

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from typing import Unpack

    from agenthive.payload import JsonValue
    from agenthive.v1.orchestrator_service_pb2 import AcceptedTask, DelegateTaskRequest, IdConflictPolicy, NewTask
    from agenthive.v1.task_pb2 import Task, TaskSpec, TaskState

TERMINAL_STATES: Final = frozenset({
    task_pb2.TASK_STATE_SUCCEEDED,
    task_pb2.TASK_STATE_FAILED,
    task_pb2.TASK_STATE_CANCELED,
    task_pb2.TASK_STATE_EXPIRED,
    task_pb2.TASK_STATE_QUARANTINED,
})  # fmt: skip
"""The states a task leaves only by a retry."""

ATTENTION_STATES: Final = frozenset({task_pb2.TASK_STATE_REPORTED, task_pb2.TASK_STATE_INPUT_REQUIRED})
"""The states in which a task waits for a person."""

_POLL: Final = 20.0  # seconds one call waits on the server; a longer wait is several calls
_MARGIN: Final = 5.0  # seconds between the end of that wait and the deadline of the call


class TaskFields(TypedDict, total=False):
    """Fields of TaskSpec that can be given as keyword arguments; the comments of task.proto say what they mean."""

    title: str
    priority: int
    fairness_key: str
    fairness_weight: float
    required_capabilities: Iterable[str]
    role: str
    agent_id: str
    affinity_key: str
    labels: Mapping[str, str]
    depends_on: Iterable[str]
    dependency_policy: task_pb2.DependencyPolicy.ValueType
    parent_task_id: str
    children_policy: task_pb2.ChildrenPolicy.ValueType
    retry_policy: task_pb2.RetryPolicy
    timeouts: task_pb2.TaskTimeouts
    exclusive: bool
    requires_review: bool
    routing_strategy: task_pb2.RoutingStrategy.ValueType


def task_spec(
    type: str,  # noqa: A002 - the contract's word
    input: object = None,  # noqa: A002 - the contract's word
    spec: TaskSpec | None = None,
    **fields: Unpack[TaskFields],
) -> TaskSpec:
    """Return `spec` with the type, the input and the fields given laid over it; `spec` itself is not changed.

    Raises TypeError or ValueError when the input cannot be made a payload.
    """
    made = task_pb2.TaskSpec()
    if spec is not None:
        made.CopyFrom(spec)
    made.MergeFrom(task_pb2.TaskSpec(type=type, **fields))
    if input is not None:
        made.input.CopyFrom(payload(input))
    return made


class TaskCalls(Connection):
    """Tasks: delegate, wait, look up, control. Every call raises a HiveError; `timeout` is in seconds."""

    async def delegate(
        self,
        type: str,  # noqa: A002 - the contract's word
        input: object = None,  # noqa: A002
        *,
        task_id: str = "",
        spec: TaskSpec | None = None,
        wait: bool = False,
        id_conflict_policy: IdConflictPolicy.ValueType = orchestrator.ID_CONFLICT_POLICY_UNSPECIFIED,
        request_id: str | None = None,
        timeout: float | None = None,
        **fields: Unpack[TaskFields],
    ) -> Task:
        """Hand a task over and return it: durable, not done. `input` is what `payload()` takes.

        With `wait` it returns when the task is terminal or, as it then stands, after `timeout` seconds (None: waits
        for ever, also while the server is away). Cancelling the call does not cancel the task.
        """
        request = orchestrator.DelegateTaskRequest(
            request_id=new_request_id(request_id),
            task_id=task_id,
            spec=task_spec(type, input, spec, **fields),
            id_conflict_policy=id_conflict_policy,
        )
        if not wait:
            return (await self._call(self._orchestrator.DelegateTask, request, timeout)).task
        return await self._delegate_and_wait(request, timeout)

    async def delegate_many(
        self,
        tasks: Iterable[NewTask | TaskSpec],
        *,
        id_conflict_policy: IdConflictPolicy.ValueType = orchestrator.ID_CONFLICT_POLICY_UNSPECIFIED,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Sequence[AcceptedTask]:
        """Hand several tasks over, all or none, at most 256; they may depend on each other. In the order given."""
        request = orchestrator.DelegateTasksRequest(
            request_id=new_request_id(request_id),
            tasks=[orchestrator.NewTask(spec=each) if isinstance(each, task_pb2.TaskSpec) else each for each in tasks],
            id_conflict_policy=id_conflict_policy,
        )
        return (await self._call(self._orchestrator.DelegateTasks, request, timeout)).tasks

    async def get_task(self, task_id: str, *, timeout: float | None = None) -> Task:
        """Return one task. Raises NotFound."""
        return (
            await self._call(self._orchestrator.GetTask, orchestrator.GetTaskRequest(task_id=task_id), timeout)
        ).task

    async def wait_task(self, task_id: str, *, timeout: float | None = None, until_attention: bool = False) -> Task:
        """Wait until a task is terminal (or needs a person, if asked so) and return it.

        After `timeout` seconds it returns the task as it stands: look at its state. None waits for ever, also while
        the server is away. Raises NotFound; DeadlineExceeded or Unavailable if the server could not be asked in time.
        """
        loop, backoff = asyncio.get_running_loop(), Backoff()
        end = None if timeout is None else loop.time() + timeout
        states = TERMINAL_STATES | ATTENTION_STATES if until_attention else TERMINAL_STATES
        while True:
            left = _POLL if end is None else max(0.0, end - loop.time())
            request = orchestrator.WaitTaskRequest(task_id=task_id, until_attention=until_attention)
            request.wait_timeout.FromNanoseconds(round(min(left, _POLL) * 1e9))
            asked = loop.time()
            try:
                task = (await self._call(self._orchestrator.WaitTask, request, min(left, _POLL) + _MARGIN)).task
            except (Unavailable, DeadlineExceeded, Cancelled):
                if end is not None and loop.time() >= end:
                    raise
                await asyncio.sleep(backoff.next())
                continue
            if task.state in states or (end is not None and loop.time() >= end):
                return task
            if loop.time() - asked >= 1:
                backoff.reset()
            else:  # a draining server answers at once; asking it again at once would only spin
                await asyncio.sleep(backoff.next())

    async def _delegate_and_wait(self, request: DelegateTaskRequest, timeout: float | None) -> Task:
        clock, backoff = asyncio.get_running_loop().time, Backoff()
        end = None if timeout is None else clock() + timeout
        request.wait_for = orchestrator.WAIT_FOR_RESULT
        task: Task | None = None
        while task is None:
            first = _POLL if end is None else min(_POLL, max(0.0, end - clock()))
            request.wait_timeout.FromNanoseconds(round(first * 1e9))
            try:
                task = (await self._call(self._orchestrator.DelegateTask, request, first + _MARGIN)).task
            except (Unavailable, DeadlineExceeded, Cancelled):  # repeating under the same request_id is safe
                if end is not None and clock() >= end:
                    raise
                await asyncio.sleep(backoff.next())
        left = None if end is None else end - clock()
        if task.state in TERMINAL_STATES or (left is not None and left <= 0):
            return task
        return await self.wait_task(task.task_id, timeout=left)

    async def result(self, task_id: str, *, timeout: float | None = None) -> JsonValue | bytes:
        """Wait for a task and return its result, decoded as `value()` does.

        Raises TaskNotSucceeded when it ended otherwise, DeadlineExceeded when it has not ended after `timeout` seconds.
        """
        task = await self.wait_task(task_id, timeout=timeout)
        if task.state not in TERMINAL_STATES:
            raise DeadlineExceeded(f"task {task_id} has not ended")
        if task.state != task_pb2.TASK_STATE_SUCCEEDED:
            raise TaskNotSucceeded(task)
        return value(task.result)

    async def list_tasks(
        self,
        *,
        states: Iterable[TaskState.ValueType] = (),
        parent_task_id: str = "",
        type: str = "",  # noqa: A002
        labels: Mapping[str, str] | None = None,
        agent_id: str = "",
        page_size: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[Task]:
        """Yield tasks, newest first, page by page, without inputs and results; `timeout` is for each page."""
        request = orchestrator.ListTasksRequest(
            page_size=page_size, states=states, parent_task_id=parent_task_id, type=type, labels=labels,
            agent_id=agent_id,
        )  # fmt: skip
        while True:
            page = await self._call(self._orchestrator.ListTasks, request, timeout)
            for task in page.tasks:
                yield task
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
