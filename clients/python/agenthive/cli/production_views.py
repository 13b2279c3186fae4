"""Health in production and service levels as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.text import Text

from agenthive.cli import pool_views, tables, text
from agenthive.cli.alert_views import length
from agenthive.cli.values import short_name
from agenthive.v1 import production_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

_PROMISES: Final = {
    pb.SLA_INDICATOR_AVAILABILITY: ("availability at least", "%"),
    pb.SLA_INDICATOR_RESPONSE_TIME: ("at most", " ms"),
    pb.SLA_INDICATOR_ERROR_RATE: ("errors at most", "%"),
    pb.SLA_INDICATOR_TASK_COMPLETION: ("completion at least", "%"),
}
_UNITS: Final = {
    pb.SLA_INDICATOR_AVAILABILITY: "s down",
    pb.SLA_INDICATOR_RESPONSE_TIME: "slow calls",
    pb.SLA_INDICATOR_ERROR_RATE: "failed calls",
    pb.SLA_INDICATOR_TASK_COMPLETION: "failed tasks",
}


def status(found: pb.GetProductionStatusResponse, at: float) -> RenderableType:
    """Return how the hive is."""
    health = short_name(pb.SystemHealth.DESCRIPTOR, found.health)
    scores = found.scores
    named = {
        "processor": scores.cpu,
        "memory": scores.memory,
        "agents and errors": scores.application,
        "response time": scores.response_time,
    }
    parts: list[RenderableType] = [
        tables.record([
            ("health", Text("not measured yet", "dim") if found.health == 0 else tables.state(health)),
            ("scores", f"{scores.mean:.2f}: {tables.words(f'{name} {score:g}' for name, score in named.items())}"),
            ("up", text.age(found.start_time, at)),
            ("alerts", f"{found.active_alert_count} open, {found.critical_alert_count} critical"),
            ("anomalies", f"{found.open_anomaly_count} open"),
            ("service levels", f"{found.sla_compliance_percent:.4g}% kept"),
            *_recovery(found.recovery),
        ])
    ]  # fmt: skip
    if found.measurements:
        table = tables.new_table("METRIC", ">5 MIN")
        for each in found.measurements:
            table.add(tables.plain(each.metric), f"{each.value:.4g}")
        parts += [Text(), table]
    if found.targets:
        parts += [Text(), levels(found.targets)]
    if found.pools:
        parts += [Text(), pool_views.pools(found.pools, at)]
    return Group(*parts)


def compliance(found: pb.CheckSlaComplianceResponse, window: float | None) -> RenderableType:
    """Return how the targets stand, over a window if one was asked for, and what broke those that are missed."""
    parts: list[RenderableType] = [levels(found.reports, window)]
    for report in found.reports:
        if not report.met or any(rate.burning for rate in report.burn_rates):
            parts += [Text(), _broken(report)]
    return Group(*parts)


def levels(reports: Iterable[pb.SlaReport], window: float | None = None) -> RenderableType:
    """Return a line for each target."""
    table = tables.new_table("TARGET", "STATE", ">NOW", "PROMISED", ">WINDOW", ">BUDGET LEFT")
    for each in reports:
        before, unit = _PROMISES.get(each.target.indicator, ("", ""))
        if each.target.indicator == pb.SLA_INDICATOR_RESPONSE_TIME:
            before = f"{each.target.percentile or 95:g}th percentile {before}"
        table.add(
            tables.plain(each.target.target_id),
            tables.state(_standing(each)),
            f"{each.current_value:.6g}{unit}" if each.measured else "",
            f"{before} {each.target.target_value:g}{unit}",
            length(each.target.window) if window is None else text.span(window),
            tables.plain(f"{each.budget_left:.0%}", "red" if each.budget_left <= 0 else "") if each.measured else "",
        )
    return tables.or_nothing(table, "no service level targets")


def _standing(report: pb.SlaReport) -> str:
    if not report.met:
        return "MISSED"
    if not report.measured:
        return "NOT MEASURED"
    return "BURNING" if any(rate.burning for rate in report.burn_rates) else "MET"


def _broken(report: pb.SlaReport) -> RenderableType:
    unit = _UNITS.get(report.target.indicator, "bad")
    bad = report.total - report.good
    return tables.record([
        ("target", Text(text.clean(report.target.target_id), "bold red")),
        ("used", f"{bad:.6g} {unit} of {report.total:.6g}; {report.budget:.6g} allowed"),
        ("burns", "\n".join(_burning(rate) for rate in report.burn_rates if rate.burning)),
        ("when", "\n".join(_interval(each) for each in report.bad_intervals[:5])),
        ("who", "\n".join(f"{each.name}: {each.bad:.6g}" for each in report.culprits)),
        ("alerts", tables.words(report.alert_ids)),
    ])  # fmt: skip


def _burning(rate: pb.BurnRate) -> str:
    return f"{rate.long_rate:.3g} times as fast as allowed over {length(rate.long_window)} (limit {rate.limit:g})"


def _interval(span: pb.BadInterval) -> str:
    return f"{text.date_time(span.start_time)} to {text.date_time(span.end_time)}: {span.bad:.6g} of {span.total:.6g}"


def _recovery(ready: pb.RecoveryReadiness) -> list[tuple[str, RenderableType]]:
    last = "none"
    if ready.last_backup_id:
        last = f"{ready.last_backup_id}, {text.date_time(ready.last_backup_time)}"
    lost = f"{length(ready.recovery_point)}, {ready.events_behind} events" if ready.HasField("recovery_point") else ""
    return [
        ("last backup", last),
        ("can recover", "yes, from a backup that was verified" if ready.can_recover else Text("no", "yellow")),
        ("lost by then", lost),
        ("last restore", f"took {length(ready.recovery_time)}" if ready.HasField("recovery_time") else ""),
        ("backup failed", Text(text.clean(ready.last_failure), "red")),
    ]
