"""Service level targets and reports: messages to records, checked field by field, and back."""

from __future__ import annotations

from typing import Final

from agenthive.v1 import production_service_pb2 as pb

from .fields import member, real, required_id, set_span, set_time, span, text
from .levels import SlaHistory, SlaReport
from .series import HOURS
from .sla import BurnRate, Indicator, SlaTarget

_DAY: Final = 86_400.0
_HUGE: Final = 1e15


def target_from(message: pb.SlaTarget, at: str = "target") -> SlaTarget:
    """Return a service level target; raises `BadRequest`."""
    indicator = member(Indicator, message.indicator, f"{at}.indicator")
    most = _HUGE if indicator is Indicator.RESPONSE_TIME else 100.0
    breach, percentile = message.breach_threshold_percent, message.percentile
    return SlaTarget(
        id=required_id(message.target_id, f"{at}.target_id"),
        description=text(message.description, f"{at}.description"),
        indicator=indicator,
        target_value=real(message.target_value, 0.001, most, f"{at}.target_value"),
        percentile=real(percentile, 50.0, 99.9, f"{at}.percentile") if percentile else 95.0,
        window=span(message.window, f"{at}.window", 60.0, HOURS.kept) if message.HasField("window") else _DAY,
        breach_threshold_percent=real(breach, 0.0, 100.0, f"{at}.breach_threshold_percent") if breach else 5.0,
    )


def fill_target(message: pb.SlaTarget, target: SlaTarget, history: SlaHistory | None) -> None:
    """Write a target, with how often it was missed."""
    message.target_id = target.id
    message.description = target.description
    message.indicator = pb.SlaIndicator.ValueType(target.indicator)
    message.target_value = target.target_value
    message.percentile = target.percentile
    set_span(message.window, target.window)
    message.breach_threshold_percent = target.breach_threshold_percent
    message.revision = target.revision
    message.built_in = target.built_in
    if history is not None:
        message.breach_count = history.breaches
        set_time(message.last_breach_time, history.last_breach)


def fill_report(message: pb.SlaReport, report: SlaReport) -> None:
    """Write how a target stands."""
    standing = report.standing
    fill_target(message.target, standing.target, report.history)
    message.measured = standing.value is not None
    message.current_value = standing.value or 0.0
    message.met = standing.met
    message.compliance_percent = standing.compliance_percent
    message.good = standing.tally.total - standing.tally.bad
    message.total = standing.tally.total
    message.budget = standing.budget
    message.budget_left = standing.budget_left
    for burn in standing.burn_rates:
        _fill_burn(message.burn_rates.add(), burn)
    for interval in report.intervals:
        made = message.bad_intervals.add(bad=interval.bad, total=interval.total)
        set_time(made.start_time, interval.start)
        set_time(made.end_time, interval.end)
    for name, bad in report.culprits:
        message.culprits.add(name=name, bad=bad)
    message.alert_ids.extend(alert.id for alert in report.alerts)


def _fill_burn(message: pb.BurnRate, burn: BurnRate) -> None:
    set_span(message.long_window, burn.limit.long)
    set_span(message.short_window, burn.limit.short)
    message.long_rate = burn.long_rate
    message.short_rate = burn.short_rate
    message.limit = burn.limit.rate
    message.burning = burn.burning
