"""`hive agents`: look at agents, stop and wake them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agenthive.cli import agent_specs
from agenthive.cli.arguments import AgentId, Labels, Limit, Reason, RequestId, Role
from agenthive.cli.call import run, take
from agenthive.cli.completion import agent_states
from agenthive.cli.options import HiveCommand
from agenthive.cli.options import group as new_group
from agenthive.cli.text import now
from agenthive.cli.values import duration, enum_value, pairs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client
    from agenthive.v1.agent_pb2 import Agent

group = new_group("See, spawn, change and stop agents.")


@group.command("list", cls=HiveCommand)
def list_agents(
    context: typer.Context,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state", metavar="STATE", autocompletion=agent_states, help="Only this state: idle, ...; repeat."
        ),
    ] = None,
    role: Role = "",
    label: Labels = None,
    limit: Limit = 0,
) -> None:
    """List agents, by id.

    \b
    Examples:
      hive agents list --role reviewer --state idle
      hive agents list -o json | jq -r '.[].agent_id'
    """
    from agenthive.v1 import agent_pb2

    states = [enum_value(agent_pb2.AgentState.DESCRIPTOR, each) for each in state or ()]
    labels = pairs(label)

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import agent_views

        found, more = await take(
            client.list_agents(states=states, role=role, labels=labels, page_size=min(limit, 1000)),
            limit,
        )
        terminal.show(found, lambda: agent_views.agents(found, now(), narrow=terminal.narrow))
        if more:
            terminal.note(f"... and more; --limit 0 shows all, not only {limit}")

    run(context, body)


@group.command("get", cls=HiveCommand)
def get(context: typer.Context, agent_id: AgentId) -> None:
    """Show all about one agent.

    \b
    Example:
      hive agents get reviewer-1
    """
    _with_agent(context, lambda client: client.get_agent(agent_id))


group.command("spawn", cls=HiveCommand)(agent_specs.spawn)
group.command("update", cls=HiveCommand)(agent_specs.update)


@group.command("shutdown", cls=HiveCommand)
def shutdown(
    context: typer.Context,
    agent_id: AgentId,
    reason: Reason = "",
    grace: Annotated[
        float | None,
        typer.Option(
            "--grace", metavar="DURATION", parser=duration, help="Time for held tasks to finish; 0: hand them back now."
        ),
    ] = None,
    request_id: RequestId = None,
) -> None:
    """Stop an agent for good.

    It finishes what it holds, within its grace. Answers at once.

    \b
    Example:
      hive agents shutdown reviewer-1 --grace 30s --reason "replaced by reviewer-2"
    """
    _with_agent(
        context, lambda client: client.shutdown_agent(agent_id, reason=reason, grace=grace, request_id=request_id)
    )


@group.command("restart", cls=HiveCommand)
def restart(context: typer.Context, agent_id: AgentId, request_id: RequestId = None) -> None:
    """Start an agent again; a running one is stopped first. Answers at once.

    \b
    Example:
      hive agents restart reviewer-1
    """
    _with_agent(context, lambda client: client.restart_agent(agent_id, request_id=request_id))


@group.command("sleep", cls=HiveCommand)
def sleep(context: typer.Context, agent_id: AgentId, reason: Reason = "", request_id: RequestId = None) -> None:
    """Put an agent to sleep.

    Held tasks finish or are handed back; its process ends where its driver can do that.

    \b
    Example:
      hive agents sleep reviewer-1
    """
    _with_agent(context, lambda client: client.sleep_agent(agent_id, reason=reason, request_id=request_id))


@group.command("wake", cls=HiveCommand)
def wake(context: typer.Context, agent_id: AgentId, request_id: RequestId = None) -> None:
    """Wake a sleeping agent.

    \b
    Example:
      hive agents wake reviewer-1
    """
    _with_agent(context, lambda client: client.wake_agent(agent_id, request_id=request_id))


def _with_agent(context: typer.Context, call: Callable[[Client], Awaitable[Agent]]) -> None:
    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import agent_views

        agent = await call(client)
        terminal.show(agent, lambda: agent_views.agent(agent))

    run(context, body)
