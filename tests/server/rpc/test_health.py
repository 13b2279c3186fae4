"""Health for load balancers and for people."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive_server.kernel.health import ComponentReport, Reading, Status
from agenthive_server.kernel.members import Member, MemberState
from agenthive_server.rpc.health import Board
from agenthive_server.rpc.wellknown import HealthListResponse
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # ships without types

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Edge

SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3
PUBLIC = ["agenthive.v1.OrchestratorService", "agenthive.v1.WorkerService", "grpc.health.v1.Health"]


@pytest.fixture
async def health(edge: Edge) -> Any:
    return health_pb2_grpc.HealthStub(edge.channel)


def named(name: str) -> Any:
    return health_pb2.HealthCheckRequest(service=name)


@pytest.mark.parametrize("name", ["", "liveness", "readiness", *PUBLIC])
async def test_every_public_name_serves(edge: Edge, health: Any, name: str) -> None:
    assert (await health.Check(named(name))).status == SERVING


async def test_an_unknown_name_is_not_found(edge: Edge, health: Any, failure: Callable[[Any], Any]) -> None:
    failed = await failure(health.Check(named("nobody")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")


async def test_list_tells_of_all_names(edge: Edge) -> None:
    answer = HealthListResponse.FromString(await edge.raw("/grpc.health.v1.Health/List"))
    assert {"", "liveness", "readiness", *PUBLIC} <= set(answer.statuses)
    assert {status.status for status in answer.statuses.values()} == {SERVING}


async def test_a_watch_hears_of_every_change(edge: Edge, health: Any) -> None:
    watch = health.Watch(named(""))
    assert (await watch.read()).status == SERVING
    edge.board.serve(serving=False)
    assert (await watch.read()).status == NOT_SERVING
    edge.board.serve(serving=True)
    assert (await watch.read()).status == SERVING
    watch.cancel()


async def test_a_watch_of_an_unknown_name_stays_until_it_is_known(edge: Edge, health: Any) -> None:
    watch = health.Watch(named("agenthive.v1.PoolService"))
    assert (await watch.read()).status == UNKNOWN
    edge.board.add(["agenthive.v1.PoolService"])
    assert (await watch.read()).status == SERVING
    watch.cancel()


async def test_a_watch_ends_with_the_server_after_its_last_word(edge: Edge, health: Any) -> None:
    watches = [health.Watch(named(name)) for name in ("", "nobody")]
    assert [(await watch.read()).status for watch in watches] == [SERVING, UNKNOWN]
    edge.board.drain()
    edge.board.close()
    assert (await watches[0].read()).status == NOT_SERVING
    assert [await watch.read() for watch in watches] == [grpc.aio.EOF, grpc.aio.EOF]


async def test_draining_shows_not_serving_for_good_but_alive(edge: Edge, health: Any) -> None:
    edge.board.drain()
    edge.board.serve(serving=True)
    for name in ("", "readiness", *PUBLIC):
        assert (await health.Check(named(name))).status == NOT_SERVING
    assert (await health.Check(named("liveness"))).status == SERVING


async def test_one_service_can_be_off(edge: Edge, health: Any) -> None:
    edge.board.switch(PUBLIC[1], on=False)
    edge.board.serve(serving=False)
    edge.board.serve(serving=True)
    assert (await health.Check(named(PUBLIC[1]))).status == NOT_SERVING
    assert (await health.Check(named(PUBLIC[0]))).status == SERVING
    edge.board.switch(PUBLIC[1], on=True)
    assert (await health.Check(named(PUBLIC[1]))).status == SERVING


async def test_a_wait_for_a_change_that_is_given_up_leaves_nothing_behind() -> None:
    board = Board()
    waiting = asyncio.create_task(board.change())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not board._watchers


async def test_people_are_told_of_each_component(edge: Edge) -> None:
    answer = await edge.orchestrator.HealthCheck(pb.HealthCheckRequest())
    assert answer.status == pb.HEALTH_STATUS_DEGRADED
    assert answer.version == "1.2.3"
    store, notifier = answer.components
    assert (store.name, store.status, store.latency.ToMilliseconds()) == ("store", pb.HEALTH_STATUS_OK, 250)
    assert (notifier.name, notifier.status, notifier.reason) == ("notifier", pb.HEALTH_STATUS_DEGRADED, "away")
    assert notifier.since_time.seconds == int(edge.hive.clock.now())
    edge.readings[0] = ("store", Reading(Status.DOWN, "disk full"))
    assert (await edge.orchestrator.HealthCheck(pb.HealthCheckRequest())).status == pb.HEALTH_STATUS_DOWN


async def test_people_are_told_of_each_replica(edge: Edge) -> None:
    trouble = ComponentReport("store", Status.DEGRADED, "slow", 90.0, None)
    edge.members = [
        Member(
            id="r-1",
            state=MemberState.SERVING,
            address="a:1",
            start_time=100.5,
            status=Status.DEGRADED,
            troubles=(trouble,),
            held_tasks=3,
            calls_per_second=2.5,
            loop_lag=0.25,
            lag_events=7,
            roles=("plugin/x",),
            told_time=200.0,
        ),
        Member(id="r-2"),
    ]
    answer = await edge.orchestrator.HealthCheck(pb.HealthCheckRequest())
    one, other = answer.replicas
    assert answer.replica_id == one.replica_id == "r-1"
    assert (one.state, one.status, one.address) == (pb.REPLICA_STATE_SERVING, pb.HEALTH_STATUS_DEGRADED, "a:1")
    assert [(each.name, each.reason, each.since_time.seconds) for each in one.troubles] == [("store", "slow", 90)]
    assert (one.held_tasks, one.calls_per_second, one.lag_events, list(one.roles)) == (3, 2.5, 7, ["plugin/x"])
    assert (one.event_loop_lag.ToMilliseconds(), one.told_time.seconds) == (250, 200)
    assert one.start_time.ToMilliseconds() == 100_500
    assert (other.state, other.HasField("start_time")) == (pb.REPLICA_STATE_UNSPECIFIED, False)
    assert [(each.role, each.replica_id) for each in answer.roles] == [("a", ""), ("dispatcher", "r-2")]


async def test_who_asks_for_one_replica_is_told_of_no_other(edge: Edge) -> None:
    edge.members = [Member(id="r-1"), Member(id="r-2")]
    answer = await edge.orchestrator.HealthCheck(pb.HealthCheckRequest(this_replica_only=True))
    assert [each.replica_id for each in answer.replicas] == ["r-1"]
    assert [each.name for each in answer.components] == ["store"]
    assert answer.status == pb.HEALTH_STATUS_OK


async def test_metrics_are_sorted_and_chosen_by_prefix(edge: Edge) -> None:
    await edge.orchestrator.HealthCheck(pb.HealthCheckRequest())
    answer = await edge.orchestrator.GetMetrics(pb.GetMetricsRequest())
    names = [metric.name for metric in answer.metrics]
    assert names == sorted(names)
    answer = await edge.orchestrator.GetMetrics(pb.GetMetricsRequest(name_prefix="agenthive_rpc_calls"))
    (metric,) = [m for m in answer.metrics if m.labels[0].value.endswith("HealthCheck")]
    assert (metric.value, metric.labels[1].name, metric.labels[1].value) == (1, "code", "OK")
