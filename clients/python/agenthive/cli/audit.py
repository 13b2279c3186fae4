"""`hive audit`: who did what, and whether the trail of it holds."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from agenthive.cli.arguments import Limit
from agenthive.cli.call import run
from agenthive.cli.completion import enum_completion
from agenthive.cli.failures import ExitCode
from agenthive.cli.options import HiveCommand, settings_of
from agenthive.cli.options import group as new_group
from agenthive.cli.private_file import PrivateFile
from agenthive.cli.service_calls import listed, long_timeout, security, set_moment
from agenthive.cli.values import enum_value, moment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client
    from agenthive.v1.security_service_pb2 import AuditFilter

group = new_group("Read, verify and take away the audit trail (plugin security).")

Principal: TypeAlias = Annotated[str, typer.Option("--principal", metavar="NAME", help="Only what this one did.")]
Methods: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--method", metavar="NAME", help="Only this RPC, for example SpawnAgent; repeat for more."),
]
Outcomes: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--outcome", metavar="ok|denied|failed", help="Only what ended so; repeat for more.",
        autocompletion=enum_completion("security_service", "AuditOutcome"),
    ),
]  # fmt: skip
Categories: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--category", metavar="NAME", help="Only authentication, data-modification, ...; repeat for more.",
        autocompletion=enum_completion("security_service", "AuditCategory"),
    ),
]  # fmt: skip
Peer: TypeAlias = Annotated[str, typer.Option("--peer", metavar="ADDRESS", help="Only what came from there.")]
Since: TypeAlias = Annotated[
    float | None,
    typer.Option("--since", metavar="WHEN", parser=moment, help="Only from then on: 10m, 30d, 2026-03-01."),
]
Until: TypeAlias = Annotated[
    float | None, typer.Option("--until", metavar="WHEN", parser=moment, help="Only before then.")
]


@group.command("list", cls=HiveCommand)
def list_records(
    context: typer.Context,
    principal: Principal = "",
    method: Methods = None,
    outcome: Outcomes = None,
    category: Categories = None,
    peer: Peer = "",
    since: Since = None,
    until: Until = None,
    limit: Limit = 50,
) -> None:
    """List audit records of every namespace, newest first.

    \b
    Examples:
      hive audit list --outcome denied --since 1h
      hive audit list --principal alice --method ShutdownAgent --since 2026-03-01 --limit 0
      hive audit list -o json | jq -r '.[] | select(.count != "1") | .peer'
    """
    wanted = _filter(principal, method, outcome, category, peer, since, until)

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import audit_views
        from agenthive.v1 import security_service_pb2 as pb

        request = pb.QueryAuditLogRequest(filter=wanted)
        found = await listed(client, terminal, security(client).QueryAuditLog, request, "records", limit)
        if terminal.json:
            terminal.document([audit_views.document(each) for each in found])
        else:
            terminal.table(audit_views.records(found, narrow=terminal.narrow))

    run(context, body)


@group.command("verify", cls=HiveCommand)
def verify(
    context: typer.Context,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="FILE", help="What an earlier `verify -o json` printed; its heads must still be there."
        ),
    ] = None,
) -> None:
    """Say whether the trail is as it was written.

    The whole of it is read. Exit 1 when it was changed, and where. Keep what it prints on another machine: who can
    rewrite the whole database can make a new chain, but not one with the old heads.

    \b
    Examples:
      hive audit verify
      hive audit verify -o json > heads.json
      hive audit verify --against heads.json
    """
    from agenthive.cli import audit_views
    from agenthive.v1 import security_service_pb2 as pb

    request = pb.VerifyAuditLogRequest(expected_heads=audit_views.heads_of(against) if against else ())
    timeout = long_timeout(context)

    async def body(client: Client, terminal: Terminal) -> ExitCode | None:
        found = await client._call(security(client).VerifyAuditLog, request, timeout)
        if terminal.json:
            terminal.document(audit_views.document(found))
        else:
            terminal.table(audit_views.verification(found))
        return None if found.intact else ExitCode.OUTCOME

    run(context, body)


@group.command("export", cls=HiveCommand)
def export(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Where to write JSON lines; - is stdout.", show_default=False)
    ],
    principal: Principal = "",
    method: Methods = None,
    outcome: Outcomes = None,
    category: Categories = None,
    peer: Peer = "",
    since: Since = None,
    until: Until = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write the trail as JSON lines, oldest first.

    With the hashes that prove it: all of it can be verified without the server; with a filter there are holes, which
    cannot. The file is readable by you only, and is there when it is whole.

    \b
    Examples:
      hive audit export trail.jsonl
      hive audit export - --since 1d | jq -r .principal | sort | uniq -c
    """
    wanted = _filter(principal, method, outcome, category, peer, since, until)
    kept = None if file == "-" else PrivateFile(Path(file), force=force)
    patience = settings_of(context).timeout

    async def body(client: Client, terminal: Terminal) -> None:
        count = 0
        with nullcontext() if kept is None else kept:
            async for lines in _exported(client, wanted, patience):
                count += lines.count(b"\n")
                terminal.raw(lines) if kept is None else kept.write(lines)
            if kept is not None:
                kept.keep()
        if kept is None:
            return
        if terminal.json:
            terminal.document({"file": file, "record_count": count})
        else:
            terminal.note(f"{count} records written to {file}")

    run(context, body)


async def _exported(client: Client, wanted: AuditFilter, deadline: float | None) -> AsyncIterator[bytes]:
    from grpc.aio import AioRpcError

    from agenthive.errors import error_from_rpc
    from agenthive.v1 import security_service_pb2 as pb

    request = pb.ExportAuditLogRequest(filter=wanted)
    try:
        async for answer in security(client).ExportAuditLog(request, timeout=deadline, metadata=client._metadata):
            yield answer.lines
    except AioRpcError as error:
        raise error_from_rpc(error) from error


def _filter(
    principal: str,
    methods: list[str] | None,
    outcomes: list[str] | None,
    categories: list[str] | None,
    peer: str,
    since: float | None,
    until: float | None,
) -> AuditFilter:
    from agenthive.v1 import security_service_pb2 as pb

    wanted = pb.AuditFilter(
        principal=principal,
        methods=methods or (),
        outcomes=[enum_value(pb.AuditOutcome.DESCRIPTOR, each) for each in outcomes or ()],
        categories=[enum_value(pb.AuditCategory.DESCRIPTOR, each) for each in categories or ()],
        peer=peer,
    )
    if since is not None:
        set_moment(wanted.start_time, since)
    if until is not None:
        set_moment(wanted.end_time, until)
    return wanted
