"""Alerts and their rules as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agenthive.cli import tables, text
from agenthive.cli.values import short_name
from agenthive.v1 import production_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.duration_pb2 import Duration
    from rich.console import RenderableType
    from rich.text import Text

_SIGNS: Final = {
    pb.COMPARISON_GREATER: ">",
    pb.COMPARISON_LESS: "<",
    pb.COMPARISON_GREATER_OR_EQUAL: ">=",
    pb.COMPARISON_LESS_OR_EQUAL: "<=",
    pb.COMPARISON_EQUAL: "=",
    pb.COMPARISON_NOT_EQUAL: "!=",
}


def alerts(found: Iterable[pb.Alert], at: float, *, narrow: bool) -> RenderableType:
    """Return a line for each alert."""
    table = tables.new_table("ALERT", "SEVERITY", "STATE", ">AGE", "?RULE", "*WHAT", "?BY", narrow=narrow)
    for each in found:
        table.add(
            tables.plain(tables.short_id(each.alert_id, narrow=narrow)),
            _severity(each.severity),
            _state(each),
            text.age(each.trigger_time, at),
            tables.plain(each.rule_id),
            tables.plain(each.title),
            tables.plain(each.resolved_by or each.acknowledged_by),
        )
    return tables.or_nothing(table, "no alerts")


def alert(one: pb.Alert) -> RenderableType:
    """Return all about one alert."""
    seen = f"{one.value:g}, threshold {one.threshold:g}" if one.metric else ""
    return tables.record([
        ("alert", one.alert_id),
        ("what", one.title),
        ("more", one.description),
        ("severity", _severity(one.severity)),
        ("state", _state(one)),
        ("source", short_name(pb.AlertSource.DESCRIPTOR, one.source).lower()),
        ("rule", one.rule_id),
        ("metric", one.metric),
        ("value", seen),
        ("began", text.date_time(one.trigger_time)),
        ("last seen", text.date_time(one.last_seen_time)),
        ("seen", f"{one.occurrence_count} times"),
        ("escalated", f"{one.escalation_level} times" if one.escalation_level else ""),
        ("flapping", "yes: nobody is told of further changes" if one.flapping else ""),
        ("acknowledged", f"{text.date_time(one.acknowledge_time)} {one.acknowledged_by}".strip()),
        ("resolved", f"{text.date_time(one.resolve_time)} {one.resolved_by}".strip()),
        ("note", one.note),
    ])  # fmt: skip


def rules(found: Iterable[pb.AlertRule]) -> RenderableType:
    """Return a line for each rule."""
    table = tables.new_table("RULE", "SEVERITY", "STATE", "WHEN", ">FIRED", "LAST", "*MEANS")
    for each in found:
        table.add(
            tables.plain(each.rule_id),
            _severity(each.severity),
            tables.state("DISABLED" if each.disabled else "ENABLED"),
            tables.plain(_when(each)),
            str(each.trigger_count),
            text.date_time(each.last_trigger_time),
            tables.plain(each.description, "dim"),
        )
    return tables.or_nothing(table, "no alert rules")


def length(span: Duration) -> str:
    """Return a span as people say it."""
    return text.span(span.seconds + span.nanos / 1e9)


def _when(rule: pb.AlertRule) -> str:
    whole = f"{rule.metric} {_SIGNS.get(rule.comparison, '?')} {rule.threshold:g} over {length(rule.window)}"
    for sign, name in ((rule.trend, "trend"), (rule.anomaly, "anomaly")):
        whole += f" or {name}" if sign else ""
    return whole


def _severity(number: int) -> Text:
    return tables.severity(short_name(pb.AlertSeverity.DESCRIPTOR, number))


def _state(alert: pb.Alert) -> Text:
    return tables.state(short_name(pb.AlertState.DESCRIPTOR, alert.state))
