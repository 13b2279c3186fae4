"""Health of a running server, for balancers and for people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from agenthive.client import Client
from agenthive.v1 import agent_pb2
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive_server.plugin.registry import discover
from agenthive_server.rpc.wellknown import HealthListResponse
from agenthive_server.testing.harness import open_process, open_served
from agenthive_server.testing.waiting import eventually
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # ships without types

SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3
SERVICES = ("OrchestratorService", "WorkerService", "MessagingService", "BlobService", "PluginService")


async def check(stub: Any, name: str) -> int:
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    return int(answer.status)


async def test_every_name_serves_and_an_unknown_one_is_told_apart(tmp_path: Path) -> None:
    async with open_process(tmp_path / "data") as server, grpc.aio.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        names = ["", "liveness", "readiness", *(f"agenthive.v1.{name}" for name in SERVICES)]
        assert {name: await check(stub, name) for name in names} == dict.fromkeys(names, SERVING)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(stub, "nobody")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND

        watch = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"))
        assert (await watch.read()).status == UNKNOWN
        assert not watch.done()  # the stream stays
        listed: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/List")
        statuses = HealthListResponse.FromString(await listed(b"")).statuses
        assert set(names) <= set(statuses)
        off = {name for name, each in statuses.items() if each.status != SERVING}
        # The services of plugins that are installed and off.
        assert off == {service for registration in discover() for service in registration.services}
        assert await server.stop() == 0


async def test_a_store_that_cannot_be_read_takes_the_server_out_of_service_but_not_alive(tmp_path: Path) -> None:
    from agenthive_server.kernel.errors import StoreUnavailable

    async with open_served(tmp_path / "data") as (app, client), grpc.aio.insecure_channel(client.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        ping, failing = app.store.ping, [True]

        async def broken() -> float:
            if failing:
                raise StoreUnavailable("the disk is gone")
            return await ping()

        app.store.ping = broken  # type: ignore[method-assign]  # a store that fails
        await eventually(lambda: is_status(stub, "readiness", NOT_SERVING))
        assert await check(stub, "liveness") == SERVING
        assert await check(stub, "") == NOT_SERVING
        health = await client.health()
        assert health.status == pb.HEALTH_STATUS_DOWN
        store = next(each for each in health.components if each.name == "store")
        assert (store.status, store.reason) == (pb.HEALTH_STATUS_DOWN, "the disk is gone")
        assert store.HasField("since_time")
        failing.clear()
        await eventually(lambda: is_status(stub, "", SERVING))
        assert (await client.health()).status == pb.HEALTH_STATUS_OK


async def is_status(stub: Any, name: str, status: int) -> bool:
    return await check(stub, name) == status


async def test_the_report_names_components_runners_and_what_is_under_way(tmp_path: Path) -> None:
    async with open_process(tmp_path / "data", runner=True) as server, Client(server.target) as client:
        found = await eventually(lambda: runner_of(client), what="the runner is there")
        assert found is not None
        assert {"process", "scripted"} <= set(found.reason.split(", "))
        spec = agent_pb2.AgentSpec()
        spec.process.command.extend([sys.executable, "-c", "import sys; sys.stdin.read()"])
        await client.spawn(agent_id="agent", spec=spec)
        await client.delegate("any", role="nobody")
        health = await eventually(lambda: with_agents(client), what="the agent is there")
        assert health is not None
        assert health.status == pb.HEALTH_STATUS_OK
        assert {"store", "notifier", "dispatcher", "followups", "event_loop"} <= {c.name for c in health.components}
        assert (health.queued_tasks, health.held_tasks, health.draining) == (1, 0, False)
        assert health.last_sequence > 0
        assert health.version
        names = [metric.name for metric in await client.metrics("agenthive_")]
        assert names == sorted(names)
        assert "agenthive_tasks_queued" in names


async def runner_of(client: Client) -> pb.ComponentHealth | None:
    components = (await client.health()).components
    runners = [each for each in components if each.name.startswith("runner/") and each.status == pb.HEALTH_STATUS_OK]
    return runners[0] if runners else None


async def with_agents(client: Client) -> pb.HealthCheckResponse | None:
    health = await client.health()
    return health if health.agents_in_contact else None
