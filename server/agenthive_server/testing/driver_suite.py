"""What every driver must do. A test module subclasses `DriverSuite` and gives it a driver and specifications.

class TestMyDriver(DriverSuite):
    @pytest.fixture
    def case(self) -> DriverCase:
        return DriverCase(driver=MyDriver(Launcher(patience=0.2)), works=AgentSpec(...), ...)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from agenthive.v1 import agent_pb2, task_pb2

from agenthive_server.runner.driver import Driver, Handle, StartFailed, TaskKey
from agenthive_server.testing.driver_stage import DEADLINE, KEY, Stage, new_task


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
