"""Backups, anomalies and steps of series as callers see them."""

from __future__ import annotations

from pathlib import Path

import pytest
from agenthive.v1 import production_service_pb2 as pb
from agenthive_plugins.production.anomalies import Anomaly, AnomalyKind
from agenthive_plugins.production.buckets import Bucket
from agenthive_plugins.production.convert import fill_anomaly, fill_backup, fill_point, range_from
from agenthive_plugins.production.health import SystemHealth
from agenthive_plugins.production.recovery import Backup, BackupNote, BackupState
from agenthive_plugins.production.series import HOURS, Step
from agenthive_server.plugin.api import BackupReport
from google.protobuf.timestamp_pb2 import Timestamp

NOW = 1_700_000_000.0
REPORT = BackupReport(
    path=Path("/b/x"),
    create_time=NOW,
    log_id="l",
    last_sequence=7,
    size=9,
    records=3,
    events=4,
    blobs=1,
    digest="d",
    seconds=2.5,
)


@pytest.mark.parametrize(
    ("note", "state"),
    [
        (BackupNote(), pb.BACKUP_STATE_COMPLETE),
        (BackupNote(verify_time=NOW), pb.BACKUP_STATE_VERIFIED),
        (BackupNote(verify_time=NOW, problems=("rust",)), pb.BACKUP_STATE_DAMAGED),
    ],
)
def test_a_backup(note: BackupNote, state: int) -> None:
    message = pb.Backup()
    fill_backup(message, Backup("x", REPORT, note))
    assert (message.state, message.sequence, message.size_bytes, message.path) == (state, 7, 9, "/b/x")
    assert message.duration.ToMilliseconds() == 2_500
    assert message.HasField("verify_time") == bool(note.verify_time)
    assert list(message.problems) == list(note.problems)


def test_an_anomaly_that_goes_on() -> None:
    message = pb.Anomaly()
    anomaly = Anomaly(id="a", metric="calls", kind=AnomalyKind.SHIFT, start=NOW, value=30, expected=20, score=6)
    fill_anomaly(message, anomaly)
    assert (message.kind, message.deviation_percent) == (pb.ANOMALY_KIND_SHIFT, 50)
    assert not message.HasField("end_time")


def test_a_step_of_times_has_quantiles_and_one_of_counts_none() -> None:
    times, counts = Bucket(), Bucket(2, 5.0, 1.0, 4.0)
    times.add_time(100.0)
    message = pb.SeriesPoint()
    fill_point(message, Step(NOW, 60, times))
    assert (message.count, message.p95, message.max) == (1, 100, 100)
    message = pb.SeriesPoint()
    fill_point(message, Step(NOW, 60, counts))
    assert (message.count, message.sum, message.min, message.max, message.p95) == (2, 5, 1, 4, 0)


def test_the_time_a_series_is_asked_for() -> None:
    assert range_from(pb.QuerySeriesRequest(), NOW) == (NOW - 3_600, NOW)
    long_ago = pb.QuerySeriesRequest(start_time=Timestamp(seconds=1), end_time=Timestamp(seconds=int(NOW) + 99))
    assert range_from(long_ago, NOW) == (NOW - HOURS.kept, NOW)


def test_names_and_numbers_are_those_of_the_contract() -> None:
    for ours, theirs, prefix in (
        (BackupState, pb.BackupState, "BACKUP_STATE_"),
        (AnomalyKind, pb.AnomalyKind, "ANOMALY_KIND_"),
        (SystemHealth, pb.SystemHealth, "SYSTEM_HEALTH_"),
    ):
        named = {name.removeprefix(prefix): number for name, number in theirs.items() if number}
        assert {member.name: member.value for member in ours} == named
