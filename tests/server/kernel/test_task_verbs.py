"""Delegating and changing tasks through the kernel's verbs, with workers played by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from agenthive_server.kernel import transitions
from agenthive_server.kernel.changes import COMMITTED, ChangeSet
from agenthive_server.kernel.errors import BadRequest, Exists, NotFound, Refused
from agenthive_server.kernel.records import Kind, Payload
from agenthive_server.kernel.session_items import Accept, Beat, Cancel, HandBack, Pause, Reject, Result, Revoke
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import ErrorClass, RetryPolicy, TaskError, TaskSpec, TaskState, Timeouts
from agenthive_server.testing.hive import NAMESPACE, Hive, open_hive


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


async def test_a_task_goes_to_a_free_agent_and_its_result_comes_back(hive: Hive) -> None:
    worker = await hive.worker("a")
    task = await hive.delegate("t")
    assert task.state is TaskState.ASSIGNED
    (assign,) = worker.assignments()
    assert assign.task.id == "t"
    assert await worker.finish(assign, b"42") == []
    done = await hive.task("t")
    assert (done.state, done.result) == (TaskState.SUCCEEDED, Payload(data=b"42"))
    assert [a.number for a in done.attempts] == [1]


async def test_without_a_free_agent_the_task_waits_until_one_comes(hive: Hive) -> None:
    assert (await hive.delegate("t")).state is TaskState.QUEUED
    worker = await hive.worker("a")
    await hive.settle()
    assert [a.task.id for a in worker.assignments()] == ["t"]


async def test_a_freed_slot_takes_the_next_task_by_priority(hive: Hive) -> None:
    worker = await hive.worker("a")
    first = await hive.delegate("first")
    await hive.delegate("low", priority=5)
    await hive.delegate("high", priority=1)
    assert first.state is TaskState.ASSIGNED
    await worker.finish(worker.assignments()[0])
    await hive.settle()
    assert [a.task.id for a in worker.assignments()] == ["first", "high"]


async def test_within_one_call_a_free_agent_goes_to_the_task_of_the_best_priority(hive: Hive) -> None:
    worker = await hive.worker("a")
    new = [
        NewTask(id="low", spec=TaskSpec(type="work", priority=4)),
        NewTask(id="after", spec=TaskSpec(type="work", priority=1, depends_on=("low",))),
        NewTask(id="high", spec=TaskSpec(type="work", priority=2)),
    ]
    made = await hive.kernel.tasks.delegate(hive.caller("r"), new)
    assert [task.id for task in made] == ["low", "after", "high"]
    assert [a.task.id for a in worker.assignments()] == ["high"]


async def test_capabilities_and_pins_are_kept(hive: Hive) -> None:
    plain = await hive.worker("plain")
    able = await hive.worker("able", capabilities=("python",))
    await hive.delegate("t", required_capabilities=("python",))
    await hive.delegate("p", agent_id="plain")
    assert [a.task.id for a in able.assignments()] == ["t"]
    assert [a.task.id for a in plain.assignments()] == ["p"]


async def test_a_repeated_request_has_one_effect_and_answers_as_it_stands_now(hive: Hive) -> None:
    worker = await hive.worker("a")
    new = [NewTask(spec=TaskSpec(type="work"))]
    first = await hive.kernel.tasks.delegate(hive.caller("r1"), new)
    await worker.finish(worker.assignments()[0])
    again = await hive.kernel.tasks.delegate(hive.caller("r1"), new)
    assert again[0].id == first[0].id
    assert again[0].state is TaskState.SUCCEEDED
    assert len(worker.assignments()) == 1


async def test_a_request_id_for_another_request_is_refused(hive: Hive) -> None:
    await hive.kernel.tasks.delegate(hive.caller("r1"), [NewTask(spec=TaskSpec(type="work"))])
    with pytest.raises(BadRequest) as caught:
        await hive.kernel.tasks.delegate(hive.caller("r1", digest="other"), [NewTask(spec=TaskSpec(type="x"))])
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_an_id_in_use_is_refused_or_answered(hive: Hive) -> None:
    await hive.delegate("t")
    with pytest.raises(Exists):
        await hive.delegate("t")
    same = await hive.kernel.tasks.delegate(
        hive.caller(), [NewTask(id="t", spec=TaskSpec(type="other"))], use_existing=True
    )
    assert same[0].spec.type == "work"


async def test_an_id_in_use_is_found_when_the_task_is_long_over(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    await worker.finish(worker.assignments()[0])
    hive.kernel.memory._recent.clear()
    with pytest.raises(Exists):
        await hive.delegate("t")
    assert (await hive.delegate("u")).state is TaskState.ASSIGNED


async def test_dependencies_release_and_fail(hive: Hive) -> None:
    worker = await hive.worker("a", slots=10)
    made = await hive.kernel.tasks.delegate(
        hive.caller(),
        [
            NewTask(id="last", spec=TaskSpec(type="work", depends_on=("one", "two"))),
            NewTask(id="one", spec=TaskSpec(type="work")),
            NewTask(id="two", spec=TaskSpec(type="work", retry=RetryPolicy(maximum_attempts=1))),
            NewTask(id="after", spec=TaskSpec(type="work", depends_on=("one",))),
        ],
    )
    assert [t.state for t in made] == [TaskState.BLOCKED, TaskState.ASSIGNED, TaskState.ASSIGNED, TaskState.BLOCKED]
    one, two = worker.assignments()
    await worker.finish(one)
    await hive.settle()
    assert (await hive.task("after")).state is TaskState.ASSIGNED
    assert (await hive.task("last")).state is TaskState.BLOCKED
    error = TaskError(error_class=ErrorClass.TOOL, reason="BOOM")
    await worker.say(Result("two", two.task.lease_epoch, error=error))
    await hive.settle()
    last = await hive.task("last")
    assert (last.state, last.error.reason if last.error else "") == (TaskState.FAILED, "DEPENDENCY_FAILED")


async def test_a_cycle_is_refused_whole(hive: Hive) -> None:
    with pytest.raises(BadRequest) as caught:
        await hive.kernel.tasks.delegate(
            hive.caller(),
            [
                NewTask(id="a", spec=TaskSpec(type="work", depends_on=("b",))),
                NewTask(id="b", spec=TaskSpec(type="work", depends_on=("a",))),
            ],
        )
    assert caught.value.reason == "DEPENDENCY_CYCLE"
    with pytest.raises(NotFound):
        await hive.task("a")


async def test_a_failed_attempt_is_retried_with_backoff_until_none_is_left(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t", retry=RetryPolicy(maximum_attempts=2, initial_interval=4.0))
    error = TaskError(error_class=ErrorClass.TOOL, reason="BOOM")
    await worker.say(Result("t", worker.assignments()[0].task.lease_epoch, error=error))
    waiting = await hive.task("t")
    assert waiting.state is TaskState.RETRY_WAIT
    assert 0 <= waiting.retry_time - hive.clock.now() <= 4.0
    await hive.advance(4.5)
    second = worker.assignments()[-1]
    assert second.task.attempt == 2
    await worker.say(Result("t", second.task.lease_epoch, error=error))
    assert (await hive.task("t")).state is TaskState.FAILED


async def test_a_result_with_a_stale_epoch_is_refused_and_the_accepted_one_repeated_is_fine(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    epoch = worker.assignments()[0].task.lease_epoch
    (refusal,) = await worker.say(Result("t", epoch + 1, result=Payload(data=b"x")))
    assert refusal.reason == "STALE_ATTEMPT"
    await worker.say(Result("t", epoch, result=Payload(data=b"1")))
    assert await worker.say(Result("t", epoch, result=Payload(data=b"2"))) == []
    assert (await hive.task("t")).result == Payload(data=b"1")


async def test_a_rejected_task_is_not_offered_to_the_same_agent_before_its_time(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    await worker.say(Reject("t", worker.assignments()[0].task.lease_epoch, "busy", 8.0))
    await hive.settle()
    assert len(worker.assignments()) == 1
    assert (await hive.task("t")).counted_attempts == 0
    await hive.advance(9.0)
    assert len(worker.assignments()) == 2


async def test_an_unanswered_assignment_goes_back_and_three_end_the_session(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t", timeouts=Timeouts())
    for _ in range(8):
        hive.kernel.sessions.heard(NAMESPACE, worker.session_id, worker.welcome.epoch)
        await hive.advance(10.5)
    assert worker.link.error is not None
    assert worker.link.error.reason == "SESSION_NOT_FOUND"
    task = await hive.task("t")
    assert (task.state, task.counted_attempts, task.lost_leases) == (TaskState.QUEUED, 0, 0)


async def test_cancel_is_at_once_without_a_lease_and_asked_for_with_one(hive: Hive) -> None:
    await hive.delegate("q", required_capabilities=("none",))
    assert (await hive.kernel.tasks.cancel(hive.caller(), "q", "no")).state is TaskState.CANCELED
    worker = await hive.worker("a")
    await hive.delegate("t")
    epoch = worker.assignments()[0].task.lease_epoch
    assert (await hive.kernel.tasks.cancel(hive.caller(), "t", "no")).state is TaskState.CANCEL_REQUESTED
    assert worker.link.told[-1] == Cancel("t", epoch, "no")
    await worker.say(Result("t", epoch, canceled="stopped"))
    assert (await hive.task("t")).state is TaskState.CANCELED
    assert (await hive.kernel.tasks.cancel(hive.caller(), "t", "again")).state is TaskState.CANCELED


async def test_a_result_that_arrives_before_the_cancellation_counts(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    await hive.kernel.tasks.cancel(hive.caller(), "t", "no")
    await worker.finish(worker.assignments()[0])
    assert (await hive.task("t")).state is TaskState.SUCCEEDED


async def test_pause_and_resume_reach_the_agent(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    epoch = worker.assignments()[0].task.lease_epoch
    await worker.say(Accept("t", epoch))
    assert (await hive.kernel.tasks.pause(hive.caller(), "t")).state is TaskState.PAUSED
    assert worker.link.told[-1] == Pause("t", epoch, resume=False)
    assert (await hive.kernel.tasks.resume(hive.caller(), "t")).state is TaskState.RUNNING
    assert worker.link.told[-1] == Pause("t", epoch, resume=True)
    with pytest.raises(Refused):
        await hive.kernel.tasks.resume(hive.caller(), "t")


async def test_three_leases_lost_without_progress_quarantine_and_retry_releases(hive: Hive) -> None:
    await hive.delegate("t")
    for name in ("a", "b", "c"):
        worker = await hive.worker(name)
        await hive.settle()
        await worker.say(Accept("t", worker.assignments()[0].task.lease_epoch))
        await worker.lose()
        await hive.advance(40.0)
    assert (await hive.task("t")).state is TaskState.QUARANTINED
    assert (await hive.kernel.tasks.retry(hive.caller(), "t")).state is TaskState.QUEUED


async def test_a_hung_worker_loses_its_lease_though_its_session_lives(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t", timeouts=Timeouts(heartbeat=20.0))
    epoch = worker.assignments()[0].task.lease_epoch
    await worker.say(Accept("t", epoch))
    for _ in range(4):
        hive.kernel.sessions.beat(NAMESPACE, worker.session_id, worker.welcome.epoch, [])
        await hive.advance(8.0)
    assert Revoke("t", epoch, "TASK_REQUEUED") in worker.link.told
    (refusal,) = await worker.say(Result("t", epoch, result=Payload(data=b"late")))
    assert refusal.reason == "STALE_ATTEMPT"


async def test_progress_timeout_ends_an_attempt_whose_pulse_goes_on(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t", timeouts=Timeouts(progress=30.0))
    epoch = worker.assignments()[0].task.lease_epoch
    await worker.say(Accept("t", epoch))
    for _ in range(5):
        hive.kernel.sessions.beat(NAMESPACE, worker.session_id, worker.welcome.epoch, [Beat(task_id="t", epoch=epoch)])
        await hive.advance(8.0)
    task = await hive.task("t")
    assert task.attempts[0].error is not None
    assert task.attempts[0].error.reason == "PROGRESS"


async def test_a_handed_back_task_carries_its_checkpoint_and_counts_nothing(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    epoch = worker.assignments()[0].task.lease_epoch
    await worker.say(Accept("t", epoch), HandBack("t", epoch, b"half"))
    await hive.settle()
    second = worker.assignments()[-1]
    assert (second.checkpoint, second.task.attempt, second.task.counted_attempts) == (b"half", 2, 0)


async def test_that_there_is_nothing_to_do_is_said_of_the_task_as_it_is_not_as_it_was(hive: Hive) -> None:
    await hive.delegate("t")
    paused = await hive.kernel.tasks.pause(hive.caller(), "t")
    # Another replica resumes it, and this one has not heard of that.
    resumed = transitions.resume(paused, now=1.0)[0].evolve(revision=paused.revision + 1)
    assert await hive.store.commit([ChangeSet(puts={resumed.ref: resumed})]) == [COMMITTED]
    again = await hive.kernel.tasks.pause(hive.caller("with a request id, so that something is written"), "t")
    assert (again.state, again.revision) == (TaskState.PAUSED, resumed.revision + 1)
    assert await hive.store.get(Kind.TASK, [again.key]) == [again]
