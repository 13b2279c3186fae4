"""One task as a sequential object: what calls, workers and the log say of it, as operations that are to be ordered.

The log is the order of all changes there is, so the state of the object is how much of the log has happened. An event
that a caller causes happens by the effect of one of its calls, and by nothing else; the others happen by themselves. An
answer shows the state of one moment between its request and itself; a refusal is right at one such moment. A mutating
call that was repeated under its request id is one operation: its effect lies anywhere in it, what it shows after that.
Tasks with parents or dependencies are changed by others as well, and are not for this.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agenthive.v1 import task_pb2
from agenthive.v1.event_pb2 import Event

from agenthive_server.testing.history import TERMINAL, TaskStory, state_name
from agenthive_server.testing.linearizability import Operation, check

READING: Final = frozenset({"get", "wait", "store"})
"""Verbs without an effect."""

_STOPPED: Final = TERMINAL | {"CANCEL_REQUESTED"}
_PAUSABLE: Final = frozenset({"BLOCKED", "QUEUED", "RETRY_WAIT", "ASSIGNED", "RUNNING", "PAUSED"})

Told = Sequence[tuple[Event, TaskStory]]
"""The events about a task in order, each with the story as it is after it."""

_Fits = Callable[[TaskStory | None], bool]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call about one task, with all its repeats under one request id; times of this machine's monotonic clock."""

    caller: str
    verb: str
    task_id: str
    start: float
    # When the repeat began that was answered.
    asked: float
    # Endless when no answer came.
    end: float = math.inf
    # What it was answered with; None when it was refused, or nobody knows.
    task: task_pb2.Task | None = None
    # The code of a refusal that means that nothing happened, and the state it names.
    refusal: str = ""
    state: str = ""
    via: str = ""

    def __str__(self) -> str:
        """Return it for people."""
        return f"{self.caller} {self.verb}{f' at {self.via}' if self.via else ''} -> {self._outcome()}"

    def _outcome(self) -> str:
        if self.task is not None:
            lease = f" epoch {self.task.lease.lease_epoch}" if self.task.HasField("lease") else ""
            return f"{state_name(self.task.state)} attempt {self.task.attempt}{lease} revision {self.task.revision}"
        return f"{self.refusal} {self.state}".rstrip() or "unknown"


@dataclass(frozen=True, kw_only=True)
class Report:
    """A result a worker had for a lease, and what it heard of it: acknowledged, refused, or nothing."""

    task_id: str
    epoch: int
    start: float
    end: float = math.inf
    acknowledged: bool = False
    refused: bool = False


def check_task(
    told: Told, calls: Iterable[Call], reports: Iterable[Report] | None = None, seen: Mapping[int, float] | None = None
) -> str:
    """Return "" when the history of one task is linearizable, else the counterexample in words.

    `reports` are the results of all workers; None when they are not known. `seen`: when a subscriber first saw the
    event with a sequence number. Raises `Undecided`.
    """
    calls = list(calls)
    if clash := _same_revision_twice(calls):
        return clash
    model = _Model(told, watches_results=reports is not None)
    for event_number in range(1, len(told) + 1):
        model.add_event(event_number, (seen or {}).get(told[event_number - 1][0].sequence, math.inf))
    for report in reports or ():
        model.add_report(report)
    shown: dict[int, list[int]] = {}
    for call in sorted(calls, key=_revision):
        model.add_call(call, shown)
    found = check(model.operations, 0)
    return found.describe(model.show) if found is not None else ""


def _revision(call: Call) -> int:
    return call.task.revision if call.task is not None else 0


def _same_revision_twice(calls: Iterable[Call]) -> str:
    first: dict[int, Call] = {}
    for call in calls:
        if call.task is None:
            continue
        other = first.setdefault(call.task.revision, call)
        if _content(call.task) != _content(other.task or call.task):
            return f"revision {call.task.revision} was shown as two things:\n  {other}\n  {call}"
    return ""


def _content(task: task_pb2.Task) -> tuple[object, ...]:
    lease = task.lease
    return task.state, task.attempt, lease.lease_epoch, lease.HasField("start_time"), task.result.SerializeToString()


class _Model:
    def __init__(self, told: Told, *, watches_results: bool) -> None:
        self.operations: list[Operation[int]] = []
        self._told = told
        self._stories: list[TaskStory | None] = [None, *(story for _, story in told)]
        self._causes = [_cause(before, told[n][0], told[n][1]) for n, before in enumerate(self._stories[:-1])]
        if not watches_results:
            self._causes = ["" if cause.startswith("result") else cause for cause in self._causes]

    def show(self, number: int) -> str:
        """Return a state for people."""
        story = self._stories[number]
        if story is None:
            return "not delegated"
        lease = f" lease {story.epoch}{' started' if story.started else ''}" if story.held else ""
        return f"{story.state} attempt {story.attempt}{lease} (event {self._told[number - 1][0].sequence})"

    def add_event(self, number: int, seen: float) -> None:
        """Say that an event happened, before it was seen; and let it happen, where that is nobody's call."""
        event, cause = self._told[number - 1][0], self._causes[number - 1]
        name = f"event {event.sequence} {event.WhichOneof('fact')}"
        if cause in ("", "retry due"):
            self.operations.append(
                Operation(
                    name=name,
                    end=seen,
                    optional=bool(cause),
                    step=lambda now: number if now == number - 1 else None,
                    hopeless=None if cause else lambda now: now >= number,
                )
            )
        if cause:
            self._read(f"{name} is there", -math.inf, seen, lambda place: place >= number)

    def add_report(self, report: Report) -> None:
        """Let a result have been accepted, if it was; and say what the worker heard of it."""
        name = f"result of lease {report.epoch}"
        self._cause(f"{name} -> accepted", report.start, report.end, f"result {report.epoch}", optional=True)
        if report.acknowledged:
            accepted = self._accepted(report.epoch)
            self._read(f"{name} -> acknowledged", report.start, report.end, lambda place: place >= accepted)
        if report.refused:
            self._fits(f"{name} -> refused", report.start, report.end, lambda story: not _open(story, report.epoch))

    def _accepted(self, epoch: int) -> float:
        """Return the number of the event that tells that the result of a lease was accepted; endless for none."""
        for number, (event, story) in enumerate(self._told, 1):
            if event.WhichOneof("fact") in ("task_succeeded", "task_reported") and story.epoch == epoch:
                return number
        return math.inf

    def add_call(self, call: Call, shown: dict[int, list[int]]) -> None:
        """Add the effect of a call, what it requires, and what it shows. Calls come in the order of their revisions."""
        if call.refusal:
            self._fits(str(call), call.asked, call.end, _refusable(call))
            return
        after: tuple[int, ...] = ()
        fits = _shows(call.task) if call.task is not None else None
        if call.verb not in READING:
            must = call.task is not None and call.verb in ("resume", "retry")
            # What it shows, it shows after its effect.
            before = self._last(fits) if fits is not None else math.inf
            name = f"{call} (effect)"
            effect = self._cause(name, call.start, call.end, call.verb, optional=not must, before=before)
            after = (effect,) if must else ()
            if call.task is not None and (holds := _HOLDS.get(call.verb)) is not None:
                after = (self._fits(f"{call} (holds)", call.start, call.end, holds),)
        if call.task is None or fits is None:
            return
        revision = call.task.revision
        older = max((other for other in shown if other < revision), default=None)
        if older is not None:
            after += tuple(shown[older])
        number = self._fits(str(call), call.asked, call.end, fits, after=after)
        shown.setdefault(revision, []).append(number)

    def _last(self, fits: _Fits) -> int:
        return max((n for n, story in enumerate(self._stories) if fits(story)), default=-1)

    def _cause(
        self, name: str, start: float, end: float, cause: str, *, optional: bool, before: float = math.inf
    ) -> int:
        """Add an operation that makes the next event happen, if that has this cause; up to event number `before`."""
        mine = (cause, "retry due") if cause == "retry" else (cause,)
        places = frozenset(n for n, found in enumerate(self._causes) if found in mine and n < before)
        last = max(places, default=-1)
        self.operations.append(
            Operation(
                name=name,
                start=start,
                end=end,
                kind=cause,
                optional=optional,
                rank=before,
                step=lambda now: now + 1 if now in places else None,
                hopeless=lambda now: now > last,
            )
        )
        return len(self.operations) - 1

    def _fits(self, name: str, start: float, end: float, fits: _Fits, *, after: tuple[int, ...] = ()) -> int:
        places = frozenset(n for n, story in enumerate(self._stories) if fits(story))
        return self._read(name, start, end, places.__contains__, after=after)

    def _read(
        self, name: str, start: float, end: float, fits: Callable[[int], bool], *, after: tuple[int, ...] = ()
    ) -> int:
        last = max((n for n in range(len(self._stories)) if fits(n)), default=-1)
        self.operations.append(
            Operation(
                name=name,
                start=start,
                end=end,
                reads=True,
                after=after,
                step=lambda now: now if fits(now) else None,
                hopeless=lambda now: now > last,
            )
        )
        return len(self.operations) - 1


def _cause(before: TaskStory | None, event: Event, after: TaskStory) -> str:
    """Return what made an event happen: a verb, a result; nothing for what happens by itself."""
    match event.WhichOneof("fact"):
        case "task_delegated":
            return "delegate"
        case "task_paused":
            return "pause"
        case "task_resumed":
            return "resume"
        case "task_retried":
            return "retry"
        case "task_requeued" if event.task_requeued.reason == "RETRY_DUE":
            return "retry due"
        case "task_cancel_requested":
            return "cancel"
        case "task_canceled" if before is not None and before.state != "CANCEL_REQUESTED":
            return "cancel"
        case "task_reported":
            return f"result {after.epoch}"
        case "task_succeeded" if before is not None and before.state != "REPORTED":
            return f"result {after.epoch}"
    return ""


def _open(story: TaskStory | None, epoch: int) -> bool:
    return story is not None and story.held and story.epoch == epoch


def _shows(task: task_pb2.Task) -> _Fits:
    state, held = state_name(task.state), task.HasField("lease")

    def fits(story: TaskStory | None) -> bool:
        if story is None or (story.state, story.attempt) != (state, task.attempt):
            return False
        if state == "INPUT_REQUIRED":
            return True
        lease = (task.lease.lease_epoch, task.lease.HasField("start_time"))
        return story.held == held and (not held or (story.epoch, story.started) == lease)

    return fits


_HOLDS: Final[dict[str, _Fits]] = {
    "delegate": lambda story: story is not None,
    "cancel": lambda story: story is not None and story.state in _STOPPED,
    "pause": lambda story: story is not None and story.state == "PAUSED",
}
"""What is true at the moment of a call's effect, also of one that had nothing to do."""

_REFUSES: Final[dict[str, Callable[[str], bool]]] = {
    "pause": lambda state: state not in _PAUSABLE,
    "resume": lambda state: state != "PAUSED",
    "retry": lambda state: state not in TERMINAL | {"RETRY_WAIT"},
}
"""The states in which a verb is refused."""


def _refusable(call: Call) -> _Fits:
    def fits(story: TaskStory | None) -> bool:
        if call.refusal == "NOT_FOUND":
            return story is None
        if call.refusal == "ALREADY_EXISTS":
            return story is not None
        refuses = _REFUSES.get(call.verb)
        return story is not None and story.state == call.state and refuses is not None and refuses(story.state)

    return fits


def by_task(items: Iterable[Call]) -> dict[str, list[Call]]:
    """Return calls by the task they are about."""
    ordered = sorted(items, key=lambda call: call.task_id)
    return {task_id: list(calls) for task_id, calls in itertools.groupby(ordered, key=lambda call: call.task_id)}
