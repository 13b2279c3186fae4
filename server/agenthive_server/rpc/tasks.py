"""OrchestratorService: the methods about tasks."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from agenthive.v1 import orchestrator_service_pb2 as pb

from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.ports import Query
from agenthive_server.kernel.task_queries import TaskQueries
from agenthive_server.kernel.task_verbs import NewTask, TaskVerbs
from agenthive_server.kernel.tasks import Task
from agenthive_server.plugin.api import Call

from . import validate
from .calls import mutation, next_page, page_after, uses_existing, waiting_time
from .convert.tasks import STATES, STRATEGIES, fill_task, required_spec, spec_from
from .convert.values import names, required_payload

R = TypeVar("R")

_WAITS: Final = frozenset(pb.WaitFor.values())


class TaskMethods:
    """Parse, call one verb, convert back."""

    def __init__(self, verbs: TaskVerbs, queries: TaskQueries) -> None:
        self._verbs = verbs
        self._queries = queries

    async def DelegateTask(self, request: pb.DelegateTaskRequest, call: Call) -> pb.DelegateTaskResponse:
        """Accept a task; with `wait_for` RESULT answer when it is terminal, or as it stands."""
        new = NewTask(id=validate.optional_id(request.task_id, "task_id"), spec=required_spec(request, "spec"))
        if request.wait_for not in _WAITS:
            raise BadRequest(f"{request.wait_for} is no value of this enum", field="wait_for")
        wait = waiting_time(call, request)
        caller = mutation(call, request)
        (task,) = await self._verbs.delegate(caller, (new,), use_existing=uses_existing(request))
        if request.wait_for == pb.WAIT_FOR_RESULT and not task.terminal:
            task = await self._queries.wait(call.namespace, task.id, timeout=wait)
        response = pb.DelegateTaskResponse()
        fill_task(response.task, task)
        return response

    async def DelegateTasks(self, request: pb.DelegateTasksRequest, call: Call) -> pb.DelegateTasksResponse:
        """Accept several tasks, all or none."""
        if not request.tasks:
            raise BadRequest("required", field="tasks")
        validate.count(request.tasks, "tasks", validate.MAX_COUNT)
        new: list[NewTask] = []
        try:
            for task in request.tasks:
                task_id = validate.optional_id(task.task_id, "task_id")
                new.append(NewTask(required_spec(task, "spec"), task_id))
        except BadRequest as error:
            error.field = f"tasks[{len(new)}].{error.field}"
            raise
        tasks = await self._verbs.delegate(mutation(call, request), new, use_existing=uses_existing(request))
        response = pb.DelegateTasksResponse()
        add = response.tasks.add
        for accepted_as in tasks:
            accepted = add()
            accepted.task_id = accepted_as.id
            accepted.revision = accepted_as.revision
            accepted.state = STATES.numbers[accepted_as.state]  # type: ignore[assignment]  # the stubs want the enum's own type
        return response

    async def GetTask(self, request: pb.GetTaskRequest, call: Call) -> pb.GetTaskResponse:
        """Get one task."""
        task, progress = await self._queries.get(call.namespace, validate.required_id(request.task_id, "task_id"))
        response = pb.GetTaskResponse()
        fill_task(response.task, task, progress)
        return response

    async def WaitTask(self, request: pb.WaitTaskRequest, call: Call) -> pb.WaitTaskResponse:
        """Wait until a task is terminal, or wants attention if asked so."""
        task = await self._queries.wait(
            call.namespace,
            validate.required_id(request.task_id, "task_id"),
            timeout=waiting_time(call, request),
            until_attention=request.until_attention,
        )
        response = pb.WaitTaskResponse()
        fill_task(response.task, task)
        return response

    async def ListTasks(self, request: pb.ListTasksRequest, call: Call) -> pb.ListTasksResponse:
        """List tasks, newest first."""
        size = validate.page_size(request.page_size)
        validate.count(request.states, "states", validate.MAX_COUNT)
        query = Query(
            namespace=call.namespace,
            states=names(STATES, request.states, "states"),
            labels=validate.labels(request.labels, "labels"),
            parent_task_id=validate.optional_id(request.parent_task_id, "parent_task_id"),
            type=validate.text(request.type, "type"),
            agent_id=validate.optional_id(request.agent_id, "agent_id"),
            after=page_after(call, request),
            limit=size + 1,
        )
        tasks = await self._queries.list(query)
        response = pb.ListTasksResponse(
            next_page_token=next_page(call, request, tasks, size, lambda task: (task.create_time, task.id))
        )
        for task in tasks[:size]:
            fill_task(response.tasks.add(), task, brief=True)
        return response

    async def CancelTask(self, request: pb.CancelTaskRequest, call: Call) -> pb.CancelTaskResponse:
        """Ask a task to end."""
        reason = validate.text(request.reason, "reason", validate.REASON_TEXT)
        task = await self._verbs.cancel(mutation(call, request), _task_id(request), reason)
        return _answer(pb.CancelTaskResponse(), task)

    async def RetryTask(self, request: pb.RetryTaskRequest, call: Call) -> pb.RetryTaskResponse:
        """Begin a new attempt."""
        task = await self._verbs.retry(mutation(call, request), _task_id(request))
        return _answer(pb.RetryTaskResponse(), task)

    async def PauseTask(self, request: pb.PauseTaskRequest, call: Call) -> pb.PauseTaskResponse:
        """Pause a task."""
        task = await self._verbs.pause(mutation(call, request), _task_id(request))
        return _answer(pb.PauseTaskResponse(), task)

    async def ResumeTask(self, request: pb.ResumeTaskRequest, call: Call) -> pb.ResumeTaskResponse:
        """Let a paused task go on."""
        task = await self._verbs.resume(mutation(call, request), _task_id(request))
        return _answer(pb.ResumeTaskResponse(), task)

    async def RespondToTask(self, request: pb.RespondToTaskRequest, call: Call) -> pb.RespondToTaskResponse:
        """Answer the question of a task."""
        answer = required_payload(request, "answer", "answer")
        task = await self._verbs.respond(mutation(call, request), _task_id(request), answer)
        return _answer(pb.RespondToTaskResponse(), task)

    async def ReviewTask(self, request: pb.ReviewTaskRequest, call: Call) -> pb.ReviewTaskResponse:
        """Accept a result, or send it back."""
        if request.verdict not in (pb.REVIEW_VERDICT_ACCEPT, pb.REVIEW_VERDICT_SEND_BACK):
            raise BadRequest("ACCEPT or SEND_BACK", field="verdict")
        accept = request.verdict == pb.REVIEW_VERDICT_ACCEPT
        comment = validate.text(request.comment, "comment", validate.LONG_TEXT)
        task = await self._verbs.review(mutation(call, request), _task_id(request), accept, comment)
        return _answer(pb.ReviewTaskResponse(), task)

    async def ExplainRouting(self, request: pb.ExplainRoutingRequest, call: Call) -> pb.ExplainRoutingResponse:
        """Say which agents are eligible for a task, how they score, and why the others are not."""
        subject = request.WhichOneof("subject")
        if subject is None:
            raise BadRequest("required", field="subject")
        spec = spec_from(request.spec, "spec") if subject == "spec" else None
        task_id = "" if spec else validate.required_id(request.task_id, "task_id")
        found = await self._queries.explain(call.namespace, task_id=task_id, spec=spec)
        response = pb.ExplainRoutingResponse(queue_position=found.queue_position)
        response.strategy = STRATEGIES.numbers[found.strategy]  # type: ignore[assignment]  # as above
        for candidate in found.candidates:
            response.candidates.add(
                agent_id=candidate.agent_id,
                eligible=candidate.eligible,
                score=candidate.score,
                exclusions=candidate.exclusions,
            )
        return response


def _task_id(request: Any) -> str:
    return validate.required_id(request.task_id, "task_id")


def _answer(response: R, task: Task) -> R:
    fill_task(response.task, task)  # type: ignore[attr-defined]  # every response of these verbs has a field `task`
    return response
