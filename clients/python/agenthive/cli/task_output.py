"""`hive tasks output`: what a task writes, live, or what was kept of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agenthive.cli.arguments import TaskId
from agenthive.cli.call import run
from agenthive.cli.options import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client
    from agenthive.events import EventStream
    from agenthive.v1.event_pb2 import Event
    from agenthive.v1.task_pb2 import Task


def output(
    context: typer.Context,
    task_id: TaskId,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Go on until the task has ended; the default.")
    ] = True,
) -> None:
    """Write the output of a task.

    Live while it runs, else what was kept: the last 1 MiB of the last attempt.

    \b
    Examples:
      hive tasks output 4f0c
      hive tasks output 4f0c --no-follow > so-far.log
    """
    time_limit = settings_of(context).timeout

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.tasks import TERMINAL_STATES

        task = await client.get_task(task_id)
        if task.state in TERMINAL_STATES:
            await _kept(client, terminal, task)
        elif follow:
            await _live(client, terminal, task, time_limit)
        else:
            await _so_far(client, terminal, task)

    run(context, body)


async def _kept(client: Client, terminal: Terminal, task: Task) -> None:
    if not task.output_blob_id:
        terminal.note(f"task {task.task_id} has no output")
        return
    data = await client.download_blob(task.output_blob_id)
    if terminal.json:
        from agenthive.v1.event_pb2 import Event, TaskOutput

        kept = TaskOutput(attempt=task.attempt, data=data)
        terminal.line(Event(task_id=task.task_id, agent_id="", time=task.end_time, task_output=kept))
    else:
        terminal.raw(data)


async def _live(client: Client, terminal: Terminal, task: Task, time_limit: float | None) -> None:
    from agenthive.cli.follow import OutputWriter, follow_task

    writer = OutputWriter(terminal.raw, terminal.note)
    see = _lines(terminal) if terminal.json else writer.see
    ended = await follow_task(client, task.task_id, _stream(client, task, follow=True), see, time_limit)
    if not terminal.json:
        await writer.complete(client, ended)


async def _so_far(client: Client, terminal: Terminal, task: Task) -> None:
    from agenthive.cli.follow import OutputWriter

    writer = OutputWriter(terminal.raw, terminal.note)
    see = _lines(terminal) if terminal.json else writer.see
    async with _stream(client, task, follow=False) as events:
        async for event in events:
            see(event)


def _lines(terminal: Terminal) -> Callable[[Event], None]:
    def see(event: Event) -> None:
        if event.WhichOneof("fact") in ("task_output", "output_gap"):
            terminal.line(event)

    return see


def _stream(client: Client, task: Task, *, follow: bool) -> EventStream:
    from agenthive.v1 import orchestrator_service_pb2 as orchestrator

    positions = [orchestrator.OutputPosition(task_id=task.task_id, attempt=max(1, task.attempt), offset=0)]
    return client.events(
        task_ids=[task.task_id],
        event_class=orchestrator.EVENT_CLASS_ALL,  # the end of the task says when all of it is here
        output_positions=positions,
        follow=follow,
        give_up_after=None if follow else client.timeout,
    )
