"""`hive alerts`: what somebody should look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from agenthive.cli.arguments import Limit, RequestId
from agenthive.cli.call import run
from agenthive.cli.completion import enum_completion
from agenthive.cli.options import HiveCommand
from agenthive.cli.options import group as new_group
from agenthive.cli.service_calls import listed, production
from agenthive.cli.text import now
from agenthive.cli.values import enum_value

if TYPE_CHECKING:
    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client

group = new_group("See what needs a look, and look after it (plugin production).")

AlertId: TypeAlias = Annotated[str, typer.Argument(metavar="ALERT", help="Id of the alert.", show_default=False)]
Note: TypeAlias = Annotated[str, typer.Option("--note", metavar="TEXT", help="For people; it stays with the alert.")]


@group.command("list", cls=HiveCommand)
def list_alerts(
    context: typer.Context,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            metavar="firing|acknowledged|resolved",
            help="Only this state; else all but resolved.",
            autocompletion=enum_completion("production_service", "AlertState"),
        ),
    ] = None,
    severity: Annotated[
        str,
        typer.Option(
            "--min-severity",
            metavar="info|low|medium|high|critical",
            help="Only as severe or more.",
            autocompletion=enum_completion("production_service", "AlertSeverity"),
        ),
    ] = "",
    rule: Annotated[str, typer.Option("--rule", metavar="RULE", help="Only of this rule or SLA target.")] = "",
    limit: Limit = 50,
) -> None:
    """List alerts that are not resolved, newest first.

    \b
    Examples:
      hive alerts list --min-severity high
      hive alerts list --state resolved --rule high_error_rate
    """
    from agenthive.v1 import production_service_pb2 as pb

    least = enum_value(pb.AlertSeverity.DESCRIPTOR, severity) if severity else pb.ALERT_SEVERITY_UNSPECIFIED
    request = pb.ListAlertsRequest(
        states=[enum_value(pb.AlertState.DESCRIPTOR, each) for each in state or ()],
        minimum_severity=least,
        rule_id=rule,
    )

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import alert_views

        found = await listed(client, terminal, production(client).ListAlerts, request, "alerts", limit)
        terminal.show(found, lambda: alert_views.alerts(found, now(), narrow=terminal.narrow))

    run(context, body)


@group.command("get", cls=HiveCommand)
def get(context: typer.Context, alert_id: AlertId) -> None:
    """Show all about one alert.

    \b
    Example:
      hive alerts get 4f0c
    """

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import alert_views
        from agenthive.v1 import production_service_pb2 as pb

        alert = (await client._call(production(client).GetAlert, pb.GetAlertRequest(alert_id=alert_id))).alert
        terminal.show(alert, lambda: alert_views.alert(alert))

    run(context, body)


@group.command("acknowledge", cls=HiveCommand)
def acknowledge(context: typer.Context, alert_id: AlertId, note: Note = "", request_id: RequestId = None) -> None:
    """Say that you look after an alert: it is not escalated any further.

    \b
    Example:
      hive alerts acknowledge 4f0c --note "on it"
    """

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import alert_views
        from agenthive.connection import new_request_id
        from agenthive.v1 import production_service_pb2 as pb

        request = pb.AcknowledgeAlertRequest(request_id=new_request_id(request_id), alert_id=alert_id, note=note)
        alert = (await client._call(production(client).AcknowledgeAlert, request)).alert
        terminal.show(alert, lambda: alert_views.alert(alert))

    run(context, body)


@group.command("resolve", cls=HiveCommand)
def resolve(context: typer.Context, alert_id: AlertId, note: Note = "", request_id: RequestId = None) -> None:
    """End an alert by hand; its rule fires again when its condition was over in between.

    \b
    Example:
      hive alerts resolve 4f0c --note "the disk was replaced"
    """

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import alert_views
        from agenthive.connection import new_request_id
        from agenthive.v1 import production_service_pb2 as pb

        request = pb.ResolveAlertRequest(request_id=new_request_id(request_id), alert_id=alert_id, note=note)
        alert = (await client._call(production(client).ResolveAlert, request)).alert
        terminal.show(alert, lambda: alert_views.alert(alert))

    run(context, body)


@group.command("rules", cls=HiveCommand)
def rules(context: typer.Context) -> None:
    """List the rules that raise alerts.

    \b
    Examples:
      hive alerts rules
      hive alerts rules -o json | jq '.[] | select(.disabled)'
    """

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import alert_views
        from agenthive.v1 import production_service_pb2 as pb

        request = pb.ListAlertRulesRequest()
        found = await listed(client, terminal, production(client).ListAlertRules, request, "rules")
        terminal.show(found, lambda: alert_views.rules(found))

    run(context, body)
