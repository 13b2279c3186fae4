"""`hive backups`: copies of the store, made and read while the hive works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agenthive.cli.arguments import Limit, RequestId
from agenthive.cli.call import run
from agenthive.cli.failures import ExitCode
from agenthive.cli.options import HiveCommand
from agenthive.cli.options import group as new_group
from agenthive.cli.service_calls import listed, long_timeout, production

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client
    from agenthive.v1.production_service_pb2 import Backup

group = new_group("Make backups and verify them (plugin production).")


@group.command("create", cls=HiveCommand)
def create(
    context: typer.Context,
    verify: Annotated[bool, typer.Option("--verify", help="Read it whole at once; exit 1 when it is damaged.")] = False,
    request_id: RequestId = None,
) -> None:
    """Copy the live store into a backup.

    Nothing is stopped; it waits until the backup is complete. It is on the machine of the server; `agenthived
    restore` makes a data directory of it.

    \b
    Example:
      hive backups create --verify
    """
    timeout = long_timeout(context)

    async def body(client: Client, terminal: Terminal) -> ExitCode | None:
        from agenthive.connection import new_request_id
        from agenthive.v1 import production_service_pb2 as pb

        request = pb.CreateBackupRequest(request_id=new_request_id(request_id), verify=verify)
        return _show(terminal, (await client._call(production(client).CreateBackup, request, timeout)).backup)

    run(context, body)


@group.command("list", cls=HiveCommand)
def list_backups(context: typer.Context, limit: Limit = 50) -> None:
    """List backups, newest first.

    \b
    Example:
      hive backups list -o json | jq -r '.[0].path'
    """

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.v1 import production_service_pb2 as pb

        request = pb.ListBackupsRequest()
        found = await listed(client, terminal, production(client).ListBackups, request, "backups", limit)
        terminal.show(found, lambda: _table(found))

    run(context, body)


@group.command("verify", cls=HiveCommand)
def verify_backup(
    context: typer.Context,
    backup_id: Annotated[str, typer.Argument(metavar="BACKUP", help="Id of the backup.", show_default=False)],
) -> None:
    """Read a backup whole; exit 1 when it is not as it was written.

    \b
    Example:
      hive backups verify 20260301T140307-4f0c
    """
    timeout = long_timeout(context)

    async def body(client: Client, terminal: Terminal) -> ExitCode | None:
        from agenthive.v1 import production_service_pb2 as pb

        request = pb.VerifyBackupRequest(backup_id=backup_id)
        return _show(terminal, (await client._call(production(client).VerifyBackup, request, timeout)).backup)

    run(context, body)


def _show(terminal: Terminal, backup: Backup) -> ExitCode | None:
    from agenthive.v1 import production_service_pb2 as pb

    terminal.show(backup, lambda: _record(backup))
    return ExitCode.OUTCOME if backup.state == pb.BACKUP_STATE_DAMAGED else None


def _state(backup: Backup) -> str:
    from agenthive.cli.values import short_name
    from agenthive.v1 import production_service_pb2 as pb

    return short_name(pb.BackupState.DESCRIPTOR, backup.state)


def _table(found: Iterable[Backup]) -> RenderableType:
    from agenthive.cli import tables, text

    table = tables.new_table("BACKUP", "STATE", "MADE", ">SEQUENCE", ">SIZE", "VERIFIED", "*PROBLEMS")
    for each in found:
        table.add(
            tables.plain(each.backup_id),
            tables.state(_state(each)),
            text.date_time(each.create_time),
            str(each.sequence),
            text.size(each.size_bytes),
            text.date_time(each.verify_time),
            tables.plain("; ".join(each.problems), "red"),
        )
    return tables.or_nothing(table, "no backups")


def _record(one: Backup) -> RenderableType:
    from agenthive.cli import tables, text

    return tables.record([
        ("backup", one.backup_id),
        ("state", tables.state(_state(one))),
        ("problems", "\n".join(one.problems)),
        ("made", text.date_time(one.create_time)),
        ("took", text.span(one.duration.seconds + one.duration.nanos / 1e9)),
        ("last event", str(one.sequence)),
        ("holds", f"{one.record_count} records, {one.event_count} events, {one.blob_count} blobs"),
        ("size", text.size(one.size_bytes)),
        ("path", one.path),
        ("digest", one.digest),
        ("verified", text.date_time(one.verify_time)),
    ])  # fmt: skip
