"""A kernel in a box: kernel, committer and memory store on a clock that tests move, with workers the tests play."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from agenthive_server.events.log import EventLog
from agenthive_server.events.notifier import LocalNotifier
from agenthive_server.kernel.agents import AgentSpec
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import KernelError
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.limits import Limits
from agenthive_server.kernel.ports import Store
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.session_items import (
    Accept,
    Assign,
    Delivery,
    Hello,
    HostedAgent,
    Item,
    Refusal,
    Result,
    Welcome,
)
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import Task, TaskSpec
from agenthive_server.storage.committer import Committer
from agenthive_server.storage.memory import MemoryStore

NAMESPACE = "default"


class PlayedLink:
    """A stream that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Delivery] = []
        self.error: KernelError | None = None

    def deliver(self, delivery: Delivery) -> None:
        """Write down one delivery."""
        self.told.append(delivery)

    def fence(self, error: KernelError) -> None:
        """Write down the end."""
        self.error = error

    def take(self) -> list[Delivery]:
        """Return what was told since the last call."""
        told, self.told = self.told, []
        return told


class PlayedWorker:
    """A worker whose every word is the test's."""

    def __init__(self, hive: Hive, welcome: Welcome, link: PlayedLink) -> None:
        self.hive = hive
        self.welcome = welcome
        self.link = link

    @property
    def session_id(self) -> str:
        """The session."""
        return self.welcome.session_id

    async def say(self, *items: Item) -> list[Refusal]:
        """Send one frame."""
        return await self.hive.kernel.sessions.apply(NAMESPACE, self.session_id, self.welcome.epoch, items)

    def assignments(self) -> list[Assign]:
        """Return the tasks assigned so far."""
        return [told for told in self.link.told if isinstance(told, Assign)]

    async def finish(self, assign: Assign, data: bytes = b"done") -> list[Refusal]:
        """Accept and complete a task in one frame."""
        epoch = assign.task.lease_epoch
        return await self.say(Accept(assign.task.id, epoch), Result(assign.task.id, epoch, result=Payload(data=data)))

    async def lose(self, reason: str = "cut") -> None:
        """Break the stream."""
        await self.hive.kernel.sessions.lost(NAMESPACE, self.session_id, self.welcome.epoch, reason)


class Hive:
    """A running kernel and the ways a test acts on it."""

    def __init__(
        self,
        kernel: Kernel,
        store: Store,
        committer: Committer,
        clock: ManualClock,
        log: EventLog,
        notifier: LocalNotifier,
    ) -> None:
        self.log = log
        self.notifier = notifier
        self.kernel = kernel
        self.store = store
        self.committer = committer
        self.clock = clock
        self._requests = itertools.count(1)

    def caller(self, request_id: str = "", method: str = "test", digest: str = "d") -> Caller:
        """Return a caller; with an empty request id, one that cannot be repeated."""
        return Caller(namespace=NAMESPACE, method=method, request_id=request_id, digest=digest)

    async def delegate(self, task_id: str = "", **spec: object) -> Task:
        """Delegate one task of type `work`."""
        made = TaskSpec(**{"type": "work", **spec})  # type: ignore[arg-type]  # tests write fields by name
        return (await self.kernel.tasks.delegate(self.caller(), [NewTask(id=task_id, spec=made)]))[0]

    async def task(self, task_id: str) -> Task:
        """Return a task as callers see it."""
        return (await self.kernel.queries.get(NAMESPACE, task_id))[0]

    async def worker(self, *agent_ids: str, hello: Hello | None = None, **spec: object) -> PlayedWorker:
        """Connect a worker that hosts these agents."""
        made = AgentSpec(**spec)  # type: ignore[arg-type]  # tests write fields by name
        agents = tuple(HostedAgent(agent_id=agent_id, spec=made) for agent_id in agent_ids)
        link = PlayedLink()
        welcome = await self.kernel.sessions.connect(NAMESPACE, "", hello or Hello(agents=agents), link)
        return PlayedWorker(self, welcome, link)

    async def settle(self) -> None:
        """Let everything that can happen now happen."""
        await settle(60)

    async def advance(self, seconds: float) -> None:
        """Let time pass."""
        await self.clock.advance(seconds)
        await self.settle()


@asynccontextmanager
async def open_hive(
    *,
    limits: Limits | None = None,
    store: Callable[[ManualClock], Store] | Store | None = None,
    clock: ManualClock | None = None,
    seed: int = 0,
) -> AsyncIterator[Hive]:
    """Open a kernel with its loops running; everything is stopped at the end, the committer last."""
    clock = clock or ManualClock()
    made = MemoryStore(clock) if store is None else store(clock) if callable(store) else store
    await made.open()
    notifier = LocalNotifier(clock)
    log = EventLog(made, encode=lambda event: b"")
    await log.open()
    dice = random.Random(seed)
    ids = itertools.count(1)
    parts: list[Kernel] = []
    committer = Committer(
        made,
        settled=lambda group: parts[0].settled(group),  # noqa: PLW0108 - there is no kernel yet
        failed=lambda group, error: parts[0].failed(group, error),  # noqa: PLW0108 - there is no kernel yet
        clock=clock,
    )
    kernel = Kernel(
        made,
        committer.submit,
        log,
        notifier,
        clock=clock,
        new_id=lambda: f"id-{seed}-{next(ids)}",
        chance=dice.random,
        limits=limits,
    )
    parts.append(kernel)
    kernel.observers += [log.append, lambda events: notifier.ring(events[-1].sequence)]
    await kernel.open()
    committing = asyncio.create_task(committer.run())
    loops = [asyncio.create_task(loop()) for loop in (*kernel.loops().values(), notifier.run)]
    # Every loop has begun to wait before the test moves the clock.
    await settle()
    try:
        yield Hive(kernel, made, committer, clock, log, notifier)
    finally:
        for loop in loops:
            loop.cancel()
        ends = await asyncio.gather(*loops, return_exceptions=True)
        await committer.stop()
        await committing
        await made.close()
    for end in ends:
        # A loop that ended by itself is a bug, whatever the test looked at.
        if not isinstance(end, asyncio.CancelledError):
            raise RuntimeError("a loop of the kernel has ended") from end
