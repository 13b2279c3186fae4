"""Binding, and stopping in the order that loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive.v1 import orchestrator_service_pb2_grpc
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.plugin.api import Call
from agenthive_server.rpc.adapter import Adapter
from agenthive_server.rpc.chain import Switch
from agenthive_server.rpc.server import CannotListen, Listening, Server, drain

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Edge

SERVICE = pb.DESCRIPTOR.services_by_name["OrchestratorService"]


class Methods:
    """One method that waits until it may end."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.may_end = asyncio.Event()

    async def GetTask(self, request: pb.GetTaskRequest, call: Call) -> pb.GetTaskResponse:
        self.entered.set()
        await self.may_end.wait()
        return pb.GetTaskResponse()


@pytest.mark.parametrize("address", ["no-such-host.invalid:1", "256.0.0.1:1", "127.0.0.1:99999", "127.0.0.1", "a:b"])
async def test_an_address_that_is_none_is_told_in_a_sentence(address: str) -> None:
    with pytest.raises(CannotListen, match="cannot listen on"):
        Server(Adapter(Switch()), Listening(addresses=(address,)))


async def test_a_port_in_use_is_an_error_and_not_shared(edge: Edge) -> None:
    with pytest.raises(CannotListen, match=f"{edge.address}: Address already in use"):
        Server(Adapter(Switch()), Listening(addresses=(edge.address,)))


async def test_a_server_listens_on_several_addresses_and_on_a_socket(edge: Edge, tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/hive.sock"
    listening = Listening(addresses=("127.0.0.1:0", path), max_connection_age=300.0, keepalive=None)
    server = Server(edge.adapter, listening)
    await server.start()
    for address in (f"127.0.0.1:{server.ports[0]}", path):
        async with grpc.aio.insecure_channel(address) as channel:
            call: Any = channel.unary_unary("/agenthive.v1.OrchestratorService/HealthCheck")
            assert await call(b"")
    await server.stop(0)


async def test_a_connection_that_is_old_is_left_by_new_calls_and_not_by_a_stream_on_it(edge: Edge) -> None:
    server = Server(edge.adapter, Listening(addresses=("127.0.0.1:0",), max_connection_age=0.2))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports[0]}") as channel:
        orchestrator: Any = orchestrator_service_pb2_grpc.OrchestratorServiceStub(channel)
        stream = orchestrator.StreamEvents(pb.StreamEventsRequest())
        await stream.read()
        ready = grpc.ChannelConnectivity.READY
        while (state := channel.get_state()) is ready:
            await channel.wait_for_state_change(state)
        await orchestrator.GetMetrics(pb.GetMetricsRequest())
        assert channel.get_state() is ready
        await edge.hive.worker("a")
        assert (await stream.read()).events
        stream.cancel()
    await server.stop(0)


async def test_a_drain_goes_step_by_step(edge: Edge) -> None:
    methods, steps = Methods(), []
    edge.serve(SERVICE, methods)
    clock = ManualClock()
    ends: list[Callable[[], None]] = [lambda: steps.append("waits"), lambda: steps.append("sessions")]
    in_flight = asyncio.ensure_future(edge.orchestrator.GetTask(pb.GetTaskRequest()))
    await methods.entered.wait()
    draining = asyncio.create_task(
        drain(
            edge.server,
            edge.board,
            clock,
            delay=5.0,
            grace=30.0,
            end_streams=ends,
            give_up=lambda: steps.append("doubts"),
            hurry=asyncio.Event(),
        )
    )
    await asyncio.sleep(0)
    assert edge.board.find("") is False
    # Calls are served on while balancers notice.
    assert await edge.raw("/grpc.health.v1.Health/Check")
    assert steps == []
    await clock.advance(5.0)
    assert steps == ["waits", "sessions"]
    assert not draining.done()
    methods.may_end.set()
    assert await in_flight == pb.GetTaskResponse()
    await draining
    assert steps == ["waits", "sessions", "doubts"]


async def drained(
    edge: Edge, hurry: asyncio.Event, *, delay: float, grace: float, give_up: Callable[[], None] = lambda: None
) -> None:
    clock = ManualClock()
    await drain(edge.server, edge.board, clock, delay=delay, grace=grace, end_streams=(), give_up=give_up, hurry=hurry)


class InDoubt(Methods):
    """Waits for what became of a commit, whoever goes away meanwhile."""

    async def GetTask(self, request: pb.GetTaskRequest, call: Call) -> pb.GetTaskResponse:
        self.entered.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            await self.may_end.wait()
            raise
        return pb.GetTaskResponse()


async def test_who_waits_for_a_database_that_is_away_is_waited_for_no_longer_than_the_grace(edge: Edge) -> None:
    methods = InDoubt()
    edge.serve(SERVICE, methods)
    in_flight = asyncio.ensure_future(edge.orchestrator.GetTask(pb.GetTaskRequest()))
    await methods.entered.wait()
    async with asyncio.timeout(20):
        await drained(edge, asyncio.Event(), delay=0.0, grace=0.1, give_up=methods.may_end.set)
    with pytest.raises(grpc.aio.AioRpcError):
        await in_flight


async def test_a_second_signal_skips_to_the_end(edge: Edge) -> None:
    methods, hurry = Methods(), asyncio.Event()
    edge.serve(SERVICE, methods)
    in_flight = asyncio.ensure_future(edge.orchestrator.GetTask(pb.GetTaskRequest()))
    await methods.entered.wait()
    draining = asyncio.create_task(drained(edge, hurry, delay=5.0, grace=600.0))
    await asyncio.sleep(0)
    hurry.set()
    await draining
    with pytest.raises(grpc.aio.AioRpcError):
        await in_flight
