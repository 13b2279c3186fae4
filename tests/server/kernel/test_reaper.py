"""The clocks of tasks and the retention of what is over."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from agenthive_server.kernel.errors import NotFound
from agenthive_server.kernel.records import Kind, Payload
from agenthive_server.kernel.session_items import Accept, Ask, Beat, Result
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import Question, RetryPolicy, TaskSpec, TaskState, Timeouts
from agenthive_server.testing.hive import NAMESPACE, Hive, PlayedWorker, open_hive


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


async def _pass(hive: Hive, worker: PlayedWorker, seconds: float) -> None:
    """Let time pass while a worker beats."""
    for _ in range(round(seconds / 5.0)):
        held = hive.kernel.index.leases_by_session.get((NAMESPACE, worker.session_id), {})
        tasks = [hive.kernel.memory.task(key) for key in held]
        beats = [Beat(task_id=task.id, epoch=task.lease_epoch) for task in tasks if task]
        hive.kernel.sessions.beat(NAMESPACE, worker.session_id, worker.welcome.epoch, beats)
        await hive.advance(5.0)


async def test_a_task_nobody_takes_in_time_expires(hive: Hive) -> None:
    await hive.delegate("t", timeouts=Timeouts(schedule_to_start=10.0))
    await hive.advance(9.0)
    assert (await hive.task("t")).state is TaskState.QUEUED
    await hive.advance(2.0)
    task = await hive.task("t")
    assert (task.state, task.error.reason if task.error else "") == (TaskState.EXPIRED, "SCHEDULE_TO_START")


async def test_the_clock_of_the_whole_task_ends_it_in_any_state(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("held", timeouts=Timeouts(schedule_to_close=20.0))
    await hive.delegate("paused", timeouts=Timeouts(schedule_to_close=20.0))
    await worker.say(Accept("held", 1))
    await hive.kernel.tasks.pause(hive.caller(), "paused")
    await _pass(hive, worker, 25.0)
    for name in ("held", "paused"):
        assert (await hive.task(name)).state is TaskState.EXPIRED


async def test_an_attempt_that_takes_too_long_is_retried_and_counted(hive: Hive) -> None:
    worker = await hive.worker("a")
    policy = RetryPolicy(maximum_attempts=2, initial_interval=0.1)
    await hive.delegate("t", timeouts=Timeouts(start_to_close=20.0), retry=policy)
    await worker.say(Accept("t", 1))
    await _pass(hive, worker, 25.0)
    task = await hive.task("t")
    assert (task.counted_attempts, task.attempt) == (1, 2)
    await worker.say(Accept("t", 2))
    await _pass(hive, worker, 25.0)
    assert (await hive.task("t")).state is TaskState.FAILED


async def test_the_clock_of_an_attempt_stands_still_while_it_is_paused(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t", timeouts=Timeouts(start_to_close=30.0, progress=20.0))
    await worker.say(Accept("t", 1))
    await _pass(hive, worker, 10.0)
    await hive.kernel.tasks.pause(hive.caller(), "t")
    await _pass(hive, worker, 100.0)
    await hive.kernel.tasks.resume(hive.caller(), "t")
    await _pass(hive, worker, 15.0)
    assert (await hive.task("t")).state is TaskState.RUNNING
    await _pass(hive, worker, 10.0)
    assert (await hive.task("t")).state is not TaskState.RUNNING


async def test_only_the_time_since_the_start_is_given_back_after_a_pause(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t", timeouts=Timeouts(start_to_close=30.0))
    await hive.kernel.tasks.pause(hive.caller(), "t")
    await _pass(hive, worker, 60.0)
    await worker.say(Accept("t", 1))
    await hive.kernel.tasks.resume(hive.caller(), "t")
    lease = (await hive.task("t")).lease
    assert lease is not None
    assert lease.close_deadline == hive.clock.now() + 30.0


async def test_a_question_nobody_answers_gets_its_default(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t", timeouts=Timeouts(input=10.0))
    await worker.say(Ask("t", 1, Question(question="which?", default=Payload(data=b"this"))))
    assert (await hive.task("t")).state is TaskState.INPUT_REQUIRED
    await _pass(hive, worker, 15.0)
    task = await hive.task("t")
    assert (task.state, task.answers) == (TaskState.RUNNING, (Payload(data=b"this"),))


@pytest.mark.parametrize("release", [False, True])
async def test_a_question_without_default_that_nobody_answers_fails_the_attempt(hive: Hive, release: bool) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t", timeouts=Timeouts(input=10.0), retry=RetryPolicy(maximum_attempts=1))
    await worker.say(Ask("t", 1, Question(question="which?", release_slot=release)))
    await _pass(hive, worker, 15.0)
    task = await hive.task("t")
    assert (task.state, task.error.reason if task.error else "") == (TaskState.FAILED, "INPUT")


async def test_a_question_may_give_its_slot_to_others_meanwhile(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    await hive.delegate("u")
    await worker.say(Ask("t", 1, Question(question="which?", release_slot=True), b"so far"))
    await hive.settle()
    assert [a.task.id for a in worker.assignments()] == ["t", "u"]
    await worker.finish(worker.assignments()[-1])
    await hive.kernel.tasks.respond(hive.caller(), "t", Payload(data=b"this"))
    await hive.settle()
    again = worker.assignments()[-1]
    assert (again.task.id, again.checkpoint, again.task.answers) == ("t", b"so far", (Payload(data=b"this"),))


async def test_a_question_that_is_refused_leaves_nothing_behind(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    await worker.say(Accept("t", 1))
    await hive.kernel.tasks.pause(hive.caller(), "t")
    (refusal,) = await worker.say(Ask("t", 1, Question(question="which?"), b"checkpoint"))
    assert refusal.reason == "ILLEGAL_TRANSITION"
    assert (await hive.kernel.queries.get(NAMESPACE, "t"))[1] is None


async def test_a_result_is_an_answer_too(hive: Hive) -> None:
    """Three assignments *in a row* without an answer end a session; a result without an acceptance interrupts them."""
    worker = await hive.worker("a")
    for n in range(4):
        await hive.delegate(f"x{n}")
        await _pass(hive, worker, 15.0)
        await hive.kernel.tasks.cancel(hive.caller(), f"x{n}", "enough")
        await hive.delegate(f"y{n}")
        await worker.say(Result(f"y{n}", 1, result=Payload(data=b"x")))
    assert worker.link.error is None


async def test_what_is_past_its_retention_is_removed_however_much_it_is(hive: Hive) -> None:
    worker = await hive.worker("a", slots=300)
    new = [NewTask(id=f"t{n}", spec=TaskSpec(type="work")) for n in range(250)]
    await hive.kernel.tasks.delegate(hive.caller("r"), new)
    for n in range(100):
        await hive.kernel.tasks.pause(hive.caller(f"p{n}"), "t0")
    for a in worker.assignments():
        await worker.finish(a)
    await hive.delegate("open", required_capabilities=("none",), timeouts=Timeouts(schedule_to_start=1e9))
    hive.clock.move(86_500.0)
    await hive.advance(35.0)
    assert await hive.store.scan(Kind.REQUEST) == []
    hive.clock.move(604_800.0 - 86_500.0)
    hive.kernel.sessions.heard(NAMESPACE, worker.session_id, worker.welcome.epoch)
    await hive.advance(70.0)
    left = [record.id for record in await hive.store.scan(Kind.TASK)]
    assert left == ["open"]
    with pytest.raises(NotFound):
        await hive.task("t7")
    assert (await hive.store.bounds()).oldest > 250
