"""A crowd: the real kernel with any number of agents and tasks, without network and without a database.

Every agent has a session of its own that answers when it is told to. Time stands still and names follow from a seed, so
that what is counted is the same every time.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agenthive_server.events.log import EventLog
from agenthive_server.events.notifier import LocalNotifier
from agenthive_server.kernel import transitions
from agenthive_server.kernel.agents import Agent, AgentSpec, AgentState
from agenthive_server.kernel.changes import COMMITTED, ChangeSet, Outcome
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import KernelError
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.records import Key, Payload
from agenthive_server.kernel.session_items import Accept, Delivery, Result
from agenthive_server.kernel.sessions import Session
from agenthive_server.kernel.tasks import TaskSpec, make_spec
from agenthive_server.rpc.convert.events import event_bytes
from agenthive_server.storage.committer import Committer
from agenthive_server.storage.memory import MemoryStore

KEPT = 8_192
"""Events the store keeps; the crowd reads none that are older."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a crowd has many of. Shares are parts of the tasks."""

    kinds: int = 8
    fairness_keys: int = 20
    namespaces: int = 1
    pinned: float = 0.0
    avoiding: float = 0.0


class _NoStore(MemoryStore):
    """Numbers events and keeps the newest; records stay in the kernel's memory only."""

    async def commit(self, group: Sequence[ChangeSet]) -> Sequence[Outcome]:
        for changes in group:
            self._append(changes.events)
        if len(self._events) > 2 * KEPT:
            del self._events[:-KEPT]
        return [COMMITTED] * len(group)


class _Deaf:
    """A stream that nobody listens to."""

    def deliver(self, delivery: Delivery) -> None:
        """Say nothing."""

    def fence(self, error: KernelError) -> None:
        """Say nothing."""


class Crowd:
    """Agents that are in contact and tasks that wait."""

    def __init__(self, shape: Shape, seed: int = 1) -> None:
        self.clock = ManualClock()
        store = _NoStore(self.clock)
        notifier = LocalNotifier(self.clock)
        self.log = EventLog(store, event_bytes)
        # The kernel is told what the committer wrote, and the committer is the kernel's.
        self.committer = Committer(
            store,
            settled=lambda group: self.kernel.settled(group),  # noqa: PLW0108 - there is no kernel yet
            failed=lambda group, error: self.kernel.failed(group, error),  # noqa: PLW0108 - there is no kernel yet
            clock=self.clock,
        )
        ids = itertools.count(1)
        self._dice = random.Random(seed)
        self.kernel = Kernel(
            store,
            self.committer.submit,
            self.log,
            notifier,
            clock=self.clock,
            new_id=lambda: f"id-{next(ids)}",
            chance=self._dice.random,
        )
        self.kernel.observers += [self.log.append, self._observe]
        self._shape = shape
        self._agents = 0
        self._tasks = 0
        self._held: list[Key] = []

    def _observe(self, events: Sequence[Event]) -> None:
        self._held += [(e.namespace, e.task_id) for e in events if e.type is EventType.TASK_ASSIGNED]

    def _namespace(self, number: int) -> str:
        return f"space-{number % self._shape.namespaces}"

    def add_agents(self, count: int) -> None:
        """Let agents come, each in a session of its own, with one slot."""
        memory, now = self.kernel.memory, self.clock.now()
        for number in range(self._agents, self._agents + count):
            namespace = self._namespace(number)
            session = Session(namespace=namespace, id=f"session-{number:012d}", revision=1, open_time=now)
            kind = number // self._shape.namespaces % self._shape.kinds
            spec = AgentSpec(capabilities=("any", f"kind-{kind}"))
            agent = Agent(
                namespace=namespace,
                id=f"agent-{number:012d}",
                revision=1,
                spec=spec,
                state=AgentState.READY,
                session_id=session.id,
            )
            self.kernel.contacts.add(session.key, session.epoch, _Deaf())
            memory.load((session, agent))
        self._agents += count

    def add_tasks(self, count: int) -> None:
        """Let tasks come, one after the other; agents are given them by `assign`."""
        for number in range(self._tasks, self._tasks + count):
            now = self.clock.now() + number * 1e-6
            task, _ = transitions.new(
                self._namespace(number), f"task-{number:020d}", self._spec(), ancestors=(), waiting_on=(), now=now
            )
            if self._dice.random() < self._shape.avoiding:
                task = task.evolve(avoid=((self._anyone(), now + 60.0),))
            self.kernel.memory.load((task.evolve(revision=1),))
        self._tasks += count

    def _spec(self) -> TaskSpec:
        dice, shape = self._dice, self._shape
        pinned = dice.random() < shape.pinned
        kind = f"kind-{dice.randrange(shape.kinds)}" if dice.random() < 0.9 else "any"
        return make_spec(
            type="work",
            input=Payload(content_type="application/json", data=b'{"path": "server/kernel"}'),
            title="a task of the crowd",
            agent_id=self._anyone() if pinned else "",
            required_capabilities=() if pinned else (kind,),
            priority=dice.randint(1, 5),
            fairness_key=f"key-{dice.randrange(shape.fairness_keys)}",
        )

    def _anyone(self) -> str:
        return f"agent-{self._dice.randrange(self._agents):012d}"

    async def assign(self, most: int) -> int:
        """Let the dispatcher assign, at least `most` tasks if there are agents for them; returns how many it did."""
        dispatcher = self.kernel.dispatcher
        before = dispatcher.assigned
        while dispatcher.assigned - before < most and self.kernel.pool.open:
            await dispatcher.wave()
        return dispatcher.assigned - before

    async def finish(self, count: int) -> None:
        """Let some of the agents that hold a task accept it and report its result, each in one frame of its own."""
        for _ in range(count):
            at = self._dice.randrange(len(self._held))
            self._held[at], self._held[-1] = self._held[-1], self._held[at]
            namespace, task_id = self._held.pop()
            task = self.kernel.memory.task((namespace, task_id))
            assert task is not None
            assert task.lease is not None
            epoch, done = task.lease.epoch, Payload(data=b"done")
            said = (Accept(task_id, epoch), Result(task_id, epoch, result=done))
            await self.kernel.sessions.apply(namespace, task.lease.session_id, 1, said)

    @property
    def held(self) -> int:
        """How many tasks agents hold."""
        return len(self._held)


@asynccontextmanager
async def open_crowd(shape: Shape, *, seed: int = 1) -> AsyncIterator[Crowd]:
    """Open an empty crowd, its committer running; the loops of the kernel are not, for they look at clocks."""
    crowd = Crowd(shape, seed)
    await crowd.log.open()
    await crowd.kernel.open()
    committing = asyncio.create_task(crowd.committer.run())
    try:
        yield crowd
    finally:
        await crowd.committer.stop()
        await committing
