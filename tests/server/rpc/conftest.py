"""A real kernel on a memory store behind a real port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import grpc
import pytest
from agenthive.v1 import (
    blob_service_pb2_grpc,
    messaging_service_pb2_grpc,
    orchestrator_service_pb2_grpc,
    plugin_service_pb2_grpc,
    worker_service_pb2_grpc,
)
from agenthive_server.events.log import EventLog
from agenthive_server.events.notifier import LocalNotifier
from agenthive_server.events.subscription import TakenSnapshot
from agenthive_server.events.subscriptions import Subscriptions
from agenthive_server.kernel.agents import Agent
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.health import Health, Reading, Report, Status
from agenthive_server.kernel.members import Member
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.tasks import Task
from agenthive_server.plugin.api import Policy
from agenthive_server.plugin.standing import PluginReport
from agenthive_server.rpc.adapter import Adapter
from agenthive_server.rpc.agents import AgentMethods
from agenthive_server.rpc.blobs import BlobMethods
from agenthive_server.rpc.builtin import BuiltIn
from agenthive_server.rpc.chain import Entry, Switch, build_chain
from agenthive_server.rpc.convert.events import event_bytes
from agenthive_server.rpc.health import Board, Facts, ReportMethods
from agenthive_server.rpc.messaging import MessagingMethods
from agenthive_server.rpc.orchestrator import Services, add_services
from agenthive_server.rpc.plugins import NoPlugins, PluginMethods
from agenthive_server.rpc.policy import POLICIES
from agenthive_server.rpc.server import Listening, Server
from agenthive_server.rpc.stream import StreamMethods, snapshot_events
from agenthive_server.rpc.tasks import TaskMethods
from agenthive_server.rpc.worker import WorkerMethods
from agenthive_server.testing.hive import Hive, open_hive
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships without types


class Failed(NamedTuple):
    """An error as a program sees it."""

    code: grpc.StatusCode
    reason: str
    text: str
    metadata: dict[str, str]
    details: dict[str, Any]
    trailing: dict[str, Any]


def explain(error: grpc.aio.AioRpcError) -> Failed:
    """Take an error apart; every one has to be typed."""
    trailing = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    details = {}
    for entry in status.details:
        name = entry.type_url.rpartition(".")[2]
        detail = getattr(error_details_pb2, name)()
        assert entry.Unpack(detail)
        details[name] = detail
    info = details["ErrorInfo"]
    assert info.domain == "agenthive"
    return Failed(error.code(), info.reason, status.message, dict(info.metadata), details, trailing)


async def read_all(call: Any) -> None:
    """Read a stream to its end."""
    while await call.read() is not grpc.aio.EOF:
        pass


@pytest.fixture
def failure() -> Callable[[Any], Any]:
    """Await a call that has to fail; returns the error taken apart."""

    async def fails(call: Any) -> Failed:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (read_all(call) if hasattr(call, "read") else call)
        return explain(caught.value)

    return fails


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Let the event loop run until a condition holds."""

    async def wait(condition: Callable[[], object]) -> None:
        while not condition():  # noqa: ASYNC110 - what is waited for rings no bell
            await asyncio.sleep(0)

    return wait


class Output:
    """Writes down the output it is given."""

    def __init__(self) -> None:
        self.chunks: list[tuple[str, int, int, bytes, str]] = []

    def append(
        self, namespace: str, session_id: str, task_id: str, epoch: int, offset: int, data: bytes, stream: str
    ) -> None:
        self.chunks.append((task_id, epoch, offset, data, stream))


class Installed(NoPlugins):
    """Plugins as the test says; nobody switches them."""

    def __init__(self) -> None:
        self.plugins: list[PluginReport] = []

    def reports(self) -> list[PluginReport]:
        return self.plugins

    def report(self, name: str) -> PluginReport:
        return next((each for each in self.plugins if each.name == name), None) or super().report(name)


class Edge:
    """The edge of a hive, as a whole and in parts, and a channel to it."""

    def __init__(self, hive: Hive) -> None:
        self.hive = hive
        kernel, clock = hive.kernel, hive.clock
        self.notifier = LocalNotifier(clock)
        self.log = EventLog(hive.store, event_bytes)
        self.subscriptions = Subscriptions(self.log, self.notifier, clock)
        kernel.observers.append(self.follow)
        self.built_in = BuiltIn(clock=clock, new_id=lambda: "edge-test")
        self.switch = Switch(build_chain(self.built_in.interceptors))
        self.adapter = Adapter(self.switch)
        self.board = Board()
        self.output = Output()
        self.installed = Installed()
        self.health = Health(clock)
        self.readings = [("store", Reading(Status.OK, latency=0.25)), ("notifier", Reading(Status.DEGRADED, "away"))]
        self.health.add(lambda: self.readings)
        self.members: list[Member] = []
        self.worker_methods = WorkerMethods(kernel.sessions, self.output, clock)
        self.messaging_methods = MessagingMethods(kernel.messages)
        self.services = Services(
            agents=AgentMethods(kernel.agents),
            tasks=TaskMethods(kernel.tasks, kernel.queries),
            stream=StreamMethods(self.subscriptions, self.snapshot),
            report=ReportMethods(self.report, self.facts, [self.built_in.metrics, self.worker_methods.metrics]),
            worker=self.worker_methods,
            messaging=self.messaging_methods,
            blobs=BlobMethods(hive.store, clock, most_bytes=8 * 1024 * 1024),
            plugins=PluginMethods(self.installed),
        )
        add_services(self.adapter, self.services, self.board)
        self.board.serve(serving=True)
        self.server = Server(self.adapter, Listening(addresses=("127.0.0.1:0",)))
        self.address = f"127.0.0.1:{self.server.ports[0]}"
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.channel = channel = grpc.aio.insecure_channel(self.address, options=options)
        self.orchestrator: Any = orchestrator_service_pb2_grpc.OrchestratorServiceStub(channel)
        self.worker: Any = worker_service_pb2_grpc.WorkerServiceStub(channel)
        self.messaging: Any = messaging_service_pb2_grpc.MessagingServiceStub(channel)
        self.blobs: Any = blob_service_pb2_grpc.BlobServiceStub(channel)
        self.plugins: Any = plugin_service_pb2_grpc.PluginServiceStub(channel)

    @staticmethod
    def payload(data: bytes) -> Payload:
        return Payload(data=data)

    def follow(self, events: Sequence[Event]) -> None:
        self.log.append(events)
        self.notifier.ring(self.log.head)

    def snapshot(self, namespace: str | None) -> TakenSnapshot:
        kernel = self.hive.kernel
        agents = [agent for agent in kernel.memory.all(Agent) if namespace in (None, agent.namespace)]
        tasks = [task for task in kernel.memory.all(Task) if namespace in (None, task.namespace)]
        tasks = [task for task in tasks if not task.terminal]
        return self.log.head, snapshot_events([(a, kernel.agents.shown(a)) for a in agents], tasks)

    def report(self, alone: bool) -> Report:
        return self.health.report("notifier" if alone else "")

    def facts(self, alone: bool) -> Facts:
        facts = Facts(version="1.2.3", start_time=self.hive.clock.now(), queued_tasks=self.hive.kernel.pool.queued)
        members = self.members[:1] if alone else self.members
        return replace(facts, replica="r-1", members=members, holders={"dispatcher": "r-2", "a": ""})

    def plug(self, *interceptors: Any) -> None:
        """Add interceptors inside of those that are built in, for calls that begin from now on."""
        entries = [Entry(interceptor, "test") for interceptor in interceptors]
        self.switch.current = build_chain(self.built_in.interceptors, entries)

    def serve(self, service: Any, *parts: object, **policies: Policy) -> None:
        """Answer for a service by other methods, with other policies for some of them."""
        rows = dict(POLICIES)
        for method, policy in policies.items():
            rows[f"/{service.full_name}/{method}"] = policy
        self.adapter.remove(service.full_name)
        self.adapter.add(service, parts, rows)

    def raw(self, path: str, message: bytes | Message = b"", **options: Any) -> Any:
        """Call a method with bytes; the answer comes as bytes."""
        data = message if isinstance(message, bytes) else message.SerializeToString()
        call: Any = self.channel.unary_unary(path)
        return call(data, **options)


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with open_hive() as hive:
        edge = Edge(hive)
        await edge.log.open()
        await edge.server.start()
        async with edge.channel:
            yield edge
        await edge.server.stop(0)


@pytest.fixture(scope="session")
def make_edge() -> Callable[[Hive], Edge]:
    """Make the edge of a hive without starting its server."""
    return Edge
