"""`hive run`: delegate a task, watch it, get its result."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from agenthive.cli.arguments import Capabilities, Labels, RequestId, Role
from agenthive.cli.call import run
from agenthive.cli.options import settings_of
from agenthive.cli.task_specs import (
    Attempts,
    AttemptTimeout,
    DependsOn,
    Exclusive,
    NewTaskId,
    Parent,
    PinnedAgent,
    Priority,
    QueueTimeout,
    Review,
    RoutingStrategy,
    TaskInput,
    TaskType,
    Title,
    add_input,
    new_spec,
)

if TYPE_CHECKING:
    from agenthive.cli.failures import ExitCode
    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client
    from agenthive.v1.task_pb2 import Task


def run_task(
    context: typer.Context,
    task_type: TaskType,
    task_input: TaskInput = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Watch it and wait for the result; the default.")
    ] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Wait, but show only the result.")] = False,
    task_id: NewTaskId = "",
    title: Title = "",
    priority: Priority = 0,
    capability: Capabilities = None,
    role: Role = "",
    agent: PinnedAgent = "",
    strategy: RoutingStrategy = None,
    label: Labels = None,
    parent: Parent = "",
    depends_on: DependsOn = None,
    attempts: Attempts = 0,
    attempt_timeout: AttemptTimeout = None,
    queue_timeout: QueueTimeout = None,
    review: Review = False,
    exclusive: Exclusive = False,
    request_id: RequestId = None,
) -> None:
    """Delegate a task, watch it, print its result. Exit 0 if it succeeded, 1 if not, 6 after --timeout.

    The result goes to stdout, progress and output to stderr. Ctrl-C stops watching; the task goes on.

    \b
    Examples:
      hive run review @patch.diff -c python
      hive run summarise - --timeout 5m < notes.md > summary.md
      hive run build '{"target": "all"}' --no-follow
    """
    spec = new_spec(
        task_type, title=title, priority=priority, capability=capability, role=role, agent=agent, strategy=strategy,
        label=label, parent=parent, depends_on=depends_on, attempts=attempts, attempt_timeout=attempt_timeout,
        queue_timeout=queue_timeout, review=review, exclusive=exclusive,
    )  # fmt: skip
    time_limit = settings_of(context).timeout

    async def body(client: Client, terminal: Terminal) -> ExitCode | None:
        from agenthive.cli.follow import head_cursor
        from agenthive.cli.outcome import tell_outcome

        watched = follow and not quiet and not terminal.json
        await add_input(client, spec, task_input)
        cursor = await head_cursor(client) if watched else ""
        task = await client.delegate(task_type, spec=spec, task_id=task_id, request_id=request_id)
        if not follow:
            _tell_id(terminal, task)
            return None
        try:
            if watched:
                task = await _watch(client, terminal, task, cursor, time_limit)
            else:
                task = await client.wait_task(task.task_id, timeout=time_limit)
        except asyncio.CancelledError:
            terminal.note(f"hive: task {task.task_id} goes on: hive tasks wait, hive tasks cancel", interrupted=True)
            raise
        return await tell_outcome(client, terminal, task)

    run(context, body)


def _tell_id(terminal: Terminal, task: Task) -> None:
    if terminal.json:
        terminal.document(task)
    else:
        terminal.raw(f"{task.task_id}\n".encode())


async def _watch(client: Client, terminal: Terminal, task: Task, cursor: str, time_limit: float | None) -> Task:
    from agenthive.cli.follow import follow_task
    from agenthive.cli.narration import open_narration
    from agenthive.v1 import orchestrator_service_pb2 as orchestrator

    events = client.events(
        after=cursor,
        task_ids=[task.task_id],
        event_class=orchestrator.EVENT_CLASS_ALL,
        output_positions=[orchestrator.OutputPosition(task_id=task.task_id, attempt=1, offset=0)],
    )
    with open_narration(terminal, task) as narration:
        ended = await follow_task(client, task.task_id, events, narration.see, time_limit)
        await narration.output.complete(client, ended)
    return ended
