"""Health from one source: the board for load balancers (grpc.health.v1), the report for people (HealthCheck)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agenthive.v1 import orchestrator_service_pb2 as pb

from agenthive_server.kernel.errors import NotFound
from agenthive_server.kernel.health import Report
from agenthive_server.kernel.members import Member
from agenthive_server.plugin.api import Call
from agenthive_server.telemetry import Sample

from . import validate
from .convert.health import STATUSES, component_message, replica_message
from .convert.values import set_time
from .wellknown import HealthCheckResponse, HealthListResponse

LIVENESS: Final = "liveness"
READINESS: Final = "readiness"
_Status: Final = HealthCheckResponse


class Board:
    """Which names may receive traffic: the empty one (the server), each public service, `liveness` and `readiness`."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {"": False, READINESS: False, LIVENESS: True}
        self._off: set[str] = set()
        self._watchers: set[asyncio.Future[None]] = set()
        self._draining = False
        self.closed = False

    @property
    def serving(self) -> bool:
        """Whether the server may receive traffic."""
        return self._serving[""]

    @property
    def draining(self) -> bool:
        """Whether the server stops, and will not serve again."""
        return self._draining

    def add(self, services: Iterable[str]) -> None:
        """Show services; they serve when the server does."""
        for name in services:
            self._serving[name] = self.serving and name not in self._off
        self._tell()

    def switch(self, service: str, *, on: bool) -> None:
        """Show one service, for example that of a plugin, as serving with the server or not at all."""
        self._off.discard(service) if on else self._off.add(service)
        self._serving[service] = on and self.serving
        self._tell()

    def serve(self, *, serving: bool) -> None:
        """Show that the server may receive traffic, or not. Once draining, it never may again."""
        serving = serving and not self._draining
        if serving == self.serving:
            return
        for name in self._serving:
            if name != LIVENESS:
                self._serving[name] = serving and name not in self._off
        self._tell()

    def drain(self) -> None:
        """Show NOT_SERVING everywhere but for liveness, from now on."""
        self.serve(serving=False)
        self._draining = True

    def close(self) -> None:
        """Let those who watch go: nothing changes any more. An open watch would hold up the end until it is broken."""
        self.closed = True
        self._tell()

    def find(self, name: str) -> bool | None:
        """Return whether a name serves, None for an unknown name."""
        return self._serving.get(name)

    def all(self) -> dict[str, bool]:
        """Return every name and whether it serves."""
        return dict(self._serving)

    async def change(self) -> None:
        """Wait until anything on the board has changed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.add(future)
        try:
            await future
        finally:
            self._watchers.discard(future)

    def _tell(self) -> None:
        for future in self._watchers:
            if not future.done():
                future.set_result(None)


class HealthMethods:
    """`grpc.health.v1.Health`."""

    def __init__(self, board: Board) -> None:
        self._board = board

    async def Check(self, request: Any, call: Call) -> Any:
        """Say whether a name serves; NOT_FOUND when it is unknown."""
        serving = self._board.find(request.service)
        if serving is None:
            name = request.service[:128]
            raise NotFound(f"no service {name!r}", reason="SERVICE_NOT_FOUND", metadata={"name": name})
        return _response(serving)

    async def List(self, request: Any, call: Call) -> Any:
        """Say for every name whether it serves."""
        answer = HealthListResponse()
        for name, serving in self._board.all().items():
            answer.statuses[name].CopyFrom(_response(serving))
        return answer

    async def Watch(self, request: Any, call: Call) -> AsyncIterator[Any]:
        """Say whether a name serves, now and whenever that changes, until the server stops; a name may become known."""
        told: object = ...
        while True:
            serving = self._board.find(request.service)
            if serving is not told:
                told = serving
                yield _response(serving)
            elif self._board.closed:
                return
            else:
                await self._board.change()


def _response(serving: bool | None) -> Any:
    if serving is None:
        return _Status(status=_Status.SERVICE_UNKNOWN)
    return _Status(status=_Status.SERVING if serving else _Status.NOT_SERVING)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What HealthCheck tells beside the report."""

    version: str = ""
    start_time: float = 0.0
    agents_in_contact: int = 0
    queued_tasks: int = 0
    held_tasks: int = 0
    last_sequence: int = 0
    draining: bool = False
    # Which replica this is, all that are told of, and who acts in which role; empty where there is only one.
    replica: str = ""
    members: Sequence[Member] = ()
    holders: Mapping[str, str] = field(default_factory=dict)


class ReportMethods:
    """OrchestratorService: HealthCheck and GetMetrics."""

    def __init__(
        self,
        report: Callable[[bool], Report],
        facts: Callable[[bool], Facts],
        metrics: Sequence[Callable[[], Iterable[Sample]]],
    ) -> None:
        """`report` and `facts` are asked whether this server alone is wanted."""
        self._report = report
        self._facts = facts
        self._metrics = metrics

    async def HealthCheck(self, request: pb.HealthCheckRequest, call: Call) -> pb.HealthCheckResponse:
        """Say how the server and its components are."""
        alone = request.this_replica_only
        report, facts = self._report(alone), self._facts(alone)
        response = pb.HealthCheckResponse(
            version=facts.version,
            agents_in_contact=facts.agents_in_contact,
            queued_tasks=facts.queued_tasks,
            held_tasks=facts.held_tasks,
            last_sequence=facts.last_sequence,
            draining=facts.draining,
            status=STATUSES[report.status],
            components=map(component_message, report.components),
            replica_id=facts.replica,
            replicas=map(replica_message, facts.members),
            roles=[pb.RoleHolder(role=role, replica_id=facts.holders[role]) for role in sorted(facts.holders)],
        )
        set_time(response.start_time, facts.start_time)
        return response

    async def GetMetrics(self, request: pb.GetMetricsRequest, call: Call) -> pb.GetMetricsResponse:
        """Return counters and gauges, by name."""
        prefix = validate.text(request.name_prefix, "name_prefix")
        samples = [sample for source in self._metrics for sample in source() if sample.name.startswith(prefix)]
        response = pb.GetMetricsResponse()
        for sample in sorted(samples):
            metric = response.metrics.add(name=sample.name, value=sample.value)
            for name, value in sample.labels:
                metric.labels.add(name=name, value=value)
        return response
