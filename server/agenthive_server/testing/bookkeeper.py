"""An agent that notes which of its results the server has acknowledged, and which it refused: neither may change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace

from agenthive.session import Session
from agenthive.v1 import agent_pb2, error_pb2
from agenthive.v1 import worker_service_pb2 as pb

from agenthive_server.testing.task_operations import Report


class Bookkeeper:
    """Takes any task, and has its result at once: the text TASK_ID/LEASE_EPOCH. Its journal is `reports`."""

    def __init__(self, agent_id: str, *, capabilities: Sequence[str] = ("books",), slots: int = 4) -> None:
        """Tell the server of an agent with these capabilities and slots."""
        self.session: Session
        self.reports: dict[tuple[str, int], Report] = {}
        self._agent_id = agent_id
        self._spec = agent_pb2.AgentSpec(capabilities=capabilities, slots=slots)
        self._reporting: set[asyncio.Task[None]] = set()
        self._pending: set[tuple[str, int]] = set()
        self._dropped: set[tuple[str, int]] = set()

    @property
    def acknowledged(self) -> dict[str, tuple[int, str]]:
        """Lease epoch and result of each task whose result was acknowledged."""
        return {
            task_id: (epoch, f"{task_id}/{epoch}")
            for (task_id, epoch), report in self.reports.items()
            if report.acknowledged
        }

    async def run(self, target: str) -> None:
        """Work until cancelled, over any number of sessions."""
        while True:
            self.session = Session(target, self)
            await self.session.run()

    def hello(self) -> pb.Hello:
        """Return the agent."""
        return pb.Hello(agents=[pb.HostedAgent(agent_id=self._agent_id, spec=self._spec)])

    def heartbeat(self) -> pb.Heartbeat:
        """Return nothing: nothing is held for longer than it takes to answer."""
        return pb.Heartbeat()

    async def welcome(self, welcome: pb.Welcome) -> None:
        """Note what the session dropped: a result for a lease that is not valid in a new session is never answered."""
        if not welcome.resumed:
            valid = {(each.task_id, each.lease_epoch) for each in welcome.valid_leases}
            self._dropped |= self._pending - valid

    async def contact_lost(self, seconds: float) -> None:
        """Nothing is exclusive."""

    async def control(self, item: pb.ControlItem) -> None:
        """Answer assignments; note refusals."""
        if item.WhichOneof("item") == "assignment":
            task = asyncio.create_task(self._report(item.assignment))
            self._reporting.add(task)
            task.add_done_callback(self._reporting.discard)
        elif item.WhichOneof("item") == "refused":
            self._refused(item.refused)

    def _refused(self, refused: pb.ItemRefused) -> None:
        item = self.session.refused_item(refused)
        if item is None or not item.HasField("result"):
            return
        lease = (item.result.task_id, item.result.lease_epoch)
        stale = refused.reason == error_pb2.ERROR_REASON_STALE_ATTEMPT
        if lease in self.reports and stale:
            now = asyncio.get_running_loop().time()
            self.reports[lease] = replace(self.reports[lease], end=now, refused=True)

    async def _report(self, task: pb.TaskAssignment) -> None:
        loop = asyncio.get_running_loop()
        lease = (task.task_id, task.lease_epoch)
        self.reports.setdefault(lease, Report(task_id=lease[0], epoch=lease[1], start=loop.time()))
        self._pending.add(lease)
        result = pb.TaskResult(task_id=lease[0], lease_epoch=lease[1])
        result.result.content_type, result.result.data = "text/plain", f"{lease[0]}/{lease[1]}".encode()
        self.session.send(pb.WorkerItem(result=result))
        with contextlib.suppress(Exception):  # the session ended first: nothing was acknowledged
            await self.session.flushed()
            self._pending.discard(lease)
            known = self.reports[lease]
            if not known.refused and not known.acknowledged and lease not in self._dropped:
                self.reports[lease] = replace(known, end=loop.time(), acknowledged=True)
