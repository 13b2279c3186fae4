"""Tokens, role bindings and threats as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agenthive.cli import tables, text
from agenthive.cli.values import short_name
from agenthive.v1 import security_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType


def tokens(found: Iterable[pb.Token], *, narrow: bool) -> RenderableType:
    """Return a line for each token."""
    table = tables.new_table(
        "TOKEN", "KIND", "STATE", "PRINCIPAL", "ROLES", "*NAMESPACES", "EXPIRES", "?LAST USED", "*FOR", narrow=narrow
    )
    for each in found:
        table.add(
            tables.plain(each.token_id),
            short_name(pb.TokenKind.DESCRIPTOR, each.kind).lower(),
            tables.state(_state(each)),
            tables.plain(each.principal),
            roles(each.roles),
            tables.plain(_namespaces(each)),
            text.date_time(each.expire_time) or "never",
            text.date_time(each.last_use_time),
            tables.plain(_scope(each) or each.description),
        )
    return tables.or_nothing(table, "no tokens")


def token(one: pb.Token) -> RenderableType:
    """Return all about one token."""
    return tables.record([
        ("token", one.token_id),
        ("kind", short_name(pb.TokenKind.DESCRIPTOR, one.kind).lower()),
        ("state", tables.state(_state(one))),
        ("principal", one.principal),
        ("roles", roles(one.roles)),
        ("namespaces", _namespaces(one)),
        ("lets in", _scope(one)),
        ("labels", tables.labels(one.scope.labels.items())),
        ("description", one.description),
        ("issued by", one.issuer),
        ("earned by", one.join_token_id),
        ("created", text.date_time(one.create_time)),
        ("expires", text.date_time(one.expire_time) or "never"),
        ("revoked", text.date_time(one.revoke_time)),
        ("last used", text.date_time(one.last_use_time)),
    ])  # fmt: skip


def bindings(found: Iterable[pb.RoleBinding]) -> RenderableType:
    """Return a line for each role binding."""
    table = tables.new_table("PRINCIPAL", "NAMESPACE", "ROLES", "CHANGED")
    for each in found:
        namespace = "every one" if each.namespace == "*" else each.namespace
        table.add(
            tables.plain(each.principal), tables.plain(namespace), roles(each.roles), text.date_time(each.update_time)
        )
    return tables.or_nothing(table, "no role bindings")


def threats(found: Iterable[pb.Threat], at: float) -> RenderableType:
    """Return a line for each threat."""
    table = tables.new_table(
        "THREAT", "KIND", "SEVERITY", "STATE", "*WHO", ">SIGNALS", ">LAST SEEN", "BLOCKED UNTIL", "*EVIDENCE"
    )
    for each in found:
        table.add(
            tables.plain(each.threat_id),
            _kind(each),
            tables.severity(short_name(pb.ThreatSeverity.DESCRIPTOR, each.severity)),
            tables.state(short_name(pb.ThreatState.DESCRIPTOR, each.state)),
            tables.plain(each.principal or each.peer),
            str(each.signal_count),
            text.age(each.update_time, at),
            text.date_time(each.block_expire_time),
            tables.plain(tables.words(each.evidence), "dim"),
        )
    return tables.or_nothing(table, "no threats")


def threat(one: pb.Threat) -> RenderableType:
    """Return all about one threat."""
    return tables.record([
        ("threat", one.threat_id),
        ("kind", _kind(one)),
        ("severity", tables.severity(short_name(pb.ThreatSeverity.DESCRIPTOR, one.severity))),
        ("state", tables.state(short_name(pb.ThreatState.DESCRIPTOR, one.state))),
        ("principal", one.principal),
        ("address", one.peer),
        ("token", one.token_id),
        ("signals", str(one.signal_count)),
        ("evidence", tables.words(one.evidence)),
        ("first seen", text.date_time(one.create_time)),
        ("last seen", text.date_time(one.update_time)),
        ("blocked until", text.date_time(one.block_expire_time)),
        ("resolved", text.date_time(one.resolve_time)),
        ("resolved by", one.resolve_principal),
        ("comment", one.comment),
    ])  # fmt: skip


def roles(found: Iterable[pb.Role.ValueType]) -> str:
    """Return roles by their short names."""
    return tables.words(short_name(pb.Role.DESCRIPTOR, each).lower() for each in found)


def _state(token: pb.Token) -> str:
    return short_name(pb.TokenState.DESCRIPTOR, token.state)


def _kind(threat: pb.Threat) -> str:
    return short_name(pb.ThreatKind.DESCRIPTOR, threat.kind).lower().replace("_", " ")


def _namespaces(token: pb.Token) -> str:
    return tables.words(token.namespaces) or "every one"


def _scope(token: pb.Token) -> str:
    kind = token.scope.WhichOneof("subject")
    if kind == "agent_id":
        return f"agent {token.scope.agent_id}"
    if kind == "agent_id_prefix":
        return f"agents {token.scope.agent_id_prefix}…"
    return "a runner" if kind == "runner" else ""
