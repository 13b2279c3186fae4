"""What `hive top` knows: agents and tasks as last listed, and what the event stream said of the last minute."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final

from agenthive.cli import text
from agenthive.cli.agent_views import agent_state
from agenthive.cli.event_text import fact_of
from agenthive.cli.json_form import as_json
from agenthive.v1 import task_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agenthive.v1.agent_pb2 import Agent
    from agenthive.v1.event_pb2 import Event, TaskProgressed
    from agenthive.v1.orchestrator_service_pb2 import HealthCheckResponse
    from agenthive.v1.task_pb2 import Task

WINDOW_SECONDS: Final = 60.0
_RECENT: Final = 200
_FACTS: Final = {
    "task_delegated": "delegated",
    "task_started": "started",
    "task_succeeded": "succeeded",
    "task_failed": "failed",
    "task_expired": "failed",
    "task_quarantined": "failed",
    "task_canceled": "canceled",
    "task_retry_scheduled": "retried",
}
WAITING_STATES: Final = (
    task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RETRY_WAIT, task_pb2.TASK_STATE_BLOCKED,
    task_pb2.TASK_STATE_INPUT_REQUIRED, task_pb2.TASK_STATE_REPORTED, task_pb2.TASK_STATE_PAUSED,
)  # fmt: skip
HELD_STATES: Final = (
    task_pb2.TASK_STATE_ASSIGNED, task_pb2.TASK_STATE_RUNNING, task_pb2.TASK_STATE_CANCEL_REQUESTED
)  # fmt: skip


class Board:
    """Everything the view shows. Takes answers and events; works nothing out twice."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self.health: HealthCheckResponse | None = None
        self.trouble = ""
        self.agents: Sequence[Agent] = ()
        self.waiting: Sequence[Task] = ()
        self.held: dict[str, list[Task]] = {}
        self.progress: dict[str, TaskProgressed] = {}
        self.recent: deque[Event] = deque(maxlen=_RECENT)
        self._counted: deque[tuple[float, str]] = deque()

    def take_lists(self, agents: Sequence[Agent], held: Sequence[Task], waiting: Sequence[Task]) -> None:
        """Take agents and tasks as they are now."""
        self.agents, self.waiting, self.held = agents, waiting, {}
        for task in held:
            self.held.setdefault(task.lease.agent_id, []).append(task)
        alive = {task.task_id for task in held}
        self.progress = {task_id: said for task_id, said in self.progress.items() if task_id in alive}

    def take_event(self, event: Event, at: float) -> None:
        """Take an event that was read at this time."""
        fact = fact_of(event)
        if fact == "task_progressed":
            self.progress[event.task_id] = event.task_progressed
        if not event.sequence:
            return
        self.recent.append(event)
        self._counted.append((min(at, text.seconds(event.time)), fact))

    def throughput(self, at: float) -> dict[str, int]:
        """Return what happened in the last minute, with all events under `events`."""
        while self._counted and self._counted[0][0] < at - WINDOW_SECONDS:
            self._counted.popleft()
        counts: Counter[str] = Counter(_FACTS[fact] for _, fact in self._counted if fact in _FACTS)
        named = {name: counts[name] for name in dict.fromkeys(_FACTS.values())}
        return {"events": len(self._counted), **named}

    def agent_states(self) -> dict[str, int]:
        """Return how many agents are in each state, the most frequent first."""
        return dict(Counter(agent_state(agent) for agent in self.agents).most_common())

    def document(self, at: float) -> dict[str, Any]:
        """Return everything for a script."""
        return {
            "health": as_json(self.health) if self.health is not None else None,
            "agents": as_json(self.agents),
            "held_tasks": as_json([task for tasks in self.held.values() for task in tasks]),
            "waiting_tasks": as_json(self.waiting),
            "last_minute": self.throughput(at),
        }
