"""ProductionService: how the hive is, series and anomalies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agenthive.v1 import production_service_pb2 as pb
from agenthive_server.plugin.api import Call, Clock, NotImplementedHere

from .alerts import AlertSeverity
from .anomalies import Anomaly
from .convert import fill_anomaly, fill_point, range_from
from .convert_alerts import metric_from
from .convert_levels import fill_report
from .desk import Desk
from .fields import page_after, page_size, page_token, set_span, set_time, span
from .health import WINDOW, Scores, scores_of
from .ledger import Ledger
from .levels import TARGETS, Levels
from .lookout import ANOMALIES, Lookout
from .metrics import STATUS, points_of, value_of
from .pool_methods import PoolMethods
from .pools import POLICIES, policy_id
from .recovery import Readiness, Recovery
from .series import HOURS, SeriesSet

MOST_POINTS: Final = 1_000


class StatusMethods:
    """The hive as a whole, for callers."""

    def __init__(
        self,
        ledger: Ledger,
        series: SeriesSet,
        clock: Clock,
        *,
        desk: Desk,
        levels: Levels,
        lookout: Lookout,
        pools: PoolMethods,
        recovery: Recovery,
        started: float | None,
        last_sequence: Callable[[], int],
    ) -> None:
        self._ledger = ledger
        self._series = series
        self._clock = clock
        self._desk = desk
        self._levels = levels
        self._lookout = lookout
        self._pools = pools
        self._recovery = recovery
        self._started = started
        self._last_sequence = last_sequence

    async def GetProductionStatus(
        self, request: pb.GetProductionStatusRequest, call: Call
    ) -> pb.GetProductionStatusResponse:
        """Say how the hive is."""
        now = self._clock.now()
        response = pb.GetProductionStatusResponse()
        _fill_scores(response, scores_of(self._series, now))
        set_time(response.start_time, self._started or 0.0)
        for metric in STATUS:
            value = value_of(self._series, metric, now - WINDOW, now, now)
            if value is not None:
                set_time(response.measurements.add(metric=metric, value=value).time, now)
        alerts = await self._desk.open_alerts()
        response.active_alert_count = len(alerts)
        response.critical_alert_count = sum(alert.severity is AlertSeverity.CRITICAL for alert in alerts)
        response.open_anomaly_count = len(await self._lookout.open())
        await self._fill_levels(response)
        for policy in await self._ledger.all(POLICIES, policy_id(call.namespace, "")):
            await self._pools.fill(response.pools.add(), policy)
        await self._fill_recovery(response, now)
        return response

    async def _fill_levels(self, response: pb.GetProductionStatusResponse) -> None:
        response.sla_compliance_percent = 100.0
        for target in await self._ledger.all(TARGETS):
            fill_report(response.targets.add(), await self._levels.report(target, why=False))
        if response.targets:
            mean = sum(report.compliance_percent for report in response.targets) / len(response.targets)
            response.sla_compliance_percent = mean

    async def _fill_recovery(self, response: pb.GetProductionStatusResponse, now: float) -> None:
        try:
            ready: Readiness = await self._recovery.readiness()
        except NotImplementedHere:
            return
        message, last = response.recovery, ready.last
        message.can_recover = ready.can_recover
        message.last_failure = ready.note.last_failure
        if ready.note.recovery_seconds is not None:
            set_span(message.recovery_time, ready.note.recovery_seconds)
        if last is not None:
            message.last_backup_id = last.id
            set_time(message.last_backup_time, last.report.create_time)
            set_span(message.recovery_point, max(0.0, now - last.report.create_time))
            message.events_behind = max(0, self._last_sequence() - last.report.last_sequence)

    async def ListAnomalies(self, request: pb.ListAnomaliesRequest, call: Call) -> pb.ListAnomaliesResponse:
        """List anomalies, newest first."""
        metric = metric_from(request.metric, "metric") if request.metric else ""

        def wanted(anomaly: Anomaly) -> bool:
            return metric in ("", anomaly.metric) and not (request.open_only and anomaly.end)

        size = page_size(request.page_size)
        found, last = await self._ledger.page(ANOMALIES, page_after(request), size, wanted=wanted)
        response = pb.ListAnomaliesResponse(next_page_token=page_token(request, last))
        for anomaly in found:
            fill_anomaly(response.anomalies.add(), anomaly)
        return response

    async def QuerySeries(self, request: pb.QuerySeriesRequest, call: Call) -> pb.QuerySeriesResponse:
        """Return a time series."""
        metric, now = metric_from(request.metric, "metric"), self._clock.now()
        start, end = range_from(request, now)
        width = max(span(request.step, "step", 0.0, HOURS.kept), (end - start) / MOST_POINTS)
        response = pb.QuerySeriesResponse()
        steps = points_of(self._series, metric, start, end, now, width=width)
        for step in steps:
            fill_point(response.points.add(), step)
        if steps:
            set_span(response.step, min(step.width for step in steps))
        return response


def _fill_scores(response: pb.GetProductionStatusResponse, scores: Scores) -> None:
    if scores.health is None or scores.mean is None:
        return
    response.health = pb.SystemHealth.ValueType(scores.health)
    message = response.scores
    message.cpu = scores.cpu or 0.0
    message.memory = scores.memory or 0.0
    message.application = scores.application or 0.0
    message.response_time = scores.response_time or 0.0
    message.mean = scores.mean
