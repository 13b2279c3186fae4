"""Reading tasks: one, a page, waiting for an outcome, explaining the routing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from .assign import exclusions, requirement_of, score
from .clock import Clock
from .decide import Decisions
from .errors import task_not_found
from .events import TERMINAL_EVENTS, Event, EventType
from .index import Index
from .ports import Query, Store
from .records import Key, Kind
from .tasks import Progress, Strategy, Task, TaskSpec, TaskState

ATTENTION = frozenset({TaskState.REPORTED, TaskState.INPUT_REQUIRED})
WAKING = TERMINAL_EVENTS | {EventType.TASK_REPORTED, EventType.TASK_INPUT_REQUESTED}
MAX_CANDIDATES = 1_000
LOOKED_AT = 500
"""Agents looked at in one turn of the loop."""


@dataclass(frozen=True, slots=True)
class RoutingCandidate:
    """How one agent stands to a task."""

    agent_id: str
    eligible: bool
    score: float
    exclusions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a task would go where."""

    strategy: Strategy
    candidates: tuple[RoutingCandidate, ...]
    queue_position: int


class TaskQueries:
    """Answers from committed records only."""

    def __init__(self, decisions: Decisions, store: Store, index: Index, clock: Clock) -> None:
        self._decisions = decisions
        self._memory = decisions.memory
        self._store = store
        self._index = index
        self._clock = clock
        self._waiters: dict[Key, list[asyncio.Future[None]]] = {}
        self._draining = False

    async def get(self, namespace: str, task_id: str) -> tuple[Task, Progress | None]:
        """Return a task and how far it is; raises `NotFound`."""
        key = (namespace, task_id)
        await self._decisions.fresh()
        progress = self._memory.committed((Kind.PROGRESS, key))
        if progress is None:
            progress = (await self._store.get(Kind.PROGRESS, [key]))[0]
        return await self._task(key), cast("Progress | None", progress)

    async def _task(self, key: Key) -> Task:
        task = self._memory.committed((Kind.TASK, key))
        if task is None:
            task = (await self._store.get(Kind.TASK, [key]))[0]
        if task is None:
            raise task_not_found(key[1])
        return cast(Task, task)

    async def list(self, query: Query) -> list[Task]:
        """Return a page of tasks, newest first."""
        return cast("list[Task]", await self._store.query(Kind.TASK, query))

    async def wait(self, namespace: str, task_id: str, *, timeout: float, until_attention: bool = False) -> Task:  # noqa: ASYNC109 - a long poll's span is part of its meaning, not a limit on the call
        """Return the task once it is terminal (or wants attention).

        As it stands after `timeout` seconds or at drain.
        """
        key = (namespace, task_id)
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        await self._decisions.fresh()
        while True:
            task = await self._task(key)
            if task.terminal or (until_attention and task.state in ATTENTION) or self._draining:
                return task
            left = end - loop.time()
            if left <= 0:
                return task
            await self._woken(key, left)

    async def _woken(self, key: Key, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        waiters = self._waiters.setdefault(key, [])
        waiters.append(future)
        timer = loop.call_later(seconds, _wake, future)
        try:
            await future
        finally:
            timer.cancel()
            waiters.remove(future)
            if not waiters:
                self._waiters.pop(key, None)

    def observe(self, events: Iterable[Event]) -> None:
        """Wake those who wait for the tasks these committed facts are about."""
        if not self._waiters:
            return
        for event in events:
            if event.type in WAKING:
                for future in self._waiters.get((event.namespace, event.task_id), ()):
                    _wake(future)

    def drain(self) -> None:
        """Let every waiter answer with the task as it stands, now and from now on."""
        self._draining = True
        for waiters in self._waiters.values():
            for future in waiters:
                _wake(future)

    async def explain(self, namespace: str, *, task_id: str = "", spec: TaskSpec | None = None) -> Explanation:
        """Say which agents are eligible for a task, how they score, and why the others are not."""
        position = -1
        await self._decisions.fresh()
        if spec is None:
            task = await self._task((namespace, task_id))
            position = self._index.pool.position(task.key)
        else:
            task = Task(namespace=namespace, id="", spec=spec, state=TaskState.QUEUED)
        pool = self._index.pool
        need = requirement_of(task, self._clock.now())
        strategy = task.spec.strategy or pool.default_strategy
        found: list[RoutingCandidate] = []
        for number, agent in enumerate(list(pool.agents_of(namespace)), 1):
            if number % LOOKED_AT == 0:
                await asyncio.sleep(0)
            words = tuple(exclusions(need, agent))
            points = 0.0 if words else score(strategy, need, task.spec.priority, agent)
            if not words:
                points += sum(scorer(task.spec, agent) for scorer in pool.scorers)
            found.append(RoutingCandidate(agent.key[1], not words, points, words))
        found.sort(key=lambda c: (not c.eligible, -c.score, c.agent_id))
        return Explanation(strategy, tuple(found[:MAX_CANDIDATES]), position)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
