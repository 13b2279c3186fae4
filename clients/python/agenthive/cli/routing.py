"""`hive explain`: which agents could get a task, and why not the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agenthive.cli.arguments import Capabilities, Labels, Role
from agenthive.cli.call import run
from agenthive.cli.task_specs import PinnedAgent, Priority, RoutingStrategy, new_spec

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client
    from agenthive.v1.orchestrator_service_pb2 import ExplainRoutingResponse


def explain(
    context: typer.Context,
    task_id: Annotated[
        str, typer.Argument(metavar="[TASK]", help="A task that exists; else describe one.", show_default=False)
    ] = "",
    task_type: Annotated[str, typer.Option("--type", metavar="TYPE", help="Type of a task that could be.")] = "",
    priority: Priority = 0,
    capability: Capabilities = None,
    role: Role = "",
    agent: PinnedAgent = "",
    strategy: RoutingStrategy = None,
    label: Labels = None,
) -> None:
    """Say which agents could get a task, and why not the others.

    \b
    Examples:
      hive explain 4f0c
      hive explain --type review -c python -c security
    """
    if bool(task_id) == bool(task_type):
        raise typer.BadParameter("say either TASK or --type TYPE")
    spec = None
    if task_type:
        spec = new_spec(
            task_type, priority=priority, capability=capability, role=role, agent=agent, strategy=strategy, label=label
        )

    async def body(client: Client, terminal: Terminal) -> None:
        answer = await client.explain_routing(task_id, spec=spec)
        terminal.show(answer, lambda: _view(answer))

    run(context, body)


def _view(answer: ExplainRoutingResponse) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from agenthive.cli import tables
    from agenthive.cli.values import short_name
    from agenthive.v1 import task_pb2

    strategy = short_name(task_pb2.RoutingStrategy.DESCRIPTOR, answer.strategy).lower().replace("_", "-")
    eligible = sum(candidate.eligible for candidate in answer.candidates)
    head = f"{eligible} of {len(answer.candidates)} agents could get it now; strategy {strategy}"
    if answer.queue_position >= 0:
        head += f"; {answer.queue_position} tasks before it"
    table = tables.new_table("AGENT", "ELIGIBLE", ">SCORE", "*WHY NOT")
    for each in answer.candidates:
        table.add(
            tables.plain(each.agent_id),
            Text("yes", style="green") if each.eligible else Text("no", style="red"),
            f"{each.score:.3f}" if each.eligible else "",
            tables.plain(tables.words(each.exclusions), "yellow"),
        )
    return Group(Text(head), tables.or_nothing(table, "no agents"))
