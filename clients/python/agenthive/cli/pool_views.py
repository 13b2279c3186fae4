"""Pools of agents as tables."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from agenthive.cli import tables, text
from agenthive.cli.alert_views import length
from agenthive.cli.values import short_name
from agenthive.v1 import production_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType


def pools(found: Iterable[pb.ScalingPolicy], at: float) -> RenderableType:
    """Return a line for each pool."""
    table = tables.new_table("POOL", "STATE", ">AGENTS", ">MIN", ">MAX", "ROLE", "*CAPABILITIES", ">CHANGED", "*WHY")
    for each in found:
        last = each.last_decision
        table.add(
            tables.plain(each.pool_id),
            tables.state(_state(each)),
            str(each.current_agents),
            str(each.min_agents),
            str(each.max_agents),
            tables.plain(each.template.role),
            tables.plain(tables.words(each.template.capabilities)),
            text.age(last.time, at),
            tables.plain(last.reason, "dim"),
        )
    return tables.or_nothing(table, "no pools: hive pools set --help")


def pool(one: pb.ScalingPolicy) -> RenderableType:
    """Return all about one pool."""
    spec = one.template
    command = shlex.join(spec.process.command) if spec.WhichOneof("driver") == "process" else ""
    return tables.record([
        ("pool", one.pool_id),
        ("state", tables.state(_state(one))),
        ("agents", f"{one.current_agents}, {one.min_agents} to {one.max_agents}"),
        ("grows", f"above a load of {one.scale_up_threshold:g}"),
        ("shrinks", f"below {one.scale_down_threshold:g} for {length(one.stabilization)}"),
        ("cooldown", length(one.cooldown)),
        ("drains", f"for {length(one.drain_grace)} at most"),
        ("role", spec.role),
        ("capabilities", tables.words(spec.capabilities)),
        ("slots", str(spec.slots or 1)),
        ("labels", tables.labels(spec.labels.items())),
        ("driver", spec.WhichOneof("driver") or ""),
        ("command", command),
        ("last change", _decided(one.last_decision) if one.HasField("last_decision") else ""),
        ("revision", str(one.revision)),
    ])  # fmt: skip


def decision(one: pb.ScalingDecision) -> RenderableType:
    """Return what was decided, and why."""
    pressure = one.pressure
    named = {
        "processor": pressure.cpu,
        "memory": pressure.memory,
        "waiting tasks": pressure.pending_tasks,
        "response time": pressure.response_time,
        "errors": pressure.error_rate,
    }
    parts = tables.words(f"{name} {value:.2f}" for name, value in named.items() if value)
    return tables.record([
        ("action", short_name(pb.ScalingAction.DESCRIPTOR, one.action).lower().replace("_", " ")),
        ("why", one.reason),
        ("agents", f"{one.current_agents} to {one.recommended_agents}"),
        ("confidence", f"{one.confidence:.2f}"),
        ("load", f"pool {pressure.pool:.2f}, hive {pressure.system:.2f}{f' ({parts})' if parts else ''}"),
        ("changed", tables.words(one.agent_ids)),
    ])  # fmt: skip


def _state(policy: pb.ScalingPolicy) -> str:
    return "DISABLED" if policy.disabled else "ENABLED"


def _decided(decision: pb.ScalingDecision) -> str:
    action = short_name(pb.ScalingAction.DESCRIPTOR, decision.action).lower().replace("_", " ")
    return f"{text.date_time(decision.time)} {action} to {decision.recommended_agents}: {decision.reason}"
