"""Alert rules and alerts: messages to records, checked field by field, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from agenthive.v1 import production_service_pb2 as pb
from agenthive_server.plugin.api import BadRequest

from .alerts import Alert, AlertRule, AlertSeverity, Comparison, EscalationStep, Tier, Track
from .defaults import escalation_of
from .fields import member, real, required_id, set_span, set_time, span, text
from .metrics import METRICS

_DAY: Final = 86_400.0
_HUGE: Final = 1e15
_MOST_TIERS: Final = 4
_MOST_STEPS: Final = 8
_MOST_WEBHOOKS: Final = 16


def metric_from(value: str, field: str) -> str:
    """Return the name of a metric that is measured."""
    if value not in METRICS:
        raise BadRequest(f"nothing is measured by this name; there are {', '.join(METRICS)}", field=field)
    return value


def rule_from(message: pb.AlertRule, at: str = "rule") -> AlertRule:
    """Return an alert rule; raises `BadRequest`."""
    severity = member(AlertSeverity, message.severity, f"{at}.severity")
    return AlertRule(
        id=required_id(message.rule_id, f"{at}.rule_id"),
        description=text(message.description, f"{at}.description"),
        metric=metric_from(message.metric, f"{at}.metric"),
        comparison=member(Comparison, message.comparison, f"{at}.comparison"),
        threshold=real(message.threshold, -_HUGE, _HUGE, f"{at}.threshold"),
        severity=severity,
        tiers=_tiers(message.tiers, f"{at}.tiers"),
        window=span(message.window, f"{at}.window", 10.0, _DAY) if message.HasField("window") else 300.0,
        hold=span(message.hold, f"{at}.hold", 0.0, _DAY),
        cooldown=span(message.cooldown, f"{at}.cooldown") if message.HasField("cooldown") else 600.0,
        escalation=_escalation(message.escalation, f"{at}.escalation") or escalation_of(severity),
        anomaly=message.anomaly,
        trend=message.trend,
        webhooks=_webhooks(message.webhooks, f"{at}.webhooks"),
        disabled=message.disabled,
    )


def _bounded(values: Any, most: int, at: str) -> Any:
    if len(values) > most:
        raise BadRequest(f"more than {most}", field=at)
    return values


def _tiers(messages: Iterable[pb.AlertTier], at: str) -> tuple[Tier, ...]:
    return tuple(
        Tier(
            threshold=real(tier.threshold, -_HUGE, _HUGE, f"{at}[{n}].threshold"),
            severity=member(AlertSeverity, tier.severity, f"{at}[{n}].severity"),
        )
        for n, tier in enumerate(_bounded(messages, _MOST_TIERS, at))
    )


def _escalation(messages: Iterable[pb.EscalationStep], at: str) -> tuple[EscalationStep, ...]:
    steps: list[EscalationStep] = []
    for n, each in enumerate(_bounded(messages, _MOST_STEPS, at)):
        after = span(each.after, f"{at}[{n}].after", 1.0)
        if steps and after <= steps[-1].after:
            raise BadRequest("not later than the step before", field=f"{at}[{n}].after")
        severity = member(AlertSeverity, each.severity, f"{at}[{n}].severity") if each.severity else 0
        webhooks = _webhooks(each.webhooks, f"{at}[{n}].webhooks")
        steps.append(EscalationStep(after=after, severity=severity, webhooks=webhooks))
    return tuple(steps)


def _webhooks(names: Iterable[str], at: str) -> tuple[str, ...]:
    return tuple(required_id(name, f"{at}[{n}]") for n, name in enumerate(_bounded(names, _MOST_WEBHOOKS, at)))


def fill_rule(message: pb.AlertRule, rule: AlertRule, track: Track | None) -> None:
    """Write an alert rule, with when it fired."""
    message.rule_id = rule.id
    message.description = rule.description
    message.metric = rule.metric
    message.comparison = pb.Comparison.ValueType(rule.comparison)
    message.threshold = rule.threshold
    message.severity = pb.AlertSeverity.ValueType(rule.severity)
    for tier in rule.tiers:
        message.tiers.add(threshold=tier.threshold, severity=pb.AlertSeverity.ValueType(tier.severity))
    set_span(message.window, rule.window)
    set_span(message.hold, rule.hold)
    set_span(message.cooldown, rule.cooldown)
    for each in rule.escalation:
        made = message.escalation.add(severity=pb.AlertSeverity.ValueType(each.severity), webhooks=each.webhooks)
        set_span(made.after, each.after)
    message.anomaly = rule.anomaly
    message.trend = rule.trend
    message.webhooks.extend(rule.webhooks)
    message.disabled = rule.disabled
    message.revision = rule.revision
    message.built_in = rule.built_in
    if track is not None:
        set_time(message.last_trigger_time, track.last_trigger)
        message.trigger_count = track.triggers


def fill_alert(message: pb.Alert, alert: Alert) -> None:
    """Write an alert."""
    message.alert_id = alert.id
    message.fingerprint = alert.fingerprint
    message.source = pb.AlertSource.ValueType(alert.source)
    message.rule_id = alert.rule_id
    message.severity = pb.AlertSeverity.ValueType(alert.severity)
    message.state = pb.AlertState.ValueType(alert.state)
    message.title = alert.title
    message.description = alert.description
    message.metric = alert.metric
    message.value = alert.value
    message.threshold = alert.threshold
    set_time(message.trigger_time, alert.trigger_time)
    set_time(message.last_seen_time, alert.last_seen_time)
    set_time(message.acknowledge_time, alert.acknowledge_time)
    message.acknowledged_by = alert.acknowledged_by
    set_time(message.resolve_time, alert.resolve_time)
    message.resolved_by = alert.resolved_by
    message.note = alert.note
    message.occurrence_count = alert.occurrences
    message.escalation_level = alert.level
    message.flapping = alert.flapping
