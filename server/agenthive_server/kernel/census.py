"""How many tasks and agents there are in each state, and how many events of each type: counted as they change.

Counting on demand would stop everything for as long as there are tasks; counting along costs a change of state three
tenths of a microsecond.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, cast

from .agent_verbs import ShownAgent
from .agents import Agent
from .clock import Clock
from .events import Event, EventType
from .memory import TASK, Changed, Memory
from .tasks import TERMINAL, Task, TaskState

_EVERY: Final = 1.0
_SHARE: Final = 50
"""Looking at all agents takes at most one part in so many of the time."""


class Census:
    """Made before the memory is filled. `tasks` holds the open ones, as decisions see them."""

    def __init__(self, memory: Memory, shown: Callable[[Agent], ShownAgent], clock: Clock) -> None:
        self._memory = memory
        self._shown = shown
        self._clock = clock
        self.tasks: Counter[TaskState] = Counter()
        self.events: Counter[EventType] = Counter()
        self._agents: Counter[str] = Counter()
        self._look_again = float("-inf")
        memory.listeners.append(self._changed)

    def _changed(self, changes: Iterable[Changed]) -> None:
        tasks = self.tasks
        for (kind, _), old, new in changes:
            if kind is not TASK:
                continue
            was = cast(Task, old).state if old is not None else None
            now = cast(Task, new).state if new is not None else None
            if was is now:
                continue
            if was is not None and was not in TERMINAL:
                tasks[was] -= 1
            if now is not None and now not in TERMINAL:
                tasks[now] += 1

    def observe(self, events: Iterable[Event]) -> None:
        """Count events that were committed."""
        counts = self.events
        for event in events:
            counts[event.type] += 1

    def agents(self) -> Counter[str]:
        """Return how many agents there are by state as callers see it, at most a second old where they are few."""
        began = self._clock.monotonic()
        if began >= self._look_again:
            self._agents = Counter(self._shown(agent).state for agent in self._memory.all(Agent))
            took = self._clock.monotonic() - began
            self._look_again = began + max(_EVERY, _SHARE * took)
        return self._agents
