"""What is known of the hive, from its events alone: agents, tasks, and the last things that happened."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agenthive.v1.event_pb2 import Event
from agenthive.v1.orchestrator_service_pb2 import NewTask

LAST = 12
TERMINAL = {"SUCCEEDED", "FAILED", "CANCELED", "EXPIRED", "QUARANTINED"}
TASK_STATES = {
    "task_delegated": "QUEUED", "task_released": "QUEUED", "task_assigned": "ASSIGNED", "task_started": "RUNNING",
    "task_requeued": "QUEUED", "task_retry_scheduled": "RETRY_WAIT", "task_succeeded": "SUCCEEDED",
    "task_failed": "FAILED", "task_cancel_requested": "CANCEL_REQUESTED", "task_canceled": "CANCELED",
    "task_expired": "EXPIRED", "task_quarantined": "QUARANTINED",
}  # fmt: skip
AGENT_STATES = {
    "agent_spawned": "STARTING", "agent_placed": "STARTING", "agent_ready": "READY", "agent_restarting": "STARTING",
    "agent_failed": "FAILED", "agent_lost": "LOST", "agent_stopped": "STOPPED", "agent_draining": "DRAINING",
}  # fmt: skip

QUIET = {"task_delegated", "task_released", "task_assigned", "agent_spawned", "agent_placed"}
"""Facts that change the picture, but are not worth a line: what follows from them is."""


@dataclass
class AgentSeen:
    """An agent, as its events tell."""

    agent_id: str
    state: str = "STARTING"
    task_id: str = ""
    fraction: float = 0.0
    text: str = ""
    done: int = 0


@dataclass
class TaskSeen:
    """A task, as its events tell."""

    task_id: str
    title: str
    state: str = ""
    agent_id: str = ""
    attempt: int = 0

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state in TERMINAL


class Picture:
    """Built by `take`, one event after the other."""

    def __init__(self, tasks: Mapping[str, NewTask]) -> None:
        self.agents: dict[str, AgentSeen] = {}
        self.tasks = {task_id: TaskSeen(task_id, task.spec.title) for task_id, task in tasks.items()}
        self.last: deque[tuple[float, str, str]] = deque(maxlen=LAST)
        self.events = 0
        self._began = 0.0

    def take(self, event: Event) -> str:
        """Take an event in; returns the name of its fact, empty when there is no line about it."""
        fact = event.WhichOneof("fact") or ""
        self.events += event.sequence > 0
        if fact in AGENT_STATES:
            self._agent(event, fact)
        elif fact in TASK_STATES and event.task_id in self.tasks:
            self._task(event, fact)
        elif fact == "task_progressed":
            self._progress(event)
            return ""
        else:
            return ""
        self._began = self._began or event.time.ToNanoseconds() / 1e9
        if fact not in QUIET:
            self.last.append((event.time.ToNanoseconds() / 1e9 - self._began, fact, describe(event, fact)))
            return fact
        return ""

    def _agent(self, event: Event, fact: str) -> None:
        agent = self.agents.setdefault(event.agent_id, AgentSeen(event.agent_id))
        agent.state = AGENT_STATES[fact]

    def _task(self, event: Event, fact: str) -> None:
        task = self.tasks[event.task_id]
        before, task.state = self.agents.get(task.agent_id), TASK_STATES[fact]
        if fact == "task_delegated" and event.task_delegated.state:
            task.state = "BLOCKED" if event.task_delegated.state == 1 else "QUEUED"
        if fact in ("task_assigned", "task_started"):
            task.agent_id = event.agent_id
            task.attempt = getattr(event, fact).attempt
            agent = self.agents.setdefault(event.agent_id, AgentSeen(event.agent_id))
            agent.task_id, agent.fraction, agent.text = task.task_id, 0.0, ""
        elif before is not None and fact != "task_cancel_requested":
            before.task_id = "" if before.task_id == task.task_id else before.task_id
            before.done += fact == "task_succeeded"

    def _progress(self, event: Event) -> None:
        if (agent := self.agents.get(event.agent_id)) and agent.task_id == event.task_id:
            agent.fraction, agent.text = event.task_progressed.fraction, event.task_progressed.text

    @property
    def counts(self) -> Counter[str]:
        """How many tasks are in which state."""
        return Counter(task.state for task in self.tasks.values() if task.state)

    @property
    def over(self) -> bool:
        """Whether every task has ended."""
        return all(task.over for task in self.tasks.values())


def describe(event: Event, fact: str) -> str:
    """Return an event about an agent or a task as a phrase for people."""
    said: Any = getattr(event, fact)
    subject = event.task_id or event.agent_id
    phrase = f"{subject} {fact.partition('_')[2].replace('_', ' ')}"
    if fact in ("task_assigned", "task_started", "task_succeeded"):
        phrase += f" {'by' if fact == 'task_succeeded' else 'to' if fact == 'task_assigned' else 'on'} {event.agent_id}"
        return phrase + (f" (attempt {said.attempt})" if said.attempt > 1 else "")
    reason = getattr(said, "reason", "")
    return phrase + (f": {reason}" if reason else "")
