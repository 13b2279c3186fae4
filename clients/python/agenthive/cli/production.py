"""`hive production` and `hive sla`: how the hive is as a whole, and whether it keeps what was promised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agenthive.cli.call import run
from agenthive.cli.failures import ExitCode
from agenthive.cli.service_calls import production as service
from agenthive.cli.service_calls import set_span
from agenthive.cli.text import now
from agenthive.cli.values import duration

if TYPE_CHECKING:
    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client


def production(
    context: typer.Context,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 1 when it is measured and not healthy.")
    ] = False,
) -> None:  # fmt: skip
    """Say how the hive is in production.

    Health, alerts, service levels, pools and backups, as the plugin production measured them.

    \b
    Examples:
      hive production
      hive production -o json | jq '.measurements[] | {metric, value}'
    """

    async def body(client: Client, terminal: Terminal) -> ExitCode | None:
        from agenthive.cli import production_views
        from agenthive.v1 import production_service_pb2 as pb

        found = await client._call(service(client).GetProductionStatus, pb.GetProductionStatusRequest())
        terminal.show(found, lambda: production_views.status(found, now()))
        well = (pb.SYSTEM_HEALTH_UNSPECIFIED, pb.SYSTEM_HEALTH_HEALTHY)
        return ExitCode.OUTCOME if strict and found.health not in well else None

    run(context, body)


def sla(
    context: typer.Context,
    targets: Annotated[list[str] | None, typer.Argument(metavar="TARGET", hidden=True)] = None,
    window: Annotated[
        float | None,
        typer.Option("--window", metavar="DURATION", parser=duration, help="Over this long instead of their own."),
    ] = None,
) -> None:
    """Say which service levels are met, and why not.

    How much budget is left and what used it up, as the plugin production measured it. Exit 1 when one is not met. One
    of which nothing was measured counts as met.

    \b
    Examples:
      hive sla
      hive sla --window 1h || hive alerts list
      hive sla -o json | jq -r '.reports[] | select(.met | not) | .target.target_id'
    """

    async def body(client: Client, terminal: Terminal) -> ExitCode | None:
        from agenthive.cli import production_views
        from agenthive.v1 import production_service_pb2 as pb

        request = pb.CheckSlaComplianceRequest(target_ids=targets or ())
        if window is not None:
            set_span(request.window, window)
        found = await client._call(service(client).CheckSlaCompliance, request)
        terminal.show(found, lambda: production_views.compliance(found, window))
        return None if found.compliant else ExitCode.OUTCOME

    run(context, body)
