"""`hive tasks cancel|retry|pause|resume|respond|review`: steer a task that is there already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agenthive.cli.arguments import Reason, RequestId, TaskId
from agenthive.cli.call import run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client
    from agenthive.v1.task_pb2 import Task


def cancel(context: typer.Context, task_id: TaskId, reason: Reason = "", request_id: RequestId = None) -> None:
    """Ask a task to end. Answers at once: CANCELED, or CANCEL_REQUESTED while an agent still holds it.

    \b
    Example:
      hive tasks cancel 4f0c --reason "not needed any more"
    """
    _with_task(context, lambda client: client.cancel_task(task_id, reason=reason, request_id=request_id))


def retry(context: typer.Context, task_id: TaskId, request_id: RequestId = None) -> None:
    """Begin a new attempt of a task.

    It has ended, or waits for its next attempt.

    \b
    Example:
      hive tasks retry 4f0c
    """
    _with_task(context, lambda client: client.retry_task(task_id, request_id=request_id))


def pause(context: typer.Context, task_id: TaskId, request_id: RequestId = None) -> None:
    """Pause a task.

    One that waits is not assigned, the agent of a held one is told.

    \b
    Example:
      hive tasks pause 4f0c
    """
    _with_task(context, lambda client: client.pause_task(task_id, request_id=request_id))


def resume(context: typer.Context, task_id: TaskId, request_id: RequestId = None) -> None:
    """Let a paused task go on.

    \b
    Example:
      hive tasks resume 4f0c
    """
    _with_task(context, lambda client: client.resume_task(task_id, request_id=request_id))


def respond(
    context: typer.Context,
    task_id: TaskId,
    answer: Annotated[
        str, typer.Argument(metavar="ANSWER", help="Text or JSON, @FILE, or - for stdin.", show_default=False)
    ],
    request_id: RequestId = None,
) -> None:
    """Answer the question of a task.

    It waits in INPUT_REQUIRED; `hive tasks get` shows the question.

    \b
    Examples:
      hive tasks respond 4f0c "yes, go on"
      hive tasks respond 4f0c '{"approved": true}'
    """
    from agenthive.cli.values import content

    _with_task(
        context, lambda client: client.respond_to_task(task_id, content(answer), request_id=request_id)
    )  # fmt: skip


def review(
    context: typer.Context,
    task_id: TaskId,
    accept: Annotated[bool, typer.Option("--accept", help="Accept the result: the task has succeeded.")] = False,
    send_back: Annotated[bool, typer.Option("--send-back", help="Ask for another attempt.")] = False,
    comment: Annotated[str, typer.Option("--comment", metavar="TEXT", help="For the next attempt.")] = "",
    request_id: RequestId = None,
) -> None:
    """Accept the result of a task, or send it back.

    \b
    Examples:
      hive tasks review 4f0c --accept
      hive tasks review 4f0c --send-back --comment "the tests are missing"
    """
    if accept == send_back:
        raise typer.BadParameter("say either --accept or --send-back")
    from agenthive.v1 import orchestrator_service_pb2 as orchestrator

    verdict = orchestrator.REVIEW_VERDICT_ACCEPT if accept else orchestrator.REVIEW_VERDICT_SEND_BACK
    _with_task(
        context, lambda client: client.review_task(task_id, verdict, comment=comment, request_id=request_id)
    )  # fmt: skip


def _with_task(context: typer.Context, call: Callable[[Client], Awaitable[Task]]) -> None:
    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import task_views

        task = await call(client)
        terminal.show(task, lambda: task_views.task(task))

    run(context, body)
