"""All services of the server: what the methods of each are made of."""

from __future__ import annotations

from dataclasses import dataclass

from agenthive.v1 import (
    blob_service_pb2,
    messaging_service_pb2,
    orchestrator_service_pb2,
    plugin_service_pb2,
    worker_service_pb2,
)
from google.protobuf.descriptor import ServiceDescriptor

from . import wellknown
from .adapter import Adapter
from .agents import AgentMethods
from .blobs import BlobMethods
from .health import Board, HealthMethods, ReportMethods
from .messaging import MessagingMethods
from .plugins import PluginMethods
from .policy import POLICIES
from .reflection import ReflectionMethods
from .stream import StreamMethods
from .tasks import TaskMethods
from .worker import WorkerMethods


@dataclass(frozen=True, kw_only=True)
class Services:
    """The methods of every public service; OrchestratorService is made of the first four."""

    agents: AgentMethods
    tasks: TaskMethods
    stream: StreamMethods
    report: ReportMethods
    worker: WorkerMethods
    messaging: MessagingMethods
    blobs: BlobMethods
    plugins: PluginMethods


def add_services(adapter: Adapter, services: Services, board: Board, *, reflect: bool = True) -> None:
    """Let an adapter answer for all services, and show them on the board."""
    s = services
    orchestrator = (s.agents, s.tasks, s.stream, s.report)
    parts: list[tuple[ServiceDescriptor, tuple[object, ...]]] = [
        (orchestrator_service_pb2.DESCRIPTOR.services_by_name["OrchestratorService"], orchestrator),
        (worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"], (s.worker,)),
        (messaging_service_pb2.DESCRIPTOR.services_by_name["MessagingService"], (s.messaging,)),
        (blob_service_pb2.DESCRIPTOR.services_by_name["BlobService"], (s.blobs,)),
        (plugin_service_pb2.DESCRIPTOR.services_by_name["PluginService"], (s.plugins,)),
        (wellknown.HEALTH, (HealthMethods(board),)),
    ]
    if reflect:
        methods = ReflectionMethods(lambda: adapter.services)
        parts += [(wellknown.REFLECTION_V1, (methods,)), (wellknown.REFLECTION_V1ALPHA, (methods,))]
    for descriptor, implementations in parts:
        adapter.add(descriptor, implementations, POLICIES)
    board.add(adapter.services)
