"""`hive threats` and `hive compliance`: who attacks, and what the trail proves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agenthive.cli.arguments import Limit, RequestId
from agenthive.cli.call import run
from agenthive.cli.completion import enum_completion
from agenthive.cli.failures import ExitCode
from agenthive.cli.options import HiveCommand
from agenthive.cli.options import group as new_group
from agenthive.cli.service_calls import listed, long_timeout, security, set_moment
from agenthive.cli.text import now
from agenthive.cli.values import enum_value, moment

if TYPE_CHECKING:
    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client

group = new_group("See who attacks, and lift blocks (plugin security).")


@group.command("list", cls=HiveCommand)
def list_threats(
    context: typer.Context,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            metavar="open|resolved",
            help="Only in this state.",
            autocompletion=enum_completion("security_service", "ThreatState"),
        ),
    ] = None,
    severity: Annotated[
        str,
        typer.Option(
            "--min-severity",
            metavar="low|medium|high|critical",
            help="Only as severe or more.",
            autocompletion=enum_completion("security_service", "ThreatSeverity"),
        ),
    ] = "",
    limit: Limit = 50,
) -> None:
    """List threats that were detected, newest first.

    Also until when whoever is behind them is refused.

    \b
    Example:
      hive threats list --state open --min-severity high
    """
    from agenthive.v1 import security_service_pb2 as pb

    least = enum_value(pb.ThreatSeverity.DESCRIPTOR, severity) if severity else pb.THREAT_SEVERITY_UNSPECIFIED
    request = pb.ListThreatsRequest(
        states=[enum_value(pb.ThreatState.DESCRIPTOR, each) for each in state or ()],
        minimum_severity=least,
    )

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import security_views

        found = await listed(client, terminal, security(client).ListThreats, request, "threats", limit)
        terminal.show(found, lambda: security_views.threats(found, now()))

    run(context, body)


@group.command("resolve", cls=HiveCommand)
def resolve(
    context: typer.Context,
    threat_id: Annotated[str, typer.Argument(metavar="THREAT", help="Id of the threat.", show_default=False)],
    comment: Annotated[str, typer.Option("--comment", metavar="TEXT", help="What was found, for people.")] = "",
    request_id: RequestId = None,
) -> None:
    """Close a threat and lift the block it caused, at once.

    \b
    Example:
      hive threats resolve thr-4f0c --comment "the nightly job had an old token"
    """

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import security_views
        from agenthive.connection import new_request_id
        from agenthive.v1 import security_service_pb2 as pb

        request = pb.ResolveThreatRequest(
            request_id=new_request_id(request_id), threat_id=threat_id, comment=comment
        )  # fmt: skip
        threat = (await client._call(security(client).ResolveThreat, request)).threat
        terminal.show(threat, lambda: security_views.threat(threat))

    run(context, body)


def compliance(
    context: typer.Context,
    framework: Annotated[
        str,
        typer.Argument(
            metavar="soc2|iso27001|nist",
            help="For which standard.",
            show_default=False,
            autocompletion=enum_completion("security_service", "ComplianceFramework"),
        ),
    ],
    since: Annotated[
        float | None,
        typer.Option("--since", metavar="WHEN", parser=moment, help="Beginning of the period: 90d, 2026-01-01 (30d)."),
    ] = None,
    until: Annotated[
        float | None, typer.Option("--until", metavar="WHEN", parser=moment, help="Its end, exclusive; else now.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 when something is missing.")] = False,
) -> None:
    """Report what the audit trail proves.

    How much evidence the plugin security has for each control of a standard, and what is missing.

    \b
    Examples:
      hive compliance soc2
      hive compliance iso27001 --since 2026-01-01 --until 2026-04-01 -o json > report.json
    """
    from agenthive.v1 import security_service_pb2 as pb

    request = pb.GenerateComplianceReportRequest(
        framework=enum_value(pb.ComplianceFramework.DESCRIPTOR, framework)
    )  # fmt: skip
    set_moment(request.start_time, moment("30d") if since is None else since)
    if until is not None:
        set_moment(request.end_time, until)
    timeout = long_timeout(context)

    async def body(client: Client, terminal: Terminal) -> ExitCode | None:
        from agenthive.cli import audit_views

        report = (await client._call(security(client).GenerateComplianceReport, request, timeout)).report
        if terminal.json:
            terminal.document(audit_views.document(report))
        else:
            terminal.table(audit_views.report(report))
        lacking = strict and any(control.gaps for control in report.controls)
        return ExitCode.OUTCOME if lacking else None

    run(context, body)
