"""Services of plugins: there while the plugin is on, and otherwise a sentence that names it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from agenthive.client import Client
from agenthive.errors import FailedPrecondition
from agenthive_server.app import App
from agenthive_server.plugin.api import (
    Audience,
    BadRequest,
    Call,
    Load,
    Outcome,
    Plugin,
    Policy,
    Registration,
    Service,
    Stage,
)
from agenthive_server.rpc import wellknown
from agenthive_server.testing.waiting import eventually
from google.protobuf import descriptor_pool, wrappers_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships without types

Make = Callable[..., Registration[Any]]
Serve = Callable[..., Any]

NAME = "agenthive.test.v1.EchoService"


def describe() -> Any:
    """Return the descriptor of a service with a method of each shape."""
    pool = descriptor_pool.Default()
    try:
        return pool.FindServiceByName(NAME)
    except KeyError:
        pass
    file = FileDescriptorProto(
        name="agenthive/test/v1/echo_service.proto", package="agenthive.test.v1", syntax="proto3"
    )
    file.dependency.append("google/protobuf/wrappers.proto")
    service = file.service.add(name="EchoService")
    for method, client, server in (
        ("Echo", False, False),
        ("Count", False, True),
        ("Sum", True, False),
        ("Talk", True, True),
    ):
        service.method.add(
            name=method,
            input_type=".google.protobuf.Int64Value",
            output_type=".google.protobuf.Int64Value",
            client_streaming=client,
            server_streaming=server,
        )
    wrappers_pb2.DESCRIPTOR.serialized_pb  # noqa: B018 - it has to be in the pool
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(NAME)


Value = wrappers_pb2.Int64Value
STREAM = Policy(audience=Audience.VIEWER, load=Load.STREAM, default_deadline=0, longest_deadline=0, brief=False)
POLICIES = {
    f"/{NAME}/Echo": Policy(audience=Audience.VIEWER),
    f"/{NAME}/Count": STREAM,
    f"/{NAME}/Sum": STREAM,
    f"/{NAME}/Talk": STREAM,
}


class Echo:
    """The methods."""

    async def Echo(self, request: Value, call: Call) -> Value:
        if request.value == 13:
            raise RuntimeError("thirteen")
        if request.value < 0:
            raise BadRequest("negative", field="value")
        return Value(value=request.value)

    async def Count(self, request: Value, call: Call) -> AsyncIterator[Value]:
        for number in range(request.value):
            yield Value(value=number)
        await asyncio.Event().wait()

    async def Sum(self, requests: AsyncIterator[Value], call: Call) -> Value:
        return Value(value=sum([request.value async for request in requests]))

    async def Talk(self, stream: Any, call: Call) -> None:
        async for request in stream:
            await stream.write(Value(value=-request.value))


@pytest.fixture
def echo(make: Make) -> Registration[Any]:
    plugin = Plugin(services=(Service(describe(), (Echo(),)),))
    return make("echo", lambda ctx: plugin, services=(NAME,), policies=POLICIES)


class Calls:
    """The methods as a client sees them."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        codec: Any = {"request_serializer": Value.SerializeToString, "response_deserializer": Value.FromString}
        self.echo: Any = channel.unary_unary(f"/{NAME}/Echo", **codec)
        self.count: Any = channel.unary_stream(f"/{NAME}/Count", **codec)
        self.sum: Any = channel.stream_unary(f"/{NAME}/Sum", **codec)
        self.talk: Any = channel.stream_stream(f"/{NAME}/Talk", **codec)
        self.health: Any = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=lambda name: b"\x0a" + bytes([len(name)]) + name.encode(),
            response_deserializer=wellknown.HealthCheckResponse.FromString,
        )
        self.reflect = {
            version: channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=wellknown.ReflectionRequest.SerializeToString,
                response_deserializer=wellknown.ReflectionResponse.FromString,
            )
            for version in ("v1", "v1alpha")
        }

    async def services(self, version: str) -> list[str]:
        """Return what reflection lists."""
        call: Any = self.reflect[version]()
        await call.write(wellknown.ReflectionRequest(list_services=""))
        answer = await call.read()
        call.cancel()
        return [each.name for each in answer.list_services_response.service]

    async def serving(self) -> int:
        """Return what health says of the service."""
        return int((await self.health(NAME)).status)


def calls(app: App) -> Calls:
    return Calls(grpc.aio.insecure_channel(f"127.0.0.1:{app.port}"))


def reason(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str]]:
    """Return the reason and the metadata of an error."""
    raw = dict(error.trailing_metadata())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(raw).details:
        if detail.Unpack(info):
            return info.reason, dict(info.metadata)
    raise AssertionError("an error without a reason")


async def test_a_service_is_there_while_its_plugin_is_on(echo: Registration[Any], serve: Serve) -> None:
    async with serve(echo) as (app, client):
        rpc = calls(app)
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rpc.echo(Value(value=1))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert reason(caught.value) == ("PLUGIN_DISABLED", {"plugin": "echo"})
            assert "belongs to the plugin echo, which is not switched on; enable it" in str(caught.value.details())
            assert await rpc.serving() == wellknown.HealthCheckResponse.NOT_SERVING
            await client.enable_plugin("echo")
            assert (await rpc.echo(Value(value=7))).value == 7
            assert await rpc.serving() == wellknown.HealthCheckResponse.SERVING
            for version in ("v1", "v1alpha"):
                assert NAME in await rpc.services(version)
            await client.disable_plugin("echo")
            assert NAME not in await rpc.services("v1")


async def test_methods_of_every_shape_work_and_are_counted(echo: Registration[Any], serve: Serve) -> None:
    async with serve(echo, plugins__enabled=["echo"]) as (app, client):
        rpc = calls(app)
        counting = rpc.count(Value(value=3))
        assert [(await counting.read()).value for _ in range(3)] == [0, 1, 2]
        counting.cancel()
        assert (await rpc.sum(Value(value=n) for n in range(5))).value == 10
        talking = rpc.talk()
        await talking.write(Value(value=4))
        assert (await talking.read()).value == -4
        await talking.done_writing()
        assert await talking.read() is grpc.aio.EOF
        (act,) = (await client.get_plugin("echo")).acts
        assert (act.name, act.call_count) == (NAME, 3)


async def test_what_a_method_raises_is_its_callers_affair_and_switches_nothing_off(
    echo: Registration[Any], serve: Serve
) -> None:
    async with serve(echo, plugins__enabled=["echo"]) as (app, client):
        rpc = calls(app)
        for _ in range(10):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rpc.echo(Value(value=13))
            assert caught.value.code() is grpc.StatusCode.INTERNAL
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rpc.echo(Value(value=-1))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        (act,) = (await client.get_plugin("echo")).acts
        assert (act.call_count, act.failure_count) == (11, 10)
        assert (await rpc.echo(Value(value=1))).value == 1


async def test_streams_in_flight_end_with_the_reason_when_the_plugin_is_switched_off(
    echo: Registration[Any], serve: Serve
) -> None:
    async with serve(echo, plugins__enabled=["echo"]) as (app, client):
        rpc = calls(app)
        counting = rpc.count(Value(value=1))
        await counting.read()
        talking = rpc.talk()
        await talking.write(Value(value=4))
        await talking.read()
        await client.disable_plugin("echo")
        for stream in (counting, talking):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert reason(caught.value) == ("PLUGIN_DISABLED", {"plugin": "echo"})


async def test_calls_in_flight_finish_before_their_plugin_is_closed(make: Make, serve: Serve, journal: Any) -> None:
    gate, inside = asyncio.Event(), asyncio.Event()

    class Slow(Echo):
        async def Echo(self, request: Value, call: Call) -> Value:
            inside.set()
            await gate.wait()
            journal("answered")
            return request

    plugin = Plugin(services=(Service(describe(), (Slow(),)),))
    slow = make("echo", lambda ctx: plugin, services=(NAME,), policies=POLICIES)
    async with serve(slow, plugins__enabled=["echo"]) as (app, client):
        asked = asyncio.ensure_future(calls(app).echo(Value(value=5)))
        await inside.wait()
        off = asyncio.ensure_future(client.disable_plugin("echo"))
        await eventually(lambda: app.plugins._work, what="the switch is under way")
        assert not off.done()
        gate.set()
        await off
        assert (await asked).value == 5
        assert journal.lines == ["open echo 1", "answered", "close echo 1"]


class SeesPolicies:
    """Writes down for whom each call is."""

    stage = Stage.IDENTIFY

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def before(self, call: Call) -> None:
        self.seen.append((call.method, call.policy.audience.value))

    def after(self, call: Call, outcome: Outcome) -> None:
        """Do nothing."""


async def test_the_policies_a_plugin_brings_are_those_of_its_calls(
    echo: Registration[Any], make: Make, serve: Serve
) -> None:
    sees = SeesPolicies()
    watch = make("watch", lambda ctx: Plugin(interceptors=(sees,)))
    async with serve(echo, watch, plugins__enabled=["echo", "watch"]) as (app, _):
        await calls(app).echo(Value(value=1))
        assert sees.seen == [(f"/{NAME}/Echo", "viewer")]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"services": (NAME,), "policies": {f"/{NAME}/Echo": STREAM}}, "no policy for Count, Sum, Talk"),
        ({}, "and is registered with"),
    ],
)
async def test_a_service_without_policies_or_registration_cannot_be_opened(
    make: Make, serve: Serve, record: dict[str, Any], why: str
) -> None:
    plugin = Plugin(services=(Service(describe(), (Echo(),)),))
    async with serve(make("echo", lambda ctx: plugin, **record)) as (_, client):
        with pytest.raises(FailedPrecondition, match=why):
            await client.enable_plugin("echo")
        assert isinstance(client, Client)
