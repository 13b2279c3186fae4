"""Backups, anomalies and steps of series: records to messages."""

from __future__ import annotations

from agenthive.v1 import production_service_pb2 as pb
from agenthive_server.plugin.api import BadRequest

from .anomalies import Anomaly
from .fields import instant, set_span, set_time
from .recovery import Backup
from .series import HOURS, Step


def fill_backup(message: pb.Backup, backup: Backup) -> None:
    """Write a backup."""
    report, note = backup.report, backup.note
    message.backup_id = backup.id
    message.state = pb.BackupState.ValueType(backup.state)
    set_time(message.create_time, report.create_time)
    message.sequence = report.last_sequence
    message.size_bytes = report.size
    set_span(message.duration, report.seconds)
    message.path = str(report.path)
    set_time(message.verify_time, note.verify_time)
    message.problems.extend(note.problems)
    message.record_count = report.records
    message.event_count = report.events
    message.blob_count = report.blobs
    message.digest = report.digest


def fill_anomaly(message: pb.Anomaly, anomaly: Anomaly) -> None:
    """Write an anomaly."""
    message.anomaly_id = anomaly.id
    message.metric = anomaly.metric
    message.kind = pb.AnomalyKind.ValueType(anomaly.kind)
    set_time(message.start_time, anomaly.start)
    set_time(message.end_time, anomaly.end)
    message.value = anomaly.value
    message.expected_value = anomaly.expected
    message.score = anomaly.score
    message.deviation_percent = anomaly.deviation_percent


def fill_point(message: pb.SeriesPoint, step: Step) -> None:
    """Write a step of a series."""
    bucket = step.bucket
    set_time(message.start_time, step.start)
    message.count = int(bucket.count)
    message.sum = bucket.total
    message.min = bucket.least
    message.max = bucket.most
    if bucket.histogram:
        message.p50, message.p95, message.p99 = (bucket.quantile(share) for share in (0.5, 0.95, 0.99))


def range_from(request: pb.QuerySeriesRequest, now: float) -> tuple[float, float]:
    """Return begin and end of the time a series is asked for."""
    end = min(instant(request.end_time, "end_time"), now) if request.HasField("end_time") else now
    start = instant(request.start_time, "start_time") if request.HasField("start_time") else end - 3_600.0
    if start >= end:
        raise BadRequest("not before the end", field="start_time")
    return max(start, now - HOURS.kept), end
