# ruff: noqa: ASYNC109 - `timeout` is sent as the deadline of the call, it is not a wait of ours
"""The calls that steer a task that is there already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agenthive.connection import Connection, new_request_id
from agenthive.payload import payload
from agenthive.v1 import orchestrator_service_pb2 as orchestrator

if TYPE_CHECKING:
    from agenthive.v1.orchestrator_service_pb2 import ExplainRoutingResponse, ReviewVerdict
    from agenthive.v1.task_pb2 import Task, TaskSpec


class TaskControlCalls(Connection):
    """Cancel, retry, pause, answer, review. Every call returns the task as it stands and raises a HiveError."""

    async def cancel_task(
        self, task_id: str, *, reason: str = "", request_id: str | None = None, timeout: float | None = None
    ) -> Task:
        """Ask a task to end; returns at once, CANCELED if nobody holds it, else CANCEL_REQUESTED."""
        request = orchestrator.CancelTaskRequest(request_id=new_request_id(request_id), task_id=task_id, reason=reason)
        return (await self._call(self._orchestrator.CancelTask, request, timeout)).task

    async def retry_task(self, task_id: str, *, request_id: str | None = None, timeout: float | None = None) -> Task:
        """Begin a new attempt of a task that is terminal or waits for one. Raises FailedPrecondition otherwise."""
        request = orchestrator.RetryTaskRequest(request_id=new_request_id(request_id), task_id=task_id)
        return (await self._call(self._orchestrator.RetryTask, request, timeout)).task

    async def pause_task(self, task_id: str, *, request_id: str | None = None, timeout: float | None = None) -> Task:
        """Pause a task. Raises FailedPrecondition when it is terminal or being canceled."""
        request = orchestrator.PauseTaskRequest(request_id=new_request_id(request_id), task_id=task_id)
        return (await self._call(self._orchestrator.PauseTask, request, timeout)).task

    async def resume_task(self, task_id: str, *, request_id: str | None = None, timeout: float | None = None) -> Task:
        """Let a paused task go on. Raises FailedPrecondition when it is not paused."""
        request = orchestrator.ResumeTaskRequest(request_id=new_request_id(request_id), task_id=task_id)
        return (await self._call(self._orchestrator.ResumeTask, request, timeout)).task

    async def respond_to_task(
        self, task_id: str, answer: object, *, request_id: str | None = None, timeout: float | None = None
    ) -> Task:
        """Answer the question of a task. Raises FailedPrecondition when it asks nothing."""
        request = orchestrator.RespondToTaskRequest(
            request_id=new_request_id(request_id), task_id=task_id, answer=payload(answer)
        )
        return (await self._call(self._orchestrator.RespondToTask, request, timeout)).task

    async def review_task(
        self,
        task_id: str,
        verdict: ReviewVerdict.ValueType,
        *,
        comment: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Task:
        """Accept a reported result, or send it back for another attempt. Raises FailedPrecondition without one."""
        request = orchestrator.ReviewTaskRequest(
            request_id=new_request_id(request_id), task_id=task_id, verdict=verdict, comment=comment
        )
        return (await self._call(self._orchestrator.ReviewTask, request, timeout)).task

    async def explain_routing(
        self, task_id: str = "", *, spec: TaskSpec | None = None, timeout: float | None = None
    ) -> ExplainRoutingResponse:
        """Say which agents could get a task that exists (`task_id`) or could be delegated (`spec`), and why not others.

        Raises ValueError unless exactly one of the two is given.
        """
        if bool(task_id) == (spec is not None):
            raise ValueError("give either a task_id or a spec")
        request = (
            orchestrator.ExplainRoutingRequest(spec=spec)
            if spec
            else orchestrator.ExplainRoutingRequest(task_id=task_id)
        )
        return await self._call(self._orchestrator.ExplainRouting, request, timeout)
