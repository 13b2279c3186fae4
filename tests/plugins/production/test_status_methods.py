"""Status, series and anomalies over a real port: everything in them was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agenthive.v1 import production_service_pb2 as pb
from agenthive_server.plugin.api import SystemClock
from agenthive_server.testing.waiting import eventually
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

Serve = Callable[..., Any]


async def test_the_status_of_a_hive_without_agents(serve: Serve) -> None:
    async with serve(sample_interval_seconds=0.05) as hive:

        async def measured() -> pb.GetProductionStatusResponse | None:
            found = await hive.stub.GetProductionStatus(pb.GetProductionStatusRequest())
            known = {each.metric for each in found.measurements}
            return found if found.HasField("scores") and "response_time_p95_ms" in known else None

        status = await eventually(measured)
        assert status is not None
        values = {each.metric: each.value for each in status.measurements}
        assert values["active_agents"] == 0
        assert values["availability_percent"] == 100
        assert values["server_memory_mb"] > 20
        assert 0 < values["memory_usage_percent"] < 100
        assert values["response_time_p95_ms"] > 0
        # No agent: the score of the application is none of four.
        assert status.scores.application == 0
        assert status.scores.mean == pytest.approx(
            (status.scores.cpu + status.scores.memory + status.scores.response_time) / 4
        )
        assert status.health != pb.SYSTEM_HEALTH_UNSPECIFIED
        assert len(status.targets) == 4
        assert abs(SystemClock().now() - status.start_time.seconds) < 86_400
        assert not status.recovery.can_recover


async def test_a_series_of_the_calls_of_this_test(serve: Serve) -> None:
    async with serve(sample_interval_seconds=0.05) as hive:

        async def points() -> list[pb.SeriesPoint]:
            found = await hive.stub.QuerySeries(pb.QuerySeriesRequest(metric="viewer_response_time_ms"))
            return list(found.points)

        found = await eventually(points)
        assert found[-1].count >= 1
        assert 0 < found[-1].p50 <= found[-1].p95 <= found[-1].p99 <= found[-1].max
        derived = await hive.stub.QuerySeries(pb.QuerySeriesRequest(metric="response_time_p95_ms"))
        assert derived.points[-1].max > 0


@pytest.mark.parametrize(
    "bad",
    [
        pb.QuerySeriesRequest(),
        pb.QuerySeriesRequest(metric="redis_memory_usage_mb"),
        pb.QuerySeriesRequest(metric="calls", step=Duration(seconds=-1)),
        pb.QuerySeriesRequest(metric="calls", start_time=Timestamp(seconds=-1)),
        pb.QuerySeriesRequest(metric="calls", start_time=Timestamp(seconds=100), end_time=Timestamp(seconds=50)),
        pb.QuerySeriesRequest(metric="calls", start_time=Timestamp(seconds=99_999_999_999)),
    ],
)
async def test_a_series_nobody_keeps_is_refused(serve: Serve, bad: pb.QuerySeriesRequest) -> None:
    async with serve() as hive:
        assert await hive.reason(hive.stub.QuerySeries(bad)) == ("INVALID_ARGUMENT", "INVALID_FIELD")


async def test_anomalies_of_a_new_hive(serve: Serve) -> None:
    async with serve() as hive:
        assert not (await hive.stub.ListAnomalies(pb.ListAnomaliesRequest(open_only=True))).anomalies
        nobody = hive.stub.ListAnomalies(pb.ListAnomaliesRequest(metric="nobody"))
        assert await hive.reason(nobody) == ("INVALID_ARGUMENT", "INVALID_FIELD")
