"""The plugin's own state on a memory store, and whole servers with the plugin on, with a clock that tests can shift."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from agenthive.v1 import security_service_pb2 as pb
from agenthive.v1 import worker_service_pb2
from agenthive_server.app import App
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.plugin.state import PluginState
from agenthive_server.settings import load
from agenthive_server.testing.hive import Hive, open_hive
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.raw_worker import RawWorker
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships without types

_PLACES = itertools.count()
UNLIMITED = {"plugins.security.limits.per_principal": 0, "plugins.security.limits.per_method": 0}
SERVICES = {
    name.rpartition(".")[2]: name
    for name in (
        "agenthive.v1.OrchestratorService",
        "agenthive.v1.MessagingService",
        "agenthive.v1.BlobService",
        "agenthive.v1.PluginService",
        "agenthive.v1.SecurityService",
    )
}


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


@pytest.fixture
def state(hive: Hive) -> PluginState:
    return PluginState(hive.kernel.state, "security")


class ShiftedClock(SystemClock):
    """The machine's clock, some seconds ahead. Spans pass as fast as ever."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


class Failed(NamedTuple):
    """An error as a program sees it."""

    code: str
    reason: str
    text: str
    metadata: dict[str, str]
    retry_after: float | None


def explain(error: grpc.aio.AioRpcError) -> Failed:
    trailing = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    found = retry_after = None
    for detail in status.details:
        if detail.Unpack(info):
            found = info
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    assert found is not None, "every error is typed"
    return Failed(error.code().name, found.reason, status.message, dict(found.metadata), retry_after)


class Secured:
    """A server with the plugin on, and ways to call it."""

    def __init__(self, app: App, clock: ShiftedClock, folder: Path, channel: grpc.aio.Channel, admin: str = "") -> None:
        self.app = app
        self.clock = clock
        self.folder = folder
        self.channel = channel
        self.target = f"127.0.0.1:{app.port}"
        self.admin = admin or (folder / "plugins/security/admin.token").read_text().strip()

    @staticmethod
    def _method(name: str) -> tuple[str, Any]:
        service, _, method = name.partition("/")
        full = SERVICES[service]
        return f"/{full}/{method}", descriptor_pool.Default().FindServiceByName(full).FindMethodByName(method)

    async def call(
        self, name: str, request: Message | None = None, token: str | None = "", *, namespace: str = "default"
    ) -> Any:
        """Call `Service/Method`; a stream is read to its end. With no token the admin's, with None none."""
        path, method = self._method(name)
        metadata = [("agenthive-namespace", namespace)]
        if token is not None:
            metadata.append(("authorization", f"Bearer {token or self.admin}"))
        request = request if request is not None else GetMessageClass(method.input_type)()
        read = GetMessageClass(method.output_type).FromString
        write = type(request).SerializeToString
        if method.server_streaming:
            call = self.channel.unary_stream(path, write, read)(request, metadata=metadata)
            return [answer async for answer in call]
        return await self.channel.unary_unary(path, write, read)(request, metadata=metadata)

    async def refused(self, name: str, *arguments: Any, **named: Any) -> Failed:
        """Make a call that has to fail."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(name, *arguments, **named)
        return explain(caught.value)

    async def issue(self, principal: str, *roles: int, namespaces: tuple[str, ...] = (), **fields: Any) -> str:
        """Issue a token and return its secret."""
        request = pb.IssueTokenRequest(principal=principal, roles=roles, namespaces=namespaces, **fields)  # type: ignore[arg-type]
        return str((await self.call("SecurityService/IssueToken", request)).secret)

    async def join_token(self, *, namespace: str = "default", **scope: Any) -> str:
        """Issue a join token and return its secret."""
        request = pb.IssueJoinTokenRequest(scope=pb.JoinScope(**scope))
        return str((await self.call("SecurityService/IssueJoinToken", request, namespace=namespace)).secret)

    async def trail(self, **wanted: Any) -> list[pb.AuditRecord]:
        """Return records of the trail, newest first."""
        request = pb.QueryAuditLogRequest(page_size=1_000, filter=pb.AuditFilter(**wanted))
        return list((await self.call("SecurityService/QueryAuditLog", request)).records)

    async def threats(self) -> list[pb.Threat]:
        """Return the threats, newest first."""
        return list((await self.call("SecurityService/ListThreats")).threats)

    async def verify(self) -> pb.VerifyAuditLogResponse:
        """Verify the trail."""
        found: pb.VerifyAuditLogResponse = await self.call("SecurityService/VerifyAuditLog")
        return found

    @asynccontextmanager
    async def stream(self, token: str | None = None, *, namespace: str = "default") -> AsyncIterator[RawWorker]:
        """Open a stream of a session, without a hello."""
        metadata = [("agenthive-namespace", namespace)]
        if token is not None:
            metadata.append(("authorization", f"Bearer {token}"))
        connect = self.channel.stream_stream(
            "/agenthive.v1.WorkerService/Connect",
            worker_service_pb2.ConnectRequest.SerializeToString,
            worker_service_pb2.ConnectResponse.FromString,
        )
        call: Any = connect(metadata=tuple(metadata))
        try:
            yield RawWorker(call)
        finally:
            call.cancel()

    async def join(self, hello: worker_service_pb2.Hello, token: str | None = None, **named: Any) -> Any:
        """Open a session and leave it again; returns the Welcome, or why it was refused."""
        async with self.stream(token, **named) as worker:
            try:
                return await worker.hello(hello)
            except EOFError:
                try:
                    await worker.call.read()
                except grpc.aio.AioRpcError as error:
                    return explain(error)
                raise


@asynccontextmanager
async def opened(
    folder: Path, settings: Mapping[str, object], credentials: grpc.ChannelCredentials | None = None, admin: str = ""
) -> AsyncIterator[Secured]:
    flags: dict[str, object] = {
        "server.listen": "127.0.0.1:0",
        "server.runner": False,
        "server.data_dir": str(folder),
        "plugins.enabled": ["security"],
        **UNLIMITED,
        **settings,
    }
    clock = ShiftedClock()
    app = App(load(flags=flags, environ={}), clock=clock)
    await app.open()
    try:
        target = f"127.0.0.1:{app.port}"
        opening = grpc.aio.insecure_channel(target)
        if credentials is not None:
            opening = grpc.aio.secure_channel(target, credentials)
        async with opening as channel:
            yield Secured(app, clock, folder, channel, admin)
    finally:
        await app.close()


@pytest.fixture
def open_secured(tmp_path: Path) -> Callable[..., Any]:
    """Open a server with the plugin on and more settings, by dotted name with `__` for the dot."""

    def openly(folder: Path | None = None, **settings: object) -> Any:
        made = {f"plugins.security.{name.replace('__', '.')}": value for name, value in settings.items()}
        return opened(folder or tmp_path, made)

    return openly


@pytest.fixture
async def replicas(postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[tuple[Secured, Secured]]:
    """Two servers on one database with the plugin on, each with a folder of its own, rates off."""
    settings = {"server.store": postgres.url(f"security{next(_PLACES)}")}
    async with (
        opened(tmp_path / "one", settings) as one,
        opened(tmp_path / "two", settings, admin=one.admin) as two,
    ):
        yield one, two


@pytest.fixture
def open_tls(tmp_path: Path) -> Callable[..., Any]:
    """Open a server with the plugin on, with settings by dotted name, and a channel with these credentials to it."""

    def openly(settings: Mapping[str, object], credentials: grpc.ChannelCredentials | None = None) -> Any:
        return opened(tmp_path / "data", settings, credentials)

    return openly


@pytest.fixture
async def secured(open_secured: Callable[..., Any]) -> AsyncIterator[Secured]:
    """A server with the plugin on, its data on disk, its rates off."""
    async with open_secured() as served:
        yield served
