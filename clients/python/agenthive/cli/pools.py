"""`hive pools`: like agents whose number follows the load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from agenthive.cli.agent_specs import Slots
from agenthive.cli.arguments import Capabilities, Labels, RequestId, Role
from agenthive.cli.call import run
from agenthive.cli.options import HiveCommand
from agenthive.cli.options import group as new_group
from agenthive.cli.pool_changes import PoolChanges
from agenthive.cli.service_calls import listed, production
from agenthive.cli.text import now
from agenthive.cli.values import duration, pairs

if TYPE_CHECKING:
    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client

group = new_group("Let the number of agents follow the load (plugin production).")

PoolId: TypeAlias = Annotated[str, typer.Argument(metavar="POOL", help="Name of the pool.", show_default=False)]


@group.command("list", cls=HiveCommand)
def list_pools(context: typer.Context) -> None:
    """List the pools of the namespace, with their last change of size.

    \b
    Example:
      hive pools list
    """

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import pool_views
        from agenthive.v1 import production_service_pb2 as pb

        request = pb.ListScalingPoliciesRequest()
        found = await listed(client, terminal, production(client).ListScalingPolicies, request, "policies")
        terminal.show(found, lambda: pool_views.pools(found, now()))

    run(context, body)


@group.command("get", cls=HiveCommand)
def get(context: typer.Context, pool_id: PoolId) -> None:
    """Show all about one pool.

    \b
    Example:
      hive pools get builders
    """

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import pool_views
        from agenthive.v1 import production_service_pb2 as pb

        request = pb.GetScalingPolicyRequest(pool_id=pool_id)
        policy = (await client._call(production(client).GetScalingPolicy, request)).policy
        terminal.show(policy, lambda: pool_views.pool(policy))

    run(context, body)


@group.command("set", cls=HiveCommand)
def set_pool(
    context: typer.Context,
    pool_id: PoolId,
    command: Annotated[list[str] | None, typer.Argument(metavar="-- CMD ARG...", hidden=True)] = None,
    least: Annotated[int | None, typer.Option("--min", metavar="N", min=0, help="Not fewer agents; 0 is none.")] = None,
    most: Annotated[int | None, typer.Option("--max", metavar="N", min=1, help="Not more agents (20).")] = None,
    role: Role = "",
    capability: Capabilities = None,
    slots: Slots = None,
    label: Labels = None,
    grow_above: Annotated[
        float | None, typer.Option("--grow-above", metavar="LOAD", help="Grow when the load is above this (0.7).")
    ] = None,
    shrink_below: Annotated[
        float | None, typer.Option("--shrink-below", metavar="LOAD", help="Shrink when it is below this (0.2).")
    ] = None,
    cooldown: Annotated[
        float | None,
        typer.Option("--cooldown", metavar="DURATION", parser=duration, help="Between two changes of size (5m)."),
    ] = None,
    quiet: Annotated[
        float | None,
        typer.Option("--quiet", metavar="DURATION", parser=duration, help="Low so long before it shrinks (5m)."),
    ] = None,
    drain: Annotated[
        float | None,
        typer.Option("--drain-grace", metavar="DURATION", parser=duration, help="Time to finish what is held (5m)."),
    ] = None,
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Whether it follows the load by itself.")
    ] = None,
    request_id: RequestId = None,
) -> None:
    """Make a pool, or change it; what is not named stays. Agents that run already stay as they are.

    A new pool wants a command after --, which each of its agents runs on a runner's machine, one process a task.

    \b
    Examples:
      hive pools set builders --min 1 --max 8 --role builder -c build -- python build.py
      hive pools set builders --max 12 --cooldown 1m
      hive pools set builders --disable
    """
    changes = PoolChanges(
        command=command or [], role=role, capabilities=capability or [], slots=slots, labels=pairs(label),
        least=least, most=most, grow_above=grow_above, shrink_below=shrink_below,
        cooldown=cooldown, quiet=quiet, drain=drain, enabled=enabled,
    )  # fmt: skip

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import pool_views
        from agenthive.connection import new_request_id
        from agenthive.errors import NotFound
        from agenthive.v1 import production_service_pb2 as pb

        calls = production(client)
        try:
            policy = (await client._call(calls.GetScalingPolicy, pb.GetScalingPolicyRequest(pool_id=pool_id))).policy
        except NotFound:
            changes.refuse_without_command(pool_id)
            policy = pb.ScalingPolicy(pool_id=pool_id)
        changes.apply(policy)
        # Whoever changed it in between is not overruled.
        request = pb.SetScalingPolicyRequest(
            request_id=new_request_id(request_id), policy=policy, revision=policy.revision
        )
        made = (await client._call(calls.SetScalingPolicy, request)).policy
        terminal.show(made, lambda: pool_views.pool(made))

    run(context, body)


@group.command("scale", cls=HiveCommand)
def scale(
    context: typer.Context,
    pool_id: PoolId,
    force: Annotated[bool, typer.Option("--force", help="Do not wait for the cooldown or a quiet time.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide, and change nothing.")] = False,
    request_id: RequestId = None,
) -> None:
    """Decide now how many agents a pool should have, and act.

    \b
    Examples:
      hive pools scale builders --dry-run
      hive pools scale builders --force
    """

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import pool_views
        from agenthive.connection import new_request_id
        from agenthive.v1 import production_service_pb2 as pb

        request = pb.TriggerAutoScalingRequest(
            request_id=new_request_id(request_id), pool_id=pool_id, force=force, dry_run=dry_run
        )
        decision = (await client._call(production(client).TriggerAutoScaling, request)).decision
        terminal.show(decision, lambda: pool_views.decision(decision))

    run(context, body)


@group.command("delete", cls=HiveCommand)
def delete(context: typer.Context, pool_id: PoolId, request_id: RequestId = None) -> None:
    """Remove a pool; its agents stay.

    \b
    Example:
      hive pools delete builders
    """

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.connection import new_request_id
        from agenthive.v1 import production_service_pb2 as pb

        request = pb.DeleteScalingPolicyRequest(request_id=new_request_id(request_id), pool_id=pool_id)
        await client._call(production(client).DeleteScalingPolicy, request)
        if terminal.json:
            terminal.document({"pool_id": pool_id})
        else:
            terminal.note(f"pool {pool_id} is gone; its agents stay")

    run(context, body)
