"""The audit trail and reports on it, as tables and for scripts; hashes are hexadecimal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Group
from rich.text import Text

from agenthive.cli import tables, text
from agenthive.cli.json_form import as_json
from agenthive.cli.values import short_name
from agenthive.v1 import security_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from google.protobuf.message import Message
    from rich.console import RenderableType


def document(message: Message) -> dict[str, Any]:
    """Return a message for scripts, its hashes in hexadecimal as in an export."""
    made: dict[str, Any] = as_json(message)
    _hex(message, made)
    return made


def _hex(message: Message, made: dict[str, Any]) -> None:
    for field, value in message.ListFields():
        if field.type == field.TYPE_BYTES:
            made.pop(f"{field.name}_base64", None)
            made[field.name] = value.hex()
        elif field.message_type is not None and field.message_type.full_name.startswith("agenthive."):
            inner, made_inner = (value, made[field.name]) if field.is_repeated else ([value], [made[field.name]])
            for each, made_each in zip(inner, made_inner, strict=True):
                _hex(each, made_each)


def heads_of(file: Path) -> list[pb.AuditHead]:
    """Return the heads in what an earlier verification printed. Raises BadParameter."""
    try:
        heads = [each["head"] for each in json.loads(file.read_bytes())["chains"]]
        return [
            pb.AuditHead(chain=head["chain"], sequence=int(head["sequence"]), hash=bytes.fromhex(head["hash"]))
            for head in heads
        ]
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise typer.BadParameter(f"{file} is not what `hive audit verify -o json` prints") from None


def records(found: Iterable[pb.AuditRecord], *, narrow: bool) -> RenderableType:
    """Return a line for each record."""
    table = tables.new_table(
        "TIME", "OUTCOME", "PRINCIPAL", "METHOD", "?NAMESPACE", "PEER", ">COUNT", "*WHY", "*ABOUT", narrow=narrow
    )
    for each in found:
        table.add(
            text.date_time(each.time),
            tables.state(short_name(pb.AuditOutcome.DESCRIPTOR, each.outcome)),
            tables.plain(each.principal or "nobody known", "" if each.principal else "dim"),
            tables.plain(each.method.rpartition("/")[2]),
            tables.plain(each.namespace),
            tables.plain(each.peer),
            str(each.count),
            tables.plain(each.reason or each.text),
            tables.plain(tables.labels((about.field, about.id) for about in each.resources), "dim"),
        )
    return tables.or_nothing(table, "no records")


def verification(found: pb.VerifyAuditLogResponse) -> RenderableType:
    """Return how the chains were found, and what is wrong with them."""
    said = Text("the trail is as it was written", style="green")
    if not found.intact:
        said = Text("the trail is damaged", style="bold red")
    parts: list[RenderableType] = [said, Text(), chains(found.chains)]
    if found.faults:
        table = tables.new_table("DAMAGED CHAIN", ">AT", "WHAT", "*WHY")
        for fault in found.faults:
            kind = short_name(pb.AuditFaultKind.DESCRIPTOR, fault.kind).lower().replace("_", " ")
            table.add(tables.plain(fault.chain), str(fault.sequence), kind, tables.plain(fault.text))
        parts += [Text(), table]
    return Group(*parts)


def chains(found: Iterable[pb.AuditChain]) -> RenderableType:
    """Return a line for each chain, with the head to keep elsewhere."""
    table = tables.new_table("CHAIN", "STATE", ">RECORDS", ">FROM", ">TO", "HEAD")
    for each in found:
        table.add(
            tables.plain(each.chain),
            tables.state("INTACT" if each.intact else "DAMAGED"),
            str(each.record_count),
            str(each.first_sequence),
            str(each.head.sequence),
            each.head.hash.hex(),
        )
    return tables.or_nothing(table, "no chains")


def report(made: pb.ComplianceReport) -> RenderableType:
    """Return a report: how much evidence there is for each control, and what is missing."""
    framework = short_name(pb.ComplianceFramework.DESCRIPTOR, made.framework)
    period = f"{text.date_time(made.start_time)} to {text.date_time(made.end_time)}"
    head = Text(f"{framework}, {period}: {made.record_count} records")
    table = tables.new_table("CONTROL", ">OK", ">DENIED", ">FAILED", ">GAPS", "*ASKS FOR")
    for control in made.controls:
        table.add(
            tables.plain(control.control_id),
            str(sum(each.ok_count for each in control.counts)),
            str(sum(each.denied_count for each in control.counts)),
            str(sum(each.failed_count for each in control.counts)),
            tables.plain(str(len(control.gaps)), "yellow" if control.gaps else ""),
            tables.plain(control.title),
        )
    parts: list[RenderableType] = [head, Text(), table]
    gaps = tables.new_table("MISSING FOR", "WHAT", "*WHY")
    for control in made.controls:
        for gap in control.gaps:
            kind = short_name(pb.ComplianceGapKind.DESCRIPTOR, gap.kind).lower().replace("_", " ")
            gaps.add(tables.plain(control.control_id), kind, tables.plain(gap.text))
    if gaps.row_count:
        parts += [Text(), gaps]
    return Group(*parts)
