"""A kernel in a box with the plugin's state in it, and a served hive with the plugin on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from agenthive.v1 import production_service_pb2_grpc as rpc
from agenthive_plugins.production.desk import Desk
from agenthive_plugins.production.egress import Egress
from agenthive_plugins.production.ledger import Ledger
from agenthive_plugins.production.outbox import Outbox
from agenthive_plugins.production.plugin import registration
from agenthive_plugins.production.series import SeriesSet
from agenthive_plugins.production.webhook import Webhook, verify
from agenthive_server.app import App
from agenthive_server.plugin.api import Audience, Call, ManualClock, PluginMetrics, Policy
from agenthive_server.plugin.registry import Registry
from agenthive_server.plugin.state import PluginState
from agenthive_server.testing.harness import open_app
from agenthive_server.testing.hive import Hive, open_hive

KEY = b"0123456789abcdef"


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


@pytest.fixture
def clock(hive: Hive) -> ManualClock:
    return hive.clock


@pytest.fixture
def state(hive: Hive) -> PluginState:
    return PluginState(hive.kernel.state, "production")


@pytest.fixture
def ledger(state: PluginState, clock: ManualClock) -> Ledger:
    return Ledger(state, clock)


@pytest.fixture
def series(clock: ManualClock) -> SeriesSet:
    return SeriesSet(clock.now())


@pytest.fixture
def new_id() -> Callable[[], str]:
    numbers = itertools.count(1)
    return lambda: f"{next(numbers):032x}"


@pytest.fixture
def log() -> logging.Logger:
    return logging.getLogger("plugin.production")


class Nowhere:
    """The connection of a call that came from nowhere."""

    def peer(self) -> str:
        return "nowhere"

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}


@pytest.fixture
def call() -> Callable[..., Call]:
    def made(
        method: str = "/agenthive.v1.ProductionService/X", *, principal: str = "", namespace: str = "default"
    ) -> Call:
        return Call(method, Policy(audience=Audience.OPERATOR), Nowhere(), (), namespace, principal=principal)

    return made


@dataclass
class Desks:
    """A desk, what was published, and its outbox."""

    desk: Desk
    outbox: Outbox
    published: list[str] = field(default_factory=list)
    troubles: dict[str, str] = field(default_factory=dict)
    metrics: PluginMetrics = field(default_factory=lambda: PluginMetrics("production"))

    def sent(self) -> dict[tuple[str, str], float]:
        """Attempts by webhook and outcome."""
        samples = self.metrics.samples()
        return {(s.labels[0][1], s.labels[1][1]): s.value for s in samples if s.name.endswith("attempts_total")}


@pytest.fixture
def desks(ledger: Ledger, state: PluginState, clock: ManualClock, new_id: Callable[[], str]) -> Callable[..., Desks]:
    """Make a desk with these webhooks."""

    def made(webhooks: Iterable[Webhook] = (), egress: Egress | None = None) -> Desks:
        metrics, troubles, published = PluginMetrics("production"), {}, []  # type: ignore[var-annotated]

        async def publish(notice: Any) -> None:
            published.append(f"{notice.change.value} {notice.alert.title}")

        outbox = Outbox(
            webhooks,
            egress or Egress(),
            state,
            clock,
            new_id=new_id,
            chance=lambda: 0.5,
            sent=metrics.counter("webhook_attempts_total", ("webhook", "outcome")),
            told=troubles.__setitem__,
        )
        desk = Desk(ledger, outbox, clock, new_id=new_id, publish=publish)
        return Desks(desk, outbox, published, troubles, metrics)

    return made


@dataclass
class Receiver:
    """A web server that takes webhooks, checks their signatures, and answers as told."""

    port: int = 0
    status: int = 204
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    unsigned: int = 0
    now: Callable[[], float] = lambda: 0.0

    def webhook(self, name: str = "ops", **fields: Any) -> Webhook:
        return Webhook(name=name, url=f"http://127.0.0.1:{self.port}/hook", key=KEY, **fields)

    @property
    def types(self) -> list[str]:
        """What was told, in order."""
        return [body["type"] for body in self.bodies]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:] if line)
        }
        body = await reader.readexactly(int(headers["content-length"]))
        if self.status < 300:
            self.unsigned += not verify(KEY, headers, body, self.now())
            self.bodies.append(json.loads(body))
            self.headers.append(headers)
        writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()


@asynccontextmanager
async def open_receiver(now: Callable[[], float]) -> AsyncIterator[Receiver]:
    receiver = Receiver(now=now)
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await receiver.serve(reader, writer)
            writer.close()

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    receiver.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield receiver
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


@pytest.fixture
async def receiver(clock: ManualClock) -> AsyncIterator[Receiver]:
    """A receiver on the clock of the box."""
    async with open_receiver(clock.now) as receiver:
        yield receiver


@pytest.fixture
async def real_receiver() -> AsyncIterator[Receiver]:
    """A receiver on the machine's clock."""
    from agenthive_server.plugin.api import SystemClock

    async with open_receiver(SystemClock().now) as receiver:
        yield receiver


@dataclass
class Served:
    """A server with the plugin on, and its service."""

    app: App
    stub: rpc.ProductionServiceAsyncStub

    async def reason(self, call: Awaitable[Any]) -> tuple[str, str]:
        """Return code and reason of a call that is refused."""
        from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # ships without types
        from grpc_status import rpc_status  # type: ignore[import-untyped]  # ships without types

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        info = error_details_pb2.ErrorInfo()
        status = rpc_status.from_call(caught.value)
        for detail in status.details:
            if detail.Is(info.DESCRIPTOR):
                detail.Unpack(info)
        return caught.value.code().name, info.reason


@pytest.fixture
def serve() -> Callable[..., Any]:
    """Serve a hive with the plugin on; settings of the plugin by name."""

    @asynccontextmanager
    async def served(data_dir: Any = None, **config: Any) -> AsyncIterator[Served]:
        registry = Registry((registration,))
        quiet = {"backup_enabled": False, **config}
        async with (
            open_app(data_dir, registry=registry, plugins__enabled=["production"], plugins__production=quiet) as app,
            grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel,
        ):
            yield Served(app, rpc.ProductionServiceStub(channel))

    return served
