"""What the event log tells, folded into states, and the rules every history keeps, whatever was killed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from agenthive.client import Client
from agenthive.v1 import event_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.v1.event_pb2 import Event

Key = tuple[str, str]
"""Namespace and id."""

State = str
"""A task's state as in the contract, without its prefix."""

HELD: Final = frozenset({"ASSIGNED", "RUNNING", "CANCEL_REQUESTED", "PAUSED", "INPUT_REQUIRED"})
OPEN: Final = HELD | {"BLOCKED", "QUEUED", "RETRY_WAIT", "REPORTED"}
TERMINAL: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "EXPIRED", "QUARANTINED"})


class HistoryBroken(AssertionError):
    """The log tells something that cannot have happened."""


@dataclass
class TaskStory:
    """A task as its events tell it."""

    state: State = ""
    attempt: int = 0
    epoch: int = 0
    # A lease is open: its attempt was assigned and has not ended.
    held: bool = False
    started: bool = False
    accepted: int = 0
    released: bool = True
    told: list[str] = field(default_factory=list)


@dataclass
class History:
    """Everything a log tells: tasks and sessions by key."""

    tasks: dict[Key, TaskStory] = field(default_factory=dict)
    sessions: dict[Key, int] = field(default_factory=dict)
    ended_sessions: set[Key] = field(default_factory=set)
    last: int = 0

    def take(self, event: Event) -> None:
        """Go on with the next event. Raises `HistoryBroken` when it does not follow from those before."""
        if self.last and event.sequence != self.last + 1:
            raise HistoryBroken(f"event {event.sequence} follows event {self.last}")
        self.last = event.sequence
        fact = event.WhichOneof("fact") or ""
        if fact.startswith("task_"):
            self._task(event, fact)
        elif fact.startswith("session_"):
            self._session(event, fact)

    def _session(self, event: Event, fact: str) -> None:
        key = (event.namespace, event.session_id)
        if key in self.ended_sessions:
            raise HistoryBroken(f"session {key[1]} ended before: {event}")
        if fact == "session_opened":
            _require(key not in self.sessions, event, "the session was opened before")
            self.sessions[key] = 1
        elif fact == "session_resumed":
            epoch = event.session_resumed.session_epoch
            _require(epoch > self.sessions.get(key, 0), event, "a session's epoch only grows")
            self.sessions[key] = epoch
        elif fact == "session_ended":
            self.ended_sessions.add(key)

    def _task(self, event: Event, fact: str) -> None:
        key = (event.namespace, event.task_id)
        if fact == "task_delegated":
            _require(key not in self.tasks, event, "the task was delegated before")
            self.tasks[key] = TaskStory(state=state_name(event.task_delegated.state), told=[fact])
            return
        story = self.tasks.get(key)
        if story is None:
            raise HistoryBroken(f"nobody delegated this task: {event}")
        story.told.append(fact)
        step = _STEPS.get(fact)
        if step is None:
            raise HistoryBroken(f"not an event of the log: {event}")
        step(story, event)

    def succeeded(self) -> set[Key]:
        """Return the tasks that ended well."""
        return {key for key, story in self.tasks.items() if story.state == "SUCCEEDED"}


def fold(events: Iterable[Event]) -> History:
    """Return the history of events from the beginning of a log. Raises `HistoryBroken`."""
    history = History()
    for event in events:
        history.take(event)
    return history


def trace(events: Iterable[Event]) -> dict[Key, list[tuple[Event, TaskStory]]]:
    """Return the events about each task, each with the story as it is after it. Raises `HistoryBroken`."""
    history = History()
    found: dict[Key, list[tuple[Event, TaskStory]]] = {}
    for event in events:
        history.take(event)
        key = (event.namespace, event.task_id)
        if (story := history.tasks.get(key)) is not None:
            found.setdefault(key, []).append((event, replace(story, told=list(story.told))))
    return found


def state_name(state: task_pb2.TaskState.ValueType) -> State:
    """Return a task's state without its prefix."""
    return task_pb2.TaskState.Name(state).removeprefix("TASK_STATE_")


def _require(claim: bool, event: Event, why: str) -> None:
    if not claim:
        raise HistoryBroken(f"{why}: {event}")


def _from(story: TaskStory, event: Event, *states: State) -> None:
    if story.state not in states:
        raise HistoryBroken(f"not from {story.state} (after {', '.join(story.told[-6:])}): {event}")


def _end_lease(story: TaskStory, state: State) -> None:
    story.held = story.started = False
    # A paused task stays so; only what it goes back to has changed.
    if story.state != "PAUSED" or state in TERMINAL or state == "REPORTED":
        story.state = state


def _released(story: TaskStory, event: Event) -> None:
    _from(story, event, "BLOCKED")
    story.state = "QUEUED"


def _assigned(story: TaskStory, event: Event) -> None:
    _from(story, event, "QUEUED")
    fact = event.task_assigned
    _require(not story.held, event, "its last lease is open")
    _require(fact.attempt == story.attempt + 1, event, f"attempt {story.attempt} was the last")
    _require(fact.lease_epoch > story.epoch, event, f"epoch {story.epoch} was the last")
    story.state, story.held = "ASSIGNED", True
    story.attempt, story.epoch = fact.attempt, fact.lease_epoch


def _started(story: TaskStory, event: Event) -> None:
    _from(story, event, "ASSIGNED", "CANCEL_REQUESTED", "PAUSED")
    fact = event.task_started
    _require(story.held and not story.started, event, "no lease that could start")
    _require((fact.attempt, fact.lease_epoch) == (story.attempt, story.epoch), event, "not the open lease")
    story.started = True
    if story.state == "ASSIGNED":
        story.state = "RUNNING"


def _requeued(story: TaskStory, event: Event) -> None:
    if story.state == "RETRY_WAIT":
        _require(event.task_requeued.reason == "RETRY_DUE", event, "only its retry ends this wait")
    else:
        _from(story, event, "ASSIGNED", "RUNNING", "INPUT_REQUIRED", "PAUSED")
        _require(story.held, event, "no lease that could have ended")
        _require(event.task_requeued.attempt == story.attempt, event, "not the open attempt")
    _end_lease(story, "QUEUED")


def _retry_scheduled(story: TaskStory, event: Event) -> None:
    _from(story, event, "ASSIGNED", "RUNNING", "INPUT_REQUIRED", "PAUSED")
    _require(story.held, event, "no lease that could have ended")
    _end_lease(story, "RETRY_WAIT")


def _reported(story: TaskStory, event: Event) -> None:
    _from(story, event, "RUNNING", "CANCEL_REQUESTED", "PAUSED", "INPUT_REQUIRED")
    _require(story.held and story.started, event, "nobody works on it")
    _require(event.task_reported.attempt == story.attempt, event, "not the open attempt")
    _end_lease(story, "REPORTED")


def _succeeded(story: TaskStory, event: Event) -> None:
    _from(story, event, "REPORTED", "RUNNING", "CANCEL_REQUESTED", "PAUSED", "INPUT_REQUIRED")
    if story.state != "REPORTED":
        _require(story.held and story.started, event, "nobody works on it")
    _require(event.task_succeeded.attempt == story.attempt, event, "not the open attempt")
    story.accepted += 1
    _require(story.accepted == 1, event, "a second result was accepted")
    _end_lease(story, "SUCCEEDED")


def _ended(state: State) -> Callable[[TaskStory, Event], None]:
    def end(story: TaskStory, event: Event) -> None:
        _from(story, event, *OPEN)
        _end_lease(story, state)

    return end


def _cancel_requested(story: TaskStory, event: Event) -> None:
    _from(story, event, *(OPEN - {"CANCEL_REQUESTED"}))
    story.state = "CANCEL_REQUESTED"


def _paused(story: TaskStory, event: Event) -> None:
    _from(story, event, "BLOCKED", "QUEUED", "RETRY_WAIT", "ASSIGNED", "RUNNING")
    story.state = "PAUSED"


def _resumed(story: TaskStory, event: Event) -> None:
    _from(story, event, "PAUSED")
    story.state = state_name(event.task_resumed.state)


def _input_requested(story: TaskStory, event: Event) -> None:
    _from(story, event, "RUNNING")
    story.state = "INPUT_REQUIRED"


def _input_received(story: TaskStory, event: Event) -> None:
    _from(story, event, "INPUT_REQUIRED")
    # A question that gave its slot back ended the lease; whose answer goes to the queue.
    story.state = "RUNNING" if event.agent_id else "QUEUED"
    story.held = story.started = bool(event.agent_id)


def _sent_back(story: TaskStory, event: Event) -> None:
    _from(story, event, "REPORTED")
    story.state = "QUEUED"


def _retried(story: TaskStory, event: Event) -> None:
    _from(story, event, *TERMINAL)
    _require(story.state == state_name(event.task_retried.previous_state), event, f"it was {story.state}")
    story.state, story.accepted = "QUEUED", 0


_STEPS: Final[dict[str, Callable[[TaskStory, Event], None]]] = {
    "task_released": _released,
    "task_assigned": _assigned,
    "task_started": _started,
    "task_requeued": _requeued,
    "task_retry_scheduled": _retry_scheduled,
    "task_reported": _reported,
    "task_succeeded": _succeeded,
    "task_failed": _ended("FAILED"),
    "task_cancel_requested": _cancel_requested,
    "task_canceled": _ended("CANCELED"),
    "task_expired": _ended("EXPIRED"),
    "task_quarantined": _ended("QUARANTINED"),
    "task_paused": _paused,
    "task_resumed": _resumed,
    "task_input_requested": _input_requested,
    "task_input_received": _input_received,
    "task_sent_back": _sent_back,
    "task_retried": _retried,
}


# Reading and comparing logs -------------------------------------------------------------------------------------------


async def read_log(client: Client) -> list[Event]:
    """Return every event of the log, of all namespaces, from its beginning to its head as of now."""
    stream = client.events(start=orchestrator.STREAM_START_EARLIEST, follow=False, all_namespaces=True)
    async with stream:
        return [event async for event in stream]


async def head(client: Client) -> int:
    """Return the sequence of the last event of the log."""
    return (await client.health()).last_sequence


def difference(seen: Sequence[Event], log: Sequence[Event]) -> str:
    """Return how a subscriber's log differs from the store's, or nothing when both tell the same, once, in order."""
    for number, (one, other) in enumerate(zip(seen, log, strict=False)):
        if one.SerializeToString(deterministic=True) != other.SerializeToString(deterministic=True):
            return f"number {number} differs: seen {one.sequence} {_fact(one)}, stored {other.sequence} {_fact(other)}"
    if len(seen) != len(log):
        return f"{len(seen)} events seen, {len(log)} stored"
    return ""


def _fact(event: event_pb2.Event) -> str:
    return event.WhichOneof("fact") or "nothing"


def facts(events: Iterable[Event], task_id: str) -> list[str]:
    """Return the names of the facts told of a task, in order."""
    return [_fact(event) for event in events if event.task_id == task_id]
