"""`hive tasks`: look at tasks, delegate them, wait for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agenthive.cli import task_control, task_output
from agenthive.cli.arguments import Capabilities, Labels, Limit, RequestId, Role, TaskId
from agenthive.cli.call import run, take
from agenthive.cli.completion import task_states
from agenthive.cli.options import HiveCommand, settings_of
from agenthive.cli.options import group as new_group
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
from agenthive.cli.text import now
from agenthive.cli.values import enum_names, enum_value, pairs

if TYPE_CHECKING:
    from agenthive.cli.failures import ExitCode
    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client

group = new_group("See, delegate, wait for and steer tasks.")


@group.command("list", cls=HiveCommand)
def list_tasks(
    context: typer.Context,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state", metavar="STATE", autocompletion=task_states, help="Only this state: queued, ...; repeat."
        ),
    ] = None,
    unfinished: Annotated[bool, typer.Option("--open", help="Only tasks that have not ended.")] = False,
    task_type: Annotated[str, typer.Option("--type", metavar="TYPE", help="Only this type.")] = "",
    parent: Annotated[str, typer.Option("--parent", metavar="TASK", help="Only children of this task.")] = "",
    agent: Annotated[str, typer.Option("--agent", metavar="AGENT", help="Only what this agent holds.")] = "",
    label: Labels = None,
    limit: Limit = 50,
) -> None:
    """List tasks, newest first.

    \b
    Examples:
      hive tasks list --open
      hive tasks list --state failed --state expired --type review
      hive tasks list --limit 0 -o json | jq -r '.[].task_id'
    """
    from agenthive.tasks import TERMINAL_STATES
    from agenthive.v1 import task_pb2

    if unfinished and state:
        raise typer.BadParameter("--open and --state exclude each other")
    states = [enum_value(task_pb2.TaskState.DESCRIPTOR, each) for each in state or ()]
    if unfinished:
        states = sorted(set(enum_names(task_pb2.TaskState.DESCRIPTOR).values()) - TERMINAL_STATES)
    labels = pairs(label)

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import task_views

        found, more = await take(
            client.list_tasks(
                states=states, type=task_type, parent_task_id=parent, agent_id=agent, labels=labels,
                page_size=min(limit, 1000),
            ),
            limit,
        )  # fmt: skip
        terminal.show(found, lambda: task_views.tasks(found, now(), narrow=terminal.narrow))
        if more:
            terminal.note(f"... and more; --limit 0 shows all, not only {limit}")

    run(context, body)


@group.command("get", cls=HiveCommand)
def get(context: typer.Context, task_id: TaskId) -> None:
    """Show all about one task, with input, result and attempts.

    \b
    Examples:
      hive tasks get 4f0c
      hive tasks get 4f0c -o json | jq .result.data
    """

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import task_views

        task = await client.get_task(task_id)
        terminal.show(task, lambda: task_views.task(task))

    run(context, body)


@group.command("delegate", cls=HiveCommand)
def delegate(
    context: typer.Context,
    task_type: TaskType,
    task_input: TaskInput = None,
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
    """Hand a task over and print its id.

    It is durable then, not done; `hive run` waits for the result.

    \b
    Examples:
      hive tasks delegate review @patch.diff -c python --priority 1
      hive tasks delegate build '{"target": "all"}' --depends-on 4f0c --label team=blue
    """
    spec = new_spec(
        task_type, title=title, priority=priority, capability=capability, role=role, agent=agent, strategy=strategy,
        label=label, parent=parent, depends_on=depends_on, attempts=attempts, attempt_timeout=attempt_timeout,
        queue_timeout=queue_timeout, review=review, exclusive=exclusive,
    )  # fmt: skip

    async def body(client: Client, terminal: Terminal) -> None:
        await add_input(client, spec, task_input)
        task = await client.delegate(task_type, spec=spec, task_id=task_id, request_id=request_id)
        if terminal.json:
            terminal.document(task)
        else:
            terminal.raw(f"{task.task_id}\n".encode())

    run(context, body)


@group.command("wait", cls=HiveCommand)
def wait(
    context: typer.Context,
    task_id: TaskId,
    attention: Annotated[
        bool, typer.Option("--attention", help="End also when it waits for a person: an answer or a review.")
    ] = False,
) -> None:
    """Wait until a task has ended and print its result.

    Exit 1 if it did not succeed, 6 after --timeout.

    \b
    Example:
      hive tasks wait 4f0c --timeout 10m
    """
    timeout = settings_of(context).timeout

    async def body(client: Client, terminal: Terminal) -> ExitCode | None:
        from agenthive.cli import task_views
        from agenthive.cli.outcome import tell_outcome
        from agenthive.tasks import ATTENTION_STATES

        task = await client.wait_task(task_id, timeout=timeout, until_attention=attention)
        if attention and task.state in ATTENTION_STATES:
            terminal.show(task, lambda: task_views.task(task))
            return None
        return await tell_outcome(client, terminal, task)

    run(context, body)


for _name, _command in (
    ("cancel", task_control.cancel),
    ("retry", task_control.retry),
    ("pause", task_control.pause),
    ("resume", task_control.resume),
    ("respond", task_control.respond),
    ("review", task_control.review),
    ("output", task_output.output),
):
    group.command(_name, cls=HiveCommand)(_command)
