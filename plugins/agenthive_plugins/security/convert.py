"""Records of this plugin as messages of the contract, and the other way round."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, TypeVar

from agenthive.v1 import security_service_pb2 as pb
from agenthive_server.plugin.api import BadRequest
from google.protobuf.timestamp_pb2 import Timestamp

from . import checks
from .bindings import Binding
from .chains import ChainRow
from .compliance import ControlReport
from .incidents import Threat
from .issuing import Shown
from .records import Category, Ending, Fault, Head, Record
from .tokens import Scope
from .trail import Filter, Found

E = TypeVar("E", bound=Enum)

MAX_LABELS: Final = 64
MAX_LABEL: Final = 255
MAX_METHODS: Final = 64
MAX_FAULTS: Final = 100


def names_of(enum: Any, prefix: str) -> dict[int, str]:
    """Return the names of an enum of the protos by number, without prefix and without the unspecified."""
    return {number: name.removeprefix(prefix) for name, number in enum.items() if number}


OUTCOMES: Final = names_of(pb.AuditOutcome, "AUDIT_OUTCOME_")
CATEGORIES: Final = names_of(pb.AuditCategory, "AUDIT_CATEGORY_")


def set_time(message: Timestamp, seconds: float) -> None:
    """Set a time from seconds since 1970; zero leaves it unset."""
    if seconds:
        message.FromMicroseconds(round(seconds * 1e6))


# Tokens -------------------------------------------------------------------------------------------------------------


def fill_token(message: pb.Token, shown: Shown, now: float) -> None:
    """Show a token without its secret."""
    token = shown.token
    message.token_id = token.id
    message.kind = pb.TokenKind.Value(f"TOKEN_KIND_{token.kind}")
    message.state = pb.TokenState.Value(f"TOKEN_STATE_{token.state_at(now)}")
    message.principal = token.principal
    message.roles.extend(int(role) for role in token.roles)  # type: ignore[misc]  # enums are numbers on the wire
    message.namespaces.extend(token.namespaces)
    message.description = token.description
    if token.scope is not None:
        _fill_scope(message.scope, token.scope)
    set_time(message.create_time, token.create_time)
    set_time(message.expire_time, token.expire_time)
    set_time(message.revoke_time, token.revoke_time)
    set_time(message.last_use_time, max(shown.use_time, token.use_time))
    message.issuer = token.issuer
    message.join_token_id = token.join_token_id


def _fill_scope(message: pb.JoinScope, scope: Scope) -> None:
    if scope.runner:
        message.runner = True
    elif scope.agent_id:
        message.agent_id = scope.agent_id
    else:
        message.agent_id_prefix = scope.agent_id_prefix
    message.labels.update(scope.labels)


def scope_from(message: pb.JoinScope) -> Scope:
    """Return whom a join token is to let in."""
    kind = message.WhichOneof("subject")
    labels = dict(message.labels)
    if len(labels) > MAX_LABELS or any(not key or max(len(key), len(labels[key])) > MAX_LABEL for key in labels):
        raise BadRequest(f"at most {MAX_LABELS} labels of at most {MAX_LABEL} characters", field="scope.labels")
    if kind == "runner" and message.runner:
        return Scope(runner=True, labels=labels)
    if kind == "agent_id":
        return Scope(agent_id=checks.an_id(message.agent_id, "scope.agent_id"), labels=labels)
    if kind == "agent_id_prefix":
        return Scope(agent_id_prefix=checks.an_id(message.agent_id_prefix, "scope.agent_id_prefix"), labels=labels)
    raise BadRequest("says nobody: an agent, a prefix of agents' ids, or a runner", field="scope")


def fill_binding(message: pb.RoleBinding, binding: Binding) -> None:
    """Show a role binding."""
    message.principal = binding.principal
    message.namespace = binding.namespace
    message.roles.extend(int(role) for role in binding.roles)  # type: ignore[misc]  # enums are numbers on the wire
    set_time(message.update_time, binding.update_time)


# The trail ----------------------------------------------------------------------------------------------------------


def filter_from(message: pb.AuditFilter) -> Filter:
    """Return which records are wanted."""
    if len(message.methods) > MAX_METHODS:
        raise BadRequest(f"more than {MAX_METHODS}", field="filter.methods")
    start = checks.milliseconds(message, "start_time", "filter.start_time")
    end = checks.milliseconds(message, "end_time", "filter.end_time")
    if end and end < start:
        raise BadRequest("before the beginning", field="filter.end_time")
    return Filter(
        principal=checks.text(message.principal, "filter.principal", 255),
        methods=frozenset(checks.text(name, "filter.methods", 255) for name in message.methods),
        outcomes=checks.enums(Ending, OUTCOMES, message.outcomes, "filter.outcomes"),
        categories=checks.enums(Category, CATEGORIES, message.categories, "filter.categories"),
        peer=checks.text(message.peer, "filter.peer", 64),
        start=start,
        end=end,
    )


def fill_record(message: pb.AuditRecord, record: Record) -> None:
    """Show an audit record."""
    message.chain = record.chain
    message.sequence = record.sequence
    message.time.FromMilliseconds(record.time)
    message.category = pb.AuditCategory.Value(f"AUDIT_CATEGORY_{record.category}")
    message.outcome = pb.AuditOutcome.Value(f"AUDIT_OUTCOME_{record.outcome}")
    for name in ("principal", "token_id", "method", "namespace", "peer", "code", "reason", "call_id", "text"):
        setattr(message, name, getattr(record, name))
    for field, name in record.resources:
        message.resources.add(field=field, id=name)
    message.count = record.count
    message.previous_hash = bytes.fromhex(record.previous)
    message.hash = bytes.fromhex(record.hash)


def heads_from(messages: Any) -> dict[str, list[Head]]:
    """Return heads by chain."""
    found: dict[str, list[Head]] = {}
    if len(messages) > 256:
        raise BadRequest("more than 256", field="expected_heads")
    for n, message in enumerate(messages):
        if message.sequence < 1 or len(message.hash) != 32:
            raise BadRequest("no head: a sequence and a hash of 32 bytes", field=f"expected_heads[{n}]")
        chain = checks.text(message.chain, f"expected_heads[{n}].chain", 128)
        found.setdefault(chain, []).append(Head(message.sequence, message.hash.hex()))
    return found


def fill_chain(message: pb.AuditChain, row: ChainRow, count: int, *, intact: bool) -> None:
    """Show a chain as it was found."""
    message.chain = row.chain
    message.first_sequence = row.base.sequence + 1
    message.head.chain = row.chain
    message.head.sequence = row.head.sequence
    message.head.hash = bytes.fromhex(row.head.hash)
    message.record_count = count
    message.intact = intact


def fill_chains(messages: Any, found: Found) -> None:
    """Show all chains as they were found."""
    for row, count in found.rows:
        fill_chain(messages.add(), row, count, intact=found.intact(row.chain))


def fill_fault(message: pb.AuditFault, fault: Fault) -> None:
    """Show what is wrong with a chain."""
    message.kind = pb.AuditFaultKind.Value(f"AUDIT_FAULT_KIND_{fault.kind}")
    message.chain = fault.chain
    message.sequence = fault.sequence
    message.text = fault.text


# Threats and reports ------------------------------------------------------------------------------------------------


def fill_threat(message: pb.Threat, threat: Threat) -> None:
    """Show a threat."""
    message.threat_id = threat.id
    message.kind = pb.ThreatKind.Value(f"THREAT_KIND_{threat.kind}")
    message.severity = int(threat.severity)  # type: ignore[assignment]  # enums are numbers on the wire
    message.state = pb.THREAT_STATE_RESOLVED if threat.resolve_time else pb.THREAT_STATE_OPEN
    message.principal = threat.principal
    message.peer = threat.peer
    message.token_id = threat.token_id
    set_time(message.create_time, threat.create_time)
    set_time(message.update_time, threat.update_time)
    message.signal_count = threat.signals
    message.evidence.extend(threat.evidence)
    set_time(message.block_expire_time, threat.block_expire_time)
    set_time(message.resolve_time, threat.resolve_time)
    message.resolve_principal = threat.resolve_principal
    message.comment = threat.comment


def fill_control(message: pb.ControlReport, report: ControlReport) -> None:
    """Show what the trail says about a control."""
    control = report.control
    message.control_id = control.id
    message.title = control.title
    message.required_retention.FromSeconds(control.retention_days * 86_400)
    for category in control.categories:
        message.counts.add(
            category=pb.AuditCategory.Value(f"AUDIT_CATEGORY_{category}"),
            ok_count=report.counts[category, Ending.OK],
            denied_count=report.counts[category, Ending.DENIED],
            failed_count=report.counts[category, Ending.FAILED],
        )
    for chain, sequence in report.references:
        message.references.add(chain=chain, sequence=sequence)
    for gap in report.gaps:
        message.gaps.add(kind=pb.ComplianceGapKind.Value(f"COMPLIANCE_GAP_KIND_{gap.kind}"), text=gap.text)
