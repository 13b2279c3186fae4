"""What a task should be, from the options of `hive run`, `hive tasks delegate` and `hive explain`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from agenthive.cli.values import content, duration, enum_value, pairs

if TYPE_CHECKING:
    from agenthive.client import Client
    from agenthive.v1.task_pb2 import TaskSpec

LARGEST_INLINE: Final = 1024 * 1024
"""Bytes; larger input travels as a blob."""


class Strategy(StrEnum):
    """How an agent is chosen."""

    CAPABILITY_FIRST = "capability-first"
    LOAD_BALANCED = "load-balanced"
    ROUND_ROBIN = "round-robin"
    WEIGHTED = "weighted"
    PRIORITY_AWARE = "priority-aware"


TaskType: TypeAlias = Annotated[
    str, typer.Argument(metavar="TYPE", help="The kind of work, as agents know it.", show_default=False)
]
TaskInput: TypeAlias = Annotated[
    str | None,
    typer.Argument(metavar="[INPUT]", help="Text or JSON, @FILE, or - for stdin.", show_default=False),
]
NewTaskId: TypeAlias = Annotated[
    str, typer.Option("--id", metavar="ID", help="Its id; else the server makes one.", show_default=False)
]
Title: TypeAlias = Annotated[str, typer.Option("--title", metavar="TEXT", help="For people.", show_default=False)]
Priority: TypeAlias = Annotated[
    int,
    typer.Option("--priority", "-p", metavar="1-5", min=0, max=5, help="1 is first. Default 3.", show_default=False),
]
PinnedAgent: TypeAlias = Annotated[
    str, typer.Option("--agent", metavar="AGENT", help="Only this agent.", show_default=False)
]
RoutingStrategy: TypeAlias = Annotated[
    Strategy | None,
    typer.Option(
        "--strategy", metavar="NAME", help=f"How an agent is chosen: {', '.join(Strategy)}.", show_default=False
    ),
]
Parent: TypeAlias = Annotated[
    str, typer.Option("--parent", metavar="TASK", help="The task it is part of.", show_default=False)
]
DependsOn: TypeAlias = Annotated[
    list[str] | None, typer.Option("--depends-on", metavar="TASK", help="Wait for this task; repeat for more.")
]
Attempts: TypeAlias = Annotated[
    int, typer.Option("--attempts", metavar="N", min=0, help="Attempts in all. Default 3.", show_default=False)
]
AttemptTimeout: TypeAlias = Annotated[
    float | None,
    typer.Option("--attempt-timeout", metavar="DURATION", parser=duration, help="Longest attempt. Default 1h."),
]
QueueTimeout: TypeAlias = Annotated[
    float | None,
    typer.Option("--queue-timeout", metavar="DURATION", parser=duration, help="Longest stay in the queue (24h)."),
]
Review: TypeAlias = Annotated[
    bool, typer.Option("--review", help="The result waits for `hive tasks review`.", show_default=False)
]
Exclusive: TypeAlias = Annotated[
    bool, typer.Option("--exclusive", help="Never two attempts at once, not even out of contact.", show_default=False)
]


def new_spec(
    task_type: str,
    *,
    title: str = "",
    priority: int = 0,
    capability: list[str] | None = None,
    role: str = "",
    agent: str = "",
    strategy: Strategy | None = None,
    label: list[str] | None = None,
    parent: str = "",
    depends_on: list[str] | None = None,
    attempts: int = 0,
    attempt_timeout: float | None = None,
    queue_timeout: float | None = None,
    review: bool = False,
    exclusive: bool = False,
) -> TaskSpec:
    """Return the specification these options mean, without input. Raises BadParameter."""
    from agenthive.v1 import task_pb2

    spec = task_pb2.TaskSpec(
        type=task_type, title=title, priority=priority, required_capabilities=capability or (), role=role,
        agent_id=agent, labels=pairs(label), parent_task_id=parent, depends_on=depends_on or (),
        requires_review=review, exclusive=exclusive,
    )  # fmt: skip
    if strategy is not None:
        spec.routing_strategy = enum_value(task_pb2.RoutingStrategy.DESCRIPTOR, strategy)
    if attempts:
        spec.retry_policy.maximum_attempts = attempts
    if attempt_timeout is not None:
        spec.timeouts.start_to_close_timeout.FromNanoseconds(round(attempt_timeout * 1e9))
    if queue_timeout is not None:
        spec.timeouts.schedule_to_start_timeout.FromNanoseconds(round(queue_timeout * 1e9))
    return spec


async def add_input(client: Client, spec: TaskSpec, text: str | None) -> None:
    """Put the input into the specification; a large one is uploaded first. Raises OSError for a missing file."""
    spec.input.CopyFrom(content(text))
    if len(spec.input.data) > LARGEST_INLINE:
        blob = await client.upload_blob(spec.input.data, content_type=spec.input.content_type)
        spec.input.blob_id = blob.blob_id
