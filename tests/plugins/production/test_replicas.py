"""Two servers of one hive: one keeps the series, what both measure is in them, and both show the same."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from agenthive.client import Client
from agenthive.v1 import production_service_pb2 as pb
from agenthive.v1 import production_service_pb2_grpc as rpc
from agenthive_plugins.production.blame import Blame
from agenthive_plugins.production.buckets import Bucket
from agenthive_plugins.production.plugin import registration
from agenthive_plugins.production.report import Report, hand_in, take_all, unpack
from agenthive_plugins.production.series import SeriesSet
from agenthive_server.plugin.api import ManualClock
from agenthive_server.plugin.registry import Registry
from agenthive_server.plugin.state import PluginState
from agenthive_server.testing.harness import open_served
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.waiting import eventually

_PLACES = itertools.count()

QUICK = {
    "sample_interval_seconds": 0.2,
    "alert_interval_seconds": 0.5,
    "health_interval_seconds": 0.5,
    "backup_enabled": False,
}


@pytest.fixture
async def servers(postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[list[tuple[Any, Client, Any]]]:
    """Two servers with the plugin on, each with a client and its service."""
    store = postgres.url(f"production{next(_PLACES)}")
    async with AsyncExitStack() as stack:
        found = []
        for name in ("one", "two"):
            app, client = await stack.enter_async_context(
                open_served(
                    tmp_path / name,
                    registry=Registry((registration,)),
                    server__store=store,
                    plugins__enabled=["production"],
                    plugins__production=QUICK,
                )
            )
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{app.port}"))
            found.append((app, client, rpc.ProductionServiceStub(channel)))
        yield found


async def total(stub: Any, metric: str) -> float:
    answer = await stub.QuerySeries(pb.QuerySeriesRequest(metric=metric))
    return float(sum(point.sum for point in answer.points))


async def test_what_both_measure_is_summed_and_shown_by_both(servers: list[tuple[Any, Client, Any]]) -> None:
    for _, client, _ in servers:
        for _ in range(20):
            await client.delegate("any", role="nobody")

    async def counted(stub: Any) -> bool:
        # Each delegation is a call at one server, and an event handled once.
        return (await total(stub, "tasks_delegated"), await total(stub, "calls") >= 40) == (40, True)

    for _, _, stub in servers:
        await eventually(lambda stub=stub: counted(stub))  # type: ignore[misc]  # a condition


async def test_another_server_goes_on_with_the_series_and_nobody_was_down(
    servers: list[tuple[Any, Client, Any]],
) -> None:
    for _, client, _ in servers:
        await client.delegate("any", role="nobody")

    async def delegated(stub: Any) -> float:
        return await total(stub, "tasks_delegated")

    for _, _, stub in servers:
        await eventually(lambda stub=stub: _equals(delegated(stub), 2))  # type: ignore[misc]  # a condition
    for app, _, _ in servers:
        await app.plugins.hand_over()
        break
    await servers[1][1].delegate("any", role="nobody")
    await eventually(lambda: _equals(delegated(servers[1][2]), 3))
    assert await total(servers[1][2], "down_seconds") == 0


async def _equals(value: Any, wanted: float) -> bool:
    return bool(await value == wanted)


async def test_an_alert_fires_once_for_all_servers_and_is_acknowledged_on_any(
    servers: list[tuple[Any, Client, Any]],
) -> None:
    stubs = [stub for _, _, stub in servers]
    rule = pb.AlertRule(
        rule_id="always",
        metric="active_agents",
        comparison=pb.COMPARISON_GREATER_OR_EQUAL,
        threshold=0.0,
        severity=pb.ALERT_SEVERITY_LOW,
    )
    await stubs[1].CreateAlertRule(pb.CreateAlertRuleRequest(rule=rule))

    async def fired() -> Any:
        answer = await stubs[0].ListAlerts(pb.ListAlertsRequest())
        return [alert for alert in answer.alerts if alert.rule_id == "always"]

    (alert,) = await eventually(fired)
    await stubs[1].AcknowledgeAlert(pb.AcknowledgeAlertRequest(alert_id=alert.alert_id))
    (alert,) = await fired()
    assert alert.state == pb.ALERT_STATE_ACKNOWLEDGED


async def test_a_report_is_counted_once_whoever_adds_to_it_meanwhile(state: PluginState, clock: ManualClock) -> None:
    now = clock.now()

    def made(number: float) -> Report:
        report = Report()
        report.count("calls", now, number)
        report.blame("fault", "X", number, now)
        bucket = Bucket()
        bucket.add_time(12.0)
        report.add("response_time_ms", now, bucket)
        return report

    series, blame = SeriesSet(now), Blame()
    await hand_in(state, "a", made(1), now)
    await hand_in(state, "b", made(2), now)
    adding = asyncio.create_task(hand_in(state, "a", made(4), now))
    taken = await take_all(state)
    await adding
    taken += await take_all(state)
    assert await take_all(state) == []
    for report in taken:
        report.tell(series, blame)
    assert series.window("calls", now - 60, now, now).total == 7
    assert series.window("response_time_ms", now - 60, now, now).quantile(0.5) == pytest.approx(12.0)
    assert blame.worst("fault", now - 600, now, now) == [("X", 7.0)]


async def test_a_report_that_nobody_takes_does_not_grow_for_ever(state: PluginState, clock: ManualClock) -> None:
    for _ in range(200):
        report = Report()
        report.count("calls", clock.now(), 1)
        await hand_in(state, "a", report, clock.now())
        clock.move(10)
    (report,) = await take_all(state)
    series = SeriesSet(clock.now())
    report.tell(series, Blame())
    now = clock.now()
    assert 85 <= series.window("calls", now - 3_000, now, now).total <= 91
    assert not unpack(b"damaged")
