"""A place to start agents in without a runner: notes what they say, who ended, which processes came and went."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agenthive.v1 import agent_pb2, event_pb2, payload_pb2, task_pb2, worker_service_pb2

from agenthive_server.runner.driver import Driver, Exit, Handle, Outcome, Start, TaskKey
from agenthive_server.runner.tree import find_process, list_members

DEADLINE = 20.0
KEY = TaskKey("task-1", 1)
"""Of the task `new_task()` makes."""


@dataclass
class RecordedReport:
    """A report that keeps what it is told."""

    content: bytearray = field(default_factory=bytearray)
    errors: bytearray = field(default_factory=bytearray)
    fractions: list[float] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    checkpoints: list[bytes] = field(default_factory=list)
    usages: list[task_pb2.Usage] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def output(self, content: bytes, stream: event_pb2.OutputStream.ValueType) -> None:
        """Keep it."""
        assert 0 < len(content) <= 64 * 1024
        (self.errors if stream == event_pb2.OUTPUT_STREAM_STDERR else self.content).extend(content)
        self.news.set()

    def progress(self, fraction: float, text: str | None) -> None:
        """Keep it."""
        self.fractions.append(fraction)
        self.texts.append(text)
        self.news.set()

    def checkpoint(self, content: bytes) -> None:
        """Keep it."""
        self.checkpoints.append(content)
        self.news.set()

    def usage(self, usage: task_pb2.Usage) -> None:
        """Keep it."""
        self.usages.append(usage)
        self.news.set()

    def context_usage(self, share: float) -> None:
        """Keep it."""
        self.shares.append(share)
        self.news.set()

    async def until(self, condition: Callable[[RecordedReport], bool]) -> None:
        """Return when the condition holds. Raises TimeoutError after the deadline."""
        async with asyncio.timeout(DEADLINE):
            while not condition(self):
                self.news.clear()
                await self.news.wait()


async def eventually(condition: Callable[[], object]) -> None:
    """Return when the condition holds. Raises TimeoutError after the deadline."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - processes and files ring no bell
            await asyncio.sleep(0.01)


async def gone(*pids: int) -> None:
    """Return when these processes have ended. Raises TimeoutError after the deadline."""

    def ended() -> bool:
        found = (find_process(pid) for pid in pids)
        return not any(process and process.alive for process in found)

    await eventually(ended)


def new_task(task_id: str = "task-1", *, lease_epoch: int = 1, **spec: Any) -> worker_service_pb2.TaskAssignment:
    """An assignment; `spec` goes into its TaskSpec."""
    numbers = payload_pb2.Payload(content_type="application/json", data=b'{"n":1}')
    fields: dict[str, Any] = {"type": "probe", "input": numbers, **spec}
    return worker_service_pb2.TaskAssignment(
        agent_id="agent-1",
        task_id=task_id,
        namespace="default",
        lease_epoch=lease_epoch,
        attempt=1,
        spec=task_pb2.TaskSpec(**fields),
    )


@dataclass
class Stage:
    """A driver with a place to start agents in; notes who ended and which processes came and went."""

    driver: Driver
    folder: Path
    ended: list[Exit] = field(default_factory=list)
    some_ended: asyncio.Event = field(default_factory=asyncio.Event)
    processes: list[int] = field(default_factory=list)
    handles: list[Handle] = field(default_factory=list)
    jobs: list[asyncio.Task[Any]] = field(default_factory=list)

    def new_start(self, spec: agent_pb2.AgentSpec) -> Start:
        """What a runner would ask for."""
        number = len(list(self.folder.iterdir()))
        folder = self.folder / f"work-{number}"
        folder.mkdir(mode=0o700)
        return Start(
            agent_id="agent-1",
            namespace="default",
            spec=spec,
            folder=folder,
            marker=f"suite.{id(self):x}.{number}",
            ended=self._end,
            spawned=lambda pid, start_time: self.processes.append(pid),
            departed=lambda pid, start_time: self.processes.remove(pid),
        )

    def _end(self, ending: Exit) -> None:
        self.ended.append(ending)
        self.some_ended.set()

    async def start(self, spec: agent_pb2.AgentSpec) -> Handle:
        """Start an agent that is stopped when the test ends."""
        async with asyncio.timeout(DEADLINE):
            self.handles.append(await self.driver.start(self.new_start(spec)))
        return self.handles[-1]

    def begin(
        self, handle: Handle, task: worker_service_pb2.TaskAssignment | None = None
    ) -> tuple[asyncio.Task[Outcome], RecordedReport]:
        """Begin a task."""
        report = RecordedReport()
        work: Coroutine[Any, Any, Outcome] = self.driver.run_task(handle, task or new_task(), report)
        job = asyncio.create_task(_bounded(work))
        self.jobs.append(job)
        return job, report

    async def run(self, handle: Handle, task: worker_service_pb2.TaskAssignment | None = None) -> Outcome:
        """Run a task to its end."""
        return await self.begin(handle, task)[0]

    async def close(self) -> None:
        """Stop everything, and check that nothing is left."""
        for handle in self.handles:
            try:
                self.driver.kill(handle)
                await self.driver.stop(handle, 0)
            except KeyError:
                pass  # the test has stopped it
        await asyncio.gather(*self.jobs, return_exceptions=True)
        assert self.processes == []
        assert list_members((), f"suite.{id(self):x}") == []


async def _bounded(work: Coroutine[Any, Any, Outcome]) -> Outcome:
    async with asyncio.timeout(DEADLINE):
        return await work
