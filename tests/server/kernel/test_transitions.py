"""The state machine of a task: what each state allows, and what a refusal leaves as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from agenthive_server.kernel import attempts, transitions
from agenthive_server.kernel.errors import Refused
from agenthive_server.kernel.events import EventType
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.tasks import (
    MAX_ANSWERS_KEPT,
    MAX_ATTEMPTS_KEPT,
    TERMINAL,
    ErrorClass,
    Question,
    RetryPolicy,
    Task,
    TaskError,
    TaskSpec,
    TaskState,
    Timeouts,
)

S = TaskState
DONE = Payload(data=b"done")
ODD = TaskError(error_class=ErrorClass.TOOL, reason="ODD", message="odd")
INFRA = TaskError(error_class=ErrorClass.INFRA, reason="LEASE_LOST")


def _new(**spec: object) -> Task:
    made = TaskSpec(**{"type": "work", **spec})  # type: ignore[arg-type]  # tests write fields by name
    return transitions.new("n", "t", made, ancestors=(), waiting_on=(), now=0.0)[0]


def _assigned(task: Task | None = None) -> Task:
    return attempts.assign(task or _new(), "a", "s", now=1.0)[0]


def _running(task: Task | None = None) -> Task:
    return attempts.accept(_assigned(task), now=2.0)[0]


def test_a_task_made_for_a_free_agent_is_what_a_new_one_becomes_when_it_is_assigned() -> None:
    spec = TaskSpec(type="work", priority=2, role="coder", labels={"a": "b"}, parent_task_id="p")
    new, delegated = transitions.new("n", "t", spec, ancestors=("p",), waiting_on=(), now=5.0)
    assigned, told = attempts.assign(new, "a", "s", now=5.0, floor=7)
    at_once = transitions.new_assigned("n", "t", spec, "a", "s", ancestors=("p",), now=5.0, floor=7)
    assert at_once == (assigned, (*delegated, *told))


def _in(state: TaskState) -> Task:  # noqa: C901 - one case for each state
    """Return a task that has come to a state by legal steps."""
    now = 3.0
    match state:
        case S.BLOCKED:
            return transitions.new("n", "t", TaskSpec(type="work"), ancestors=(), waiting_on=("x",), now=0.0)[0]
        case S.QUEUED:
            return _new()
        case S.ASSIGNED:
            return _assigned()
        case S.RUNNING:
            return _running()
        case S.REPORTED:
            return attempts.report(_running(_new(requires_review=True)), DONE, now=now)[0]
        case S.RETRY_WAIT:
            return attempts.fail_attempt(_running(), ODD, now=now, chance=0.5)[0]
        case S.INPUT_REQUIRED:
            return transitions.ask(_running(), Question(question="?"), now=now)[0]
        case S.PAUSED:
            return transitions.pause(_new(), now=now)[0]
        case S.CANCEL_REQUESTED:
            return transitions.request_cancel(_running(), "no", now=now)[0]
        case S.SUCCEEDED:
            return attempts.report(_running(), DONE, now=now)[0]
        case S.FAILED:
            error = TaskError(error_class=ErrorClass.INVALID)
            return attempts.fail_attempt(_running(), error, now=now, chance=0.5)[0]
        case S.CANCELED:
            return transitions.request_cancel(_new(), "no", now=now)[0]
        case S.EXPIRED:
            return transitions.expire(_new(), "SCHEDULE_TO_START", now=now)[0]
        case S.QUARANTINED:
            task = _new()
            for _ in range(3):
                task = attempts.lose(_running(task), "LEASE_LOST", now=now, chance=0.5, progressed=False)[0]
            return task


VERBS: dict[str, tuple[Callable[[Task], attempts.Step], set[TaskState]]] = {
    "assign": (lambda t: attempts.assign(t, "a", "s", now=9.0), {S.QUEUED}),
    "pause": (
        lambda t: transitions.pause(t, now=9.0),
        {S.BLOCKED, S.QUEUED, S.RETRY_WAIT, S.ASSIGNED, S.RUNNING, S.PAUSED},
    ),
    "resume": (lambda t: transitions.resume(t, now=9.0), {S.PAUSED}),
    "ask": (lambda t: transitions.ask(t, Question(question="?"), now=9.0), {S.ASSIGNED, S.RUNNING}),
    "respond": (lambda t: transitions.respond(t, DONE, now=9.0), {S.INPUT_REQUIRED}),
    "approve": (lambda t: transitions.approve(t, now=9.0), {S.REPORTED}),
    "send_back": (lambda t: transitions.send_back(t, "no", now=9.0), {S.REPORTED}),
    "retry": (lambda t: transitions.retry_now(t, now=9.0), {S.RETRY_WAIT, *TERMINAL}),
    "due": (lambda t: transitions.due(t, now=9.0), {S.RETRY_WAIT}),
    "cancel": (lambda t: transitions.request_cancel(t, "no", now=9.0), set(S)),
    "fail": (
        lambda t: attempts.fail_attempt(t, ODD, now=9.0, chance=0.5),
        {S.ASSIGNED, S.RUNNING, S.INPUT_REQUIRED, S.CANCEL_REQUESTED},
    ),
}


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("verb", VERBS)
def test_each_state_allows_what_it_should_and_refuses_the_rest(verb: str, state: TaskState) -> None:
    act, allowed = VERBS[verb]
    task = _in(state)
    assert task.state is state
    if state in allowed:
        changed, facts = act(task)
        assert (changed is task) == (not facts)
    else:
        with pytest.raises(Refused) as caught:
            act(task)
        assert caught.value.metadata["state"] == state


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_a_terminal_task_is_left_by_retry_alone_and_begins_afresh(state: TaskState) -> None:
    task = _in(state)
    assert transitions.request_cancel(task, "no", now=5.0) == (task, ())
    again, (fact,) = transitions.retry_now(task, now=100.0)
    assert fact.type is EventType.TASK_RETRIED
    assert fact.data == {"previous_state": state.value}
    assert (again.state, again.counted_attempts, again.lost_leases, again.result) == (S.QUEUED, 0, 0, None)
    assert again.lease_epoch == task.lease_epoch
    assert again.close_deadline == 100.0 + task.spec.timeouts.schedule_to_close


def test_a_result_implies_the_acceptance() -> None:
    done, facts = attempts.report(_assigned(), DONE, now=3.0)
    assert [fact.type for fact in facts] == [EventType.TASK_STARTED, EventType.TASK_SUCCEEDED]
    assert done.attempts[0].start_time == 3.0


def test_a_result_before_the_cancellation_counts() -> None:
    assert attempts.report(_in(S.CANCEL_REQUESTED), DONE, now=5.0)[0].state is S.SUCCEEDED


def test_three_leases_lost_in_a_row_are_poison_but_not_after_progress() -> None:
    task = _new()
    for n, progressed in enumerate([False, False, True, False]):
        task = attempts.lose(_running(task), "LEASE_LOST", now=n * 10.0, chance=0.5, progressed=progressed)[0]
        assert task.state is S.QUEUED
    task = attempts.lose(_running(task), "LEASE_LOST", now=50.0, chance=0.5, progressed=False)[0]
    assert (task.state, task.counted_attempts) == (S.QUARANTINED, 0)


def test_a_lease_lost_before_it_was_accepted_says_nothing_about_the_task() -> None:
    task = attempts.lose(_assigned(), "LEASE_LOST", now=5.0, chance=0.5, progressed=False)[0]
    assert (task.state, task.lost_leases, task.attempts[0].counted) == (S.QUEUED, 0, False)


def test_a_lost_task_goes_elsewhere_first() -> None:
    task = attempts.fail_attempt(_running(), INFRA, now=5.0, chance=0.5)[0]
    assert task.avoid == (("a", 10.0),)


def test_what_ends_while_paused_stays_paused() -> None:
    paused = transitions.pause(_running(), now=3.0)[0]
    requeued = attempts.give_back(paused, "HANDED_BACK", now=4.0)[0]
    assert (requeued.state, requeued.lease) == (S.PAUSED, None)
    assert transitions.resume(requeued, now=5.0)[0].state is S.QUEUED
    waiting = attempts.fail_attempt(paused, ODD, now=4.0, chance=0.5)[0]
    assert waiting.state is S.PAUSED
    assert transitions.resume(waiting, now=5.0)[0].state is S.RETRY_WAIT
    assert attempts.report(paused, DONE, now=4.0)[0].state is S.SUCCEEDED


def test_dependencies_that_end_while_paused_do_not_resume_it() -> None:
    paused = transitions.pause(_in(S.BLOCKED), now=1.0)[0]
    released = transitions.release(paused, "x", now=2.0)[0]
    assert released.state is S.PAUSED
    assert transitions.resume(released, now=3.0)[0].state is S.QUEUED


def test_sent_back_for_the_last_time_is_failed() -> None:
    task = _new(requires_review=True, retry=RetryPolicy(maximum_attempts=1))
    reported = attempts.report(_running(task), DONE, now=3.0)[0]
    ended, facts = transitions.send_back(reported, "no", now=4.0)
    assert ended.state is S.FAILED
    assert [fact.type for fact in facts] == [EventType.TASK_SENT_BACK, EventType.TASK_FAILED]


def test_attempts_and_answers_are_kept_up_to_a_bound() -> None:
    task = _new()
    for n in range(30):
        asked = transitions.ask(_running(task), Question(question="?", release_slot=True), now=float(n))[0]
        task = transitions.respond(asked, Payload(data=str(n).encode()), now=float(n))[0]
    assert len(task.attempts) == MAX_ATTEMPTS_KEPT
    assert len(task.answers) == MAX_ANSWERS_KEPT
    assert task.answers[-1] == Payload(data=b"29")


@pytest.mark.parametrize(
    ("state", "clock"),
    [
        (S.BLOCKED, "SCHEDULE_TO_CLOSE"),
        (S.QUEUED, "SCHEDULE_TO_START"),
        (S.ASSIGNED, "ACCEPT"),
        (S.RUNNING, "START_TO_CLOSE"),
        (S.RETRY_WAIT, "RETRY"),
        (S.INPUT_REQUIRED, "START_TO_CLOSE"),
        (S.PAUSED, "SCHEDULE_TO_CLOSE"),
        (S.CANCEL_REQUESTED, "START_TO_CLOSE"),
    ],
)
def test_the_clock_that_runs_next_follows_from_the_state(state: TaskState, clock: str) -> None:
    due = transitions.next_deadline(_in(state), 10.0)
    assert due is not None
    assert due[1] == clock


@pytest.mark.parametrize("state", [S.REPORTED, *sorted(TERMINAL)])
def test_no_clock_runs_for_what_is_over_or_waits_for_a_review(state: TaskState) -> None:
    assert transitions.next_deadline(_in(state), 10.0) is None


def test_the_clock_of_the_whole_task_beats_a_later_one() -> None:
    task = _assigned(_new(timeouts=Timeouts(schedule_to_close=5.0)))
    assert transitions.next_deadline(task, 10.0) == (5.0, "SCHEDULE_TO_CLOSE")
