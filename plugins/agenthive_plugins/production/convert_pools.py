"""Policies of pools and decisions: messages to records, checked field by field, and back."""

from __future__ import annotations

from typing import Any, Final

from agenthive.v1 import production_service_pb2 as pb
from agenthive_server.plugin.api import BadRequest

from .fields import real, required_id, set_span, set_time, span
from .scaling import Decision, Pressure, ScalingPolicy
from .template import fill_template, template_from

_DAY: Final = 86_400.0


def policy_from(message: pb.ScalingPolicy, namespace: str, at: str = "policy") -> ScalingPolicy:
    """Return the policy of a pool; raises `BadRequest`."""
    if not message.HasField("template"):
        raise BadRequest("required", field=f"{at}.template")
    up = message.scale_up_threshold or 0.7
    down = message.scale_down_threshold or 0.2
    real(up, 0.01, 100.0, f"{at}.scale_up_threshold")
    if not 0.0 <= down < up:
        raise BadRequest("not less than the threshold to grow", field=f"{at}.scale_down_threshold")
    least = 0 if message.allow_empty else int(real(message.min_agents, 0, 1_000, f"{at}.min_agents")) or 1
    most = int(real(message.max_agents, 0, 1_000, f"{at}.max_agents")) or max(20, least)
    if most < max(1, least):
        raise BadRequest("less than min_agents", field=f"{at}.max_agents")
    return ScalingPolicy(
        id=required_id(message.pool_id, f"{at}.pool_id", 64),
        namespace=namespace,
        template=template_from(message.template, f"{at}.template"),
        min_agents=least,
        max_agents=most,
        scale_up_threshold=up,
        scale_down_threshold=down,
        cooldown=_span_or(message, "cooldown", at),
        stabilization=_span_or(message, "stabilization", at),
        drain_grace=_span_or(message, "drain_grace", at),
        disabled=message.disabled,
    )


def _span_or(message: Any, name: str, at: str) -> float:
    return span(getattr(message, name), f"{at}.{name}", 0.0, _DAY) if message.HasField(name) else 300.0


def fill_policy(message: pb.ScalingPolicy, policy: ScalingPolicy, agents: int, last: Decision | None) -> None:
    """Write the policy of a pool, with what became of it."""
    message.pool_id = policy.id
    fill_template(message.template, policy.template)
    message.min_agents = policy.min_agents
    message.max_agents = policy.max_agents
    message.scale_up_threshold = policy.scale_up_threshold
    message.scale_down_threshold = policy.scale_down_threshold
    set_span(message.cooldown, policy.cooldown)
    set_span(message.stabilization, policy.stabilization)
    set_span(message.drain_grace, policy.drain_grace)
    message.allow_empty = policy.min_agents == 0
    message.disabled = policy.disabled
    message.revision = policy.revision
    message.current_agents = agents
    if last is not None:
        fill_decision(message.last_decision, last)


def fill_decision(message: pb.ScalingDecision, decision: Decision) -> None:
    """Write a decision."""
    message.action = pb.ScalingAction.ValueType(decision.action)
    message.reason = decision.reason
    message.confidence = decision.confidence
    message.current_agents = decision.current
    message.recommended_agents = decision.recommended
    fill_pressure(message.pressure, decision.pressure)
    set_time(message.time, decision.time)
    message.agent_ids.extend(decision.agent_ids)


def fill_pressure(message: pb.ScalingPressure, pressure: Pressure) -> None:
    """Write what drives a decision."""
    for name in ("pool", "cpu", "memory", "pending_tasks", "response_time", "error_rate", "system"):
        setattr(message, name, getattr(pressure, name))
