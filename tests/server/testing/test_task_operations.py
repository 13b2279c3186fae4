"""Histories of one task, made by the kernel's own transitions: the true ones pass, and those tampered with do not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from agenthive.v1 import event_pb2, task_pb2
from agenthive_server.kernel import attempts, transitions
from agenthive_server.kernel.attempts import Step
from agenthive_server.kernel.errors import Refused
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.tasks import ErrorClass, RetryPolicy, Task, TaskError, TaskSpec, TaskState
from agenthive_server.rpc.convert.events import event_to_proto
from agenthive_server.testing.history import HistoryBroken, trace
from agenthive_server.testing.task_operations import Call, Report, check_task
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = 1_000.0
SPEC = TaskSpec(type="job", retry=RetryPolicy(maximum_attempts=2))


@dataclass
class Played:
    """A task that lives through what a seed says, one moment after the other, and what callers saw of it."""

    chance: random.Random
    width: float = 4.0
    time: float = 0.0
    task: Task | None = None
    log: list[event_pb2.Event] = field(default_factory=list)
    seen: dict[int, float] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def live(self, moments: int) -> Played:
        for _ in range(moments):
            self.time += 1
            self.chance.choice((self._by_itself, self._call, self._call, self._read))()
        return self

    def span(self) -> tuple[float, float]:
        return self.time - self.chance.uniform(0, self.width), self.time + self.chance.uniform(0, self.width)

    def tell(self, *facts: Event) -> None:
        for fact in facts:
            fact.sequence = len(self.log) + 1
            self.log.append(event_to_proto(fact))
            self.seen[fact.sequence] = math.inf if self.chance.random() < 0.3 else self.span()[1]

    def become(self, step: Step) -> None:
        task, facts = step
        if facts:
            self.task = task.evolve(revision=(self.task.revision if self.task else 0) + 1)
            self.tell(*facts)

    def _by_itself(self) -> None:
        task = self.task
        if task is None:
            return
        moves: list[Callable[[], Step]] = []
        if task.state is TaskState.QUEUED:
            moves.append(lambda: attempts.assign(task, "agent", "session", now=NOW))
        if task.state is TaskState.RETRY_WAIT:
            moves.append(lambda: transitions.due(task, now=NOW))
        if task.lease is not None:
            moves += [lambda: attempts.accept(task, now=NOW)] * 3
            moves.append(lambda: attempts.give_back(task, "REJECTED", now=NOW))
            if task.lease.start_time:
                moves.append(lambda: attempts.fail_attempt(task, _TOOL, now=NOW, chance=1.0))
                moves += [self._result] * 3
        if moves:
            self.become(self.chance.choice(moves)())

    def _result(self) -> Step:
        assert self.task is not None
        start, end = self.span()
        known = self.chance.random() < 0.5
        self.reports.append(
            Report(
                task_id="t",
                epoch=self.task.lease_epoch,
                start=start,
                end=end if known else math.inf,
                acknowledged=known,
            )
        )
        return attempts.report(self.task, Payload(data=b"done"), now=NOW)

    def _call(self) -> None:
        verb = "delegate" if self.task is None else self.chance.choice(("cancel", "pause", "resume", "retry", "pause"))
        start, end = self.span()
        outcome = self.chance.random()
        call = Call(caller="c", verb=verb, task_id="t", start=start, asked=start, end=end)
        if outcome < 0.1:  # it never happened, and nobody knows
            self.calls.append(replace(call, end=math.inf))
            return
        try:
            self.become(self._verb(verb))
        except Refused as refused:
            self.calls.append(replace(call, refusal="FAILED_PRECONDITION", state=refused.metadata["state"]))
            return
        if outcome < 0.2:  # it happened, and nobody knows
            self.calls.append(replace(call, end=math.inf))
        else:
            self.calls.append(replace(call, task=self.shown()))

    def _verb(self, verb: str) -> Step:
        task = self.task
        if task is None:
            return transitions.new("default", "t", SPEC, ancestors=(), waiting_on=(), now=NOW)
        match verb:
            case "cancel":
                return transitions.request_cancel(task, "", now=NOW)
            case "pause":
                return transitions.pause(task, now=NOW)
            case "resume":
                return transitions.resume(task, now=NOW)
        return transitions.retry_now(task, now=NOW)

    def _read(self) -> None:
        start, end = self.span()
        call = Call(caller="r", verb="get", task_id="t", start=start, asked=start, end=end)
        if self.task is None:
            self.calls.append(replace(call, refusal="NOT_FOUND"))
        else:
            self.calls.append(replace(call, task=self.shown()))

    def shown(self) -> task_pb2.Task:
        task = self.task
        assert task is not None
        message = task_pb2.Task(
            task_id="t", state=task_pb2.TaskState.Value(f"TASK_STATE_{task.state}"), attempt=task.attempt
        )
        message.revision = task.revision
        if task.lease is not None:
            message.lease.lease_epoch = task.lease.epoch
            if task.lease.start_time:
                message.lease.start_time.FromSeconds(int(task.lease.start_time))
        return message

    def verdict(self) -> str:
        told = trace(self.log).get(("default", "t"), [])
        return check_task(told, self.calls, self.reports, self.seen)


_TOOL = TaskError(error_class=ErrorClass.TOOL, reason="AS_TOLD")


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), moments=st.integers(1, 60), width=st.sampled_from((0.0, 1.0, 5.0, 30.0)))
def test_what_happened_is_linearizable(seed: int, moments: int, width: float) -> None:
    assert Played(random.Random(seed), width).live(moments).verdict() == ""


@pytest.mark.parametrize("width", [30.0, 400.0])
def test_many_calls_at_once_are_decided_quickly(width: float) -> None:
    """200 calls that nearly all overlap, about one task; and the same with one that fits nowhere."""
    played = Played(random.Random(3), width)
    while len(played.calls) < 200:
        played.live(1)
    assert played.verdict() == ""
    last = max(played.calls, key=lambda call: call.task.revision if call.task else 0)
    assert last.task is not None
    wrong = task_pb2.Task()
    wrong.CopyFrom(last.task)
    wrong.attempt, wrong.revision = last.task.attempt + 7, last.task.revision + 1
    played.calls.append(replace(last, verb="get", task=wrong))
    assert "attempt" in played.verdict()


def story(*verbs: str) -> Played:
    """A task to which these things happen, one after the other, each seen by its caller alone."""
    played = Played(random.Random(0), 0.0)
    for verb in verbs:
        played.time += 1
        start, end = played.time - 0.2, played.time + 0.2
        call = Call(caller="c", verb=verb, task_id="t", start=start, asked=start, end=end)
        task = played.task
        if verb == "assign":
            assert task is not None
            played.become(attempts.assign(task, "agent", "session", now=NOW))
        elif verb == "accept":
            assert task is not None
            played.become(attempts.accept(task, now=NOW))
        elif verb == "result":
            assert task is not None
            played.reports.append(Report(task_id="t", epoch=task.lease_epoch, start=start, end=end, acknowledged=True))
            played.become(attempts.report(task, Payload(data=b"done"), now=NOW))
        elif verb == "get":
            played.calls.append(replace(call, task=played.shown()))
        else:
            played.become(played._verb(verb))
            played.calls.append(replace(call, task=played.shown()))
    return played


def told_without(played: Played, fact: str) -> None:
    """Take a fact out of the log, as if it had never been written."""
    played.log = [event for event in played.log if event.WhichOneof("fact") != fact]
    for number, event in enumerate(played.log, 1):
        event.sequence = number
    played.seen = {}


def test_an_update_that_was_acknowledged_and_lost_is_found() -> None:
    played = story("delegate", "pause", "get")
    told_without(played, "task_paused")
    played.calls.pop()
    assert "pause -> PAUSED" in played.verdict()
    played = story("delegate", "pause", "resume", "get", "pause")
    told_without(played, "task_resumed")
    with pytest.raises(HistoryBroken):
        played.verdict()
    played = story("delegate", "assign", "cancel", "get")
    told_without(played, "task_cancel_requested")
    assert "cancel" in played.verdict()


def test_a_read_of_the_past_is_found() -> None:
    played = story("delegate", "get", "pause", "get")
    old = played.calls[1]
    assert played.verdict() == ""
    played.calls.append(replace(old, start=9.0, asked=9.0, end=9.1))
    said = played.verdict()
    assert "the state then: PAUSED attempt 0 (event 2)" in said
    assert "c pause -> PAUSED attempt 0 revision 2  (only after #" in said.splitlines()[-1]


def test_a_read_of_the_past_that_looks_like_the_present_is_found_by_its_revision() -> None:
    played = story("delegate", "get", "pause", "resume", "get")
    old = played.calls[1]
    assert played.verdict() == ""
    played.calls.append(replace(old, start=9.0, asked=9.0, end=9.1))
    assert "revision 1" in played.verdict()


def test_what_a_subscriber_has_seen_is_not_unseen_by_a_reader() -> None:
    played = story("delegate", "get", "pause")
    played.seen[2] = 3.5
    played.calls.append(replace(played.calls[1], start=4.0, asked=4.0, end=4.1))
    played.calls = [call for call in played.calls if call.verb != "pause"]
    played.calls.append(Call(caller="c", verb="pause", task_id="t", start=3.0, asked=3.0))
    assert "get -> QUEUED" in played.verdict()
    played.seen.clear()
    assert played.verdict() == ""


def test_a_second_result_is_found() -> None:
    played = story("delegate", "assign", "accept", "result", "get")
    assert played.verdict() == ""
    again = event_pb2.Event()
    again.CopyFrom(played.log[-1])
    again.sequence += 1
    played.log.append(again)
    with pytest.raises(HistoryBroken, match="SUCCEEDED"):
        played.verdict()


def test_a_result_nobody_had_and_one_that_was_lost_are_found() -> None:
    played = story("delegate", "assign", "accept", "result", "get")
    reports, played.reports = played.reports, []
    assert "task_succeeded is there" in played.verdict()
    early = story("delegate", "assign", "accept", "get")
    early.reports = reports
    assert "acknowledged" in early.verdict()


def test_a_refusal_of_what_was_valid_is_found() -> None:
    played = story("delegate", "assign", "accept", "get")
    refused = Report(task_id="t", epoch=1, start=5.0, end=6.0, refused=True)
    played.reports.append(refused)
    assert "refused" in played.verdict()
    played.reports = [replace(refused, epoch=7)]
    assert played.verdict() == ""


def test_a_task_that_comes_back_to_life_is_found() -> None:
    played = story("delegate", "cancel", "get")
    back = replace(played.calls[-1], start=9.0, asked=9.0, end=9.1)
    assert back.task is not None
    shown = task_pb2.Task(task_id="t", state=task_pb2.TASK_STATE_QUEUED, revision=9)
    played.calls.append(replace(back, task=shown))
    assert "QUEUED" in played.verdict()
    again = story("delegate", "cancel", "retry", "get")
    assert again.verdict() == ""
    again.calls = [call for call in again.calls if call.verb != "retry"]
    assert "task_retried is there" in again.verdict()


def test_one_revision_shown_as_two_things_is_found() -> None:
    played = story("delegate", "pause", "get")
    other = task_pb2.Task(task_id="t", state=task_pb2.TASK_STATE_QUEUED, revision=2)
    played.calls.append(replace(played.calls[-1], task=other))
    assert "revision 2 was shown as two things" in played.verdict()


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), moments=st.integers(10, 40))
def test_taking_back_what_a_caller_was_told_is_found(seed: int, moments: int) -> None:
    """An answered call that nothing else explains, made to happen after its answer was there."""
    played = Played(random.Random(seed), 0.4).live(moments)
    mine = [call for call in played.calls if call.verb == "resume" and call.task is not None]
    if not mine or played.verdict():
        return
    victim = played.chance.choice(mine)
    played.calls.remove(victim)
    played.calls = [call for call in played.calls if call.end < math.inf]
    played.calls.append(replace(victim, start=played.time + 10, asked=played.time + 10, end=played.time + 11))
    played.seen[len(played.log)] = played.time + 5
    assert played.verdict() != ""
