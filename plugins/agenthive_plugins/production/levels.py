"""Service levels, looked at again and again: alerts when one is missed or its budget burns, and what broke it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from agenthive_server.plugin.api import Clock, Gauge

from .alerts import CLEAR, UNKNOWN, Alert, AlertSeverity, AlertSource, Look, Sighting, fingerprint_of
from .blame import Blame
from .defaults import usual_plan
from .desk import Desk
from .ledger import Family, Ledger
from .series import SeriesSet
from .sla import BadInterval, Indicator, SlaTarget, Standing, bad_intervals, stand


@dataclass(frozen=True, kw_only=True)
class SlaHistory:
    """Whether a target was missed when it was last looked at, and how often it went from met to missed."""

    missed: bool = False
    breaches: int = 0
    last_breach: float = 0.0


TARGETS: Final = Family("target/", SlaTarget, "sla_target", 200)
HISTORIES: Final = Family("target-history/", SlaHistory, "sla_target")

_BLAMED: Final = {Indicator.RESPONSE_TIME: "slow", Indicator.ERROR_RATE: "fault", Indicator.TASK_COMPLETION: "task"}


@dataclass(frozen=True, slots=True)
class SlaReport:
    """How a target stands, and what broke it."""

    standing: Standing
    history: SlaHistory
    intervals: tuple[BadInterval, ...] = ()
    culprits: tuple[tuple[str, float], ...] = ()
    alerts: tuple[Alert, ...] = ()


def fingerprints(target_id: str) -> tuple[str, str]:
    """Return what the alerts of a target are known by: that it is missed, and that its budget burns."""
    return fingerprint_of(AlertSource.SLA, target_id, "breach"), fingerprint_of(AlertSource.SLA, target_id, "burn")


class Levels:
    """All targets."""

    def __init__(
        self, ledger: Ledger, desk: Desk, series: SeriesSet, blame: Blame, clock: Clock, compliance: Gauge
    ) -> None:
        self._ledger = ledger
        self._desk = desk
        self._series = series
        self._blame = blame
        self._clock = clock
        self._compliance = compliance

    async def turn(self) -> None:
        """Look at every target."""
        for target in await self._ledger.all(TARGETS):
            standing = stand(self._series, target, self._clock.now())
            self._compliance.set(standing.compliance_percent, target.id)
            await self._note(standing)
            breach, burn = fingerprints(target.id)
            await self._desk.see(breach, usual_plan(AlertSeverity.HIGH), _breach(standing))
            await self._desk.see(burn, usual_plan(AlertSeverity.HIGH), _burn(standing))
            # Windows of days take milliseconds: whoever waits gets a turn after each target.
            await self._clock.sleep(0)

    async def _note(self, standing: Standing) -> None:
        target_id, missed, now = standing.target.id, not standing.met, self._clock.now()
        history = await self._ledger.find(HISTORIES, target_id) or SlaHistory()
        if history.missed == missed:
            return
        after = replace(history, missed=missed)
        if missed:
            after = replace(after, breaches=history.breaches + 1, last_breach=now)
        await self._ledger.change(lambda rows: rows.put(HISTORIES, target_id, after))

    async def report(self, target: SlaTarget, window: float | None = None, *, why: bool = True) -> SlaReport:
        """Return how a target stands now, over its window or another, and why."""
        now = self._clock.now()
        standing = stand(self._series, target, now, window=window)
        history = await self._ledger.find(HISTORIES, target.id) or SlaHistory()
        if not why:
            return SlaReport(standing, history)
        start = now - (window or target.window)
        intervals = tuple(bad_intervals(self._series, target, start, now))
        kind = _BLAMED.get(target.indicator)
        culprits = self._culprits(kind, intervals, now) if kind else ()
        alerts = await self._desk.overlapping([(each.start, each.end) for each in intervals])
        return SlaReport(standing, history, intervals, culprits, tuple(alerts))

    def _culprits(self, kind: str, spans: Iterable[BadInterval], now: float) -> tuple[tuple[str, float], ...]:
        spans = list(spans)
        if not spans:
            return ()
        start, end = min(each.start for each in spans), max(each.end for each in spans)
        return tuple(self._blame.worst(kind, start, end, now))


def _breach(standing: Standing) -> Look:
    if standing.value is None:
        return UNKNOWN
    if not standing.breached:
        return CLEAR
    return _sighting(
        standing,
        AlertSeverity.HIGH,
        f"sla_breach_{standing.target.id}: {standing.value:g}, {standing.target.target_value:g} is promised",
        f"Missed by {standing.deviation_percent:.1f} %; {standing.tally.bad:g} of {standing.tally.total:g} were bad.",
    )


def _burn(standing: Standing) -> Look:
    if standing.value is None:
        return UNKNOWN
    burn = standing.burning
    if burn is None:
        return CLEAR
    hours = burn.limit.long / 3_600
    return _sighting(
        standing,
        AlertSeverity.HIGH if burn.limit.urgent else AlertSeverity.MEDIUM,
        f"sla_burn_{standing.target.id}: the error budget burns {burn.long_rate:.1f} times as fast as it may",
        f"Over {hours:g} h {burn.long_rate:.1f} times, over the last {burn.limit.short / 60:g} min"
        f" {burn.short_rate:.1f} times; the limit is {burn.limit.rate:g}.",
    )


def _sighting(standing: Standing, severity: AlertSeverity, title: str, description: str) -> Sighting:
    return Sighting(
        source=AlertSource.SLA,
        severity=severity,
        title=title,
        rule_id=standing.target.id,
        description=description,
        value=standing.value or 0.0,
        threshold=standing.target.target_value,
    )
