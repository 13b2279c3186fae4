"""What every driver must do. A test module subclasses `DriverSuite` and gives it a driver and specifications.

class TestMyDriver(DriverSuite):
    @pytest.fixture
    def case(self) -> DriverCase:
        return DriverCase(driver=MyDriver(Launcher(patience=0.2)), works=AgentSpec(...), ...)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agenthive.v1 import agent_pb2, event_pb2, payload_pb2, task_pb2, worker_service_pb2

from agenthive_server.runner.driver import Driver, Exit, Handle, Outcome, Start, StartFailed, TaskKey
from agenthive_server.runner.tree import find_process, list_members

DEADLINE = 20.0


@dataclass(frozen=True, slots=True)
class DriverCase:
    """A driver and what it is asked to start."""

    driver: Driver
    works: agent_pb2.AgentSpec
    """Every task succeeds soon, with some output and some progress."""
    fails: agent_pb2.AgentSpec
    """Every task fails as TOOL."""
    hangs: agent_pb2.AgentSpec
    """No task ends by itself, nor when it is asked to; each says some output first."""
    does_not_start: agent_pb2.AgentSpec
    """It fails to start."""
    ends: agent_pb2.AgentSpec | None = None
    """It becomes ready and soon ends by itself with exit code 3; None where there is no such thing."""
    ends_with_its_task: bool = False
    """A task that does not end when asked takes the agent with it."""


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


KEY = TaskKey("task-1", 1)


class DriverSuite:
    """The promises of `Driver`, one test each."""

    @pytest.fixture
    def case(self) -> DriverCase:
        """The driver under test; every subclass has its own."""
        raise NotImplementedError

    @pytest.fixture
    async def stage(self, case: DriverCase, tmp_path: Path) -> AsyncIterator[Stage]:
        """A place for its agents."""
        stage = Stage(case.driver, tmp_path)
        yield stage
        await stage.close()

    def test_its_fingerprint_names_it(self, case: DriverCase) -> None:
        fingerprint = case.driver.fingerprint()
        assert fingerprint.name == case.driver.name
        assert fingerprint.healthy
        assert fingerprint.detail

    async def test_a_handle_names_the_driver_and_a_version(self, case: DriverCase, stage: Stage) -> None:
        handle = await stage.start(case.works)
        assert handle.driver == case.driver.name
        assert handle.version > 0
        assert handle.data

    async def test_a_start_that_fails_says_why_and_leaves_nothing(self, case: DriverCase, stage: Stage) -> None:
        with pytest.raises(StartFailed, match=r"\w+ \w+"):
            await stage.start(case.does_not_start)
        assert stage.ended == []

    async def test_a_task_ends_with_its_result_after_output_and_progress(self, case: DriverCase, stage: Stage) -> None:
        job, report = stage.begin(await stage.start(case.works))
        assert (await job).result is not None
        assert report.content
        assert report.fractions

    async def test_one_task_after_the_other_and_two_at_once(self, case: DriverCase, stage: Stage) -> None:
        handle = await stage.start(case.works)
        await stage.run(handle)
        jobs = [stage.begin(handle, new_task(f"task-{number}"))[0] for number in (2, 3)]
        assert all([(await job).result is not None for job in jobs])

    async def test_a_task_that_fails_is_an_outcome(self, case: DriverCase, stage: Stage) -> None:
        outcome = await stage.run(await stage.start(case.fails))
        assert outcome.error is not None
        assert outcome.error.error_class == task_pb2.TASK_ERROR_CLASS_TOOL
        assert outcome.error.message

    async def test_a_task_that_ignores_cancellation_is_made_to_end(self, case: DriverCase, stage: Stage) -> None:
        handle = await stage.start(case.hangs)
        job, report = stage.begin(handle)
        await report.until(lambda said: bool(said.content))
        case.driver.cancel_task(handle, KEY, 0.1)
        case.driver.cancel_task(handle, KEY, 0.1)
        assert (await job).canceled is not None
        if case.ends_with_its_task:
            await asyncio.wait_for(stage.some_ended.wait(), DEADLINE)

    async def test_unknown_tasks_may_be_canceled_and_paused(self, case: DriverCase, stage: Stage) -> None:
        handle = await stage.start(case.works)
        case.driver.cancel_task(handle, TaskKey("no-such-task", 1), 0.1)
        await case.driver.pause_task(handle, TaskKey("no-such-task", 1), False)
        assert (await stage.run(handle)).result is not None

    async def test_a_task_that_was_paused_goes_on(self, case: DriverCase, stage: Stage) -> None:
        handle = await stage.start(case.works)
        job, _ = stage.begin(handle)
        await asyncio.sleep(0)
        await case.driver.pause_task(handle, KEY, False)
        await case.driver.pause_task(handle, KEY, True)
        assert (await job).result is not None

    async def test_a_cancelled_call_ends_what_it_ran(self, case: DriverCase, stage: Stage) -> None:
        handle = await stage.start(case.hangs)
        job, report = stage.begin(handle)
        await report.until(lambda said: bool(said.content))
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert stage.processes == []

    async def test_a_stop_ends_tasks_and_agent_and_forgets_the_handle(self, case: DriverCase, stage: Stage) -> None:
        handle = await stage.start(case.hangs)
        job, report = stage.begin(handle)
        await report.until(lambda said: bool(said.content))
        waiting = asyncio.create_task(case.driver.wait(handle))
        await asyncio.sleep(0)
        await asyncio.wait_for(case.driver.stop(handle, 0.1), DEADLINE)
        assert (await job).result is None
        await asyncio.wait_for(waiting, DEADLINE)
        assert stage.ended == []
        assert stage.processes == []
        with pytest.raises(KeyError):
            await case.driver.stats(handle)

    async def test_a_kill_shortens_a_stop(self, case: DriverCase, stage: Stage) -> None:
        handle = await stage.start(case.hangs)
        job, report = stage.begin(handle)
        await report.until(lambda said: bool(said.content))
        stop = asyncio.create_task(case.driver.stop(handle, 3600))
        await asyncio.sleep(0)
        case.driver.kill(handle)
        await asyncio.wait_for(stop, DEADLINE)
        assert (await job).result is None

    async def test_an_agent_that_ends_by_itself_says_so_once(self, case: DriverCase, stage: Stage) -> None:
        if case.ends is None:
            pytest.skip("this kind of agent does not end by itself")
        handle = await stage.start(case.ends)
        ending = await asyncio.wait_for(case.driver.wait(handle), DEADLINE)
        assert ending.code == 3
        await asyncio.wait_for(stage.some_ended.wait(), DEADLINE)
        assert [each.code for each in stage.ended] == [3]
        outcome = await stage.run(handle)
        assert outcome.error is not None
        assert outcome.error.error_class == task_pb2.TASK_ERROR_CLASS_INFRA
        await case.driver.stop(handle, 0)
        assert len(stage.ended) == 1

    async def test_stats_and_logs_of_an_agent_can_be_read(self, case: DriverCase, stage: Stage) -> None:
        handle = await stage.start(case.works)
        assert (await case.driver.stats(handle)).processes >= 0
        assert isinstance(case.driver.logs(handle), bytes)

    async def test_a_strange_handle_cannot_be_recovered(self, case: DriverCase) -> None:
        assert not await case.driver.recover(Handle(case.driver.name, 999, b"nonsense"))

    async def test_starts_are_independent_of_each_other(self, case: DriverCase, stage: Stage) -> None:
        first, second = await stage.start(case.works), await stage.start(case.works)
        assert first != second
        await case.driver.stop(first, 1)
        assert (await stage.run(second)).result is not None
