"""A hive under stress, replayed by its seed: kernel and committer, a store that fails, and actors that misbehave.

Chaos first: callers come and go, workers crash, hang and come back, commits are delayed and fail, the server dies
between
two instructions. Then everything is well again, and what was begun has to come to its end. The invariants of
`simulation_checks.py` are looked at all the time.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from agenthive_server.events.log import EventLog
from agenthive_server.events.notifier import LocalNotifier
from agenthive_server.kernel.agents import AgentSpec, RestartPolicy
from agenthive_server.kernel.changes import ChangeSet, Outcome
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import KernelError, StoreUnavailable
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.limits import Limits
from agenthive_server.kernel.records import Kind
from agenthive_server.kernel.sessions import RunnerCapacity
from agenthive_server.kernel.tasks import Task
from agenthive_server.storage.committer import Committer
from agenthive_server.storage.memory import MemoryStore

from .faults import FaultyStore
from .simulation_callers import Caretaker, SimulatedCaller
from .simulation_checks import Checks
from .simulation_loop import run
from .simulation_workers import SimulatedWorker

T = TypeVar("T")

NAMESPACE = "default"
LIMITS = Limits(accept_timeout=5.0, heartbeat_interval=5.0, reconnect_grace=12.0)
ROUNDS = 80
"""Looks at the invariants while there is chaos, about one a second."""

PATIENCE = 900.0
"""Seconds of good weather after which everything must have come to its end."""


class Gone(Exception):
    """The caller has no answer and does not know what became of its call."""


class Incarnation:
    """One life of the server process."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.loops: list[asyncio.Task[None]] = []
        # In order, for the end: that of a set depends on where the tasks lie in memory.
        self.calls: dict[asyncio.Task[Any], None] = {}


class World:
    """Everything in one simulation."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.clock = ManualClock()
        self.disk = MemoryStore(self.clock, log_id="simulation")
        self.store = FaultyStore(self.disk, before=self._before, after=self._after)
        self.store.reading = self._reading
        self.checks = Checks(self.disk, self.clock)
        self.incarnation: Incarnation | None = None
        # No more faults; nobody misbehaves any more.
        self.calm = False
        self.ended = False
        self.acknowledged: list[tuple[str, int]] = []
        self.delegated: set[str] = set()
        self.crashes = 0
        self._ids = itertools.count(1)
        self._actors: list[asyncio.Task[None]] = []
        self._following = False
        self._broken: Exception | None = None
        self._down_until = 0.0

    # Chance ---------------------------------------------------------------------------------------------------------

    def happens(self, probability: float) -> bool:
        """Draw a misfortune: never when all is calm."""
        return self.dice.random() < probability and not self.calm

    async def pause(self, mean: float) -> None:
        """Let a random time pass."""
        await self.clock.sleep(self.dice.expovariate(1.0 / mean))

    # The store ------------------------------------------------------------------------------------------------------

    async def _before(self, group: Sequence[ChangeSet]) -> None:
        if self.happens(0.25):
            await self.pause(0.05)
        elif self.happens(0.02):
            await self.pause(1.5)
        if self.happens(0.01):
            self._down_until = self.clock.now() + self.dice.expovariate(0.4)
        if self.happens(0.02) or (self.clock.now() < self._down_until and not self.calm):
            self.store.unwritable = "down"
            raise StoreUnavailable("the store is down")
        self.store.unwritable = ""

    async def _after(self, group: Sequence[ChangeSet]) -> None:
        if self.happens(0.1):
            self._following = True
            try:
                await self.pause(0.1)
            finally:
                self._following = False

    async def _reading(self) -> None:
        if self.happens(0.1):
            await self.pause(0.05)
        if self.clock.now() < self._down_until and not self.calm:
            raise StoreUnavailable("the store is down")

    # The server -----------------------------------------------------------------------------------------------------

    async def boot(self) -> None:
        """Start the server on what the store holds."""
        while True:
            try:
                self.incarnation = await self._booted()
                return
            except StoreUnavailable:
                await self.pause(0.5)

    async def _booted(self) -> Incarnation:
        notifier = LocalNotifier(self.clock)
        log = EventLog(self.store, encode=lambda event: b"")
        parts: list[Kernel] = []

        def settled(group: Sequence[tuple[ChangeSet, Outcome]]) -> None:
            try:
                parts[0].settled(group)
            except Exception as error:
                # The committer would only log it.
                self._broken = error
                raise

        def failed(group: Sequence[ChangeSet], error: KernelError) -> None:
            parts[0].failed(group, error)

        committer = Committer(self.store, settled=settled, failed=failed, clock=self.clock)
        kernel = Kernel(
            self.store,
            committer.submit,
            log,
            notifier,
            clock=self.clock,
            new_id=lambda: f"id{next(self._ids)}",
            chance=self.dice.random,
            limits=LIMITS,
        )
        parts.append(kernel)
        kernel.observers += [log.append, _ringing(notifier)]
        await log.open()
        await kernel.open()
        incarnation = Incarnation(kernel)
        for loop in (committer.run, *kernel.loops().values(), notifier.run):
            incarnation.loops.append(asyncio.create_task(loop()))
        return incarnation

    async def crash(self) -> None:
        """End the server between two of its steps; what was not written is lost."""
        incarnation, self.incarnation = self.incarnation, None
        if incarnation is None:
            return
        self.crashes += 1
        self._require_loops(incarnation)
        await _ended([*incarnation.loops, *incarnation.calls])

    @staticmethod
    def _require_loops(incarnation: Incarnation) -> None:
        for loop in incarnation.loops:
            if loop.done():
                raise AssertionError(f"a loop of the server has ended: {loop}") from loop.exception()

    async def call(self, verb: Callable[[Kernel], Coroutine[Any, Any, T]]) -> T:
        """Call the server; raises what the verb raises, and `Gone` when the caller gave up or the server died."""
        incarnation = self.incarnation
        if incarnation is None:
            raise Gone
        task = asyncio.create_task(verb(incarnation.kernel))
        incarnation.calls[task] = None
        try:
            patience = self.dice.expovariate(10.0) if self.happens(0.06) else None
            await asyncio.wait({task}, timeout=patience)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            incarnation.calls.pop(task, None)
        if task.cancelled():
            raise Gone
        return task.result()

    # The run --------------------------------------------------------------------------------------------------------

    def start(self, actor: Coroutine[Any, Any, None]) -> None:
        """Let an actor act until the end."""
        self._actors.append(asyncio.create_task(actor))

    async def look(self, *, thoroughly: bool) -> None:
        """Check the invariants as things stand."""
        if self._broken is not None:
            raise AssertionError(f"what follows a commit failed: {self._broken!r}") from self._broken
        for actor in self._actors:
            if actor.done() and not actor.cancelled() and (error := actor.exception()) is not None:
                raise error
        self._actors = [actor for actor in self._actors if not actor.done()]
        await self.checks.stored()
        incarnation = self.incarnation
        if incarnation is None:
            return
        self._require_loops(incarnation)
        if not self._following:
            await self.checks.memory(incarnation.kernel)
        if thoroughly:
            self.checks.index(incarnation.kernel)
        else:
            self.checks.queues(incarnation.kernel)

    async def tasks(self) -> list[Task]:
        """Return every task as it is stored."""
        return [record for record in await self.disk.scan(Kind.TASK) if isinstance(record, Task)]

    async def live(self) -> None:
        """Chaos, good weather, the end."""
        await self.boot()
        self._people()
        for n in range(ROUNDS):
            await self.pause(1.0)
            await self.look(thoroughly=n % 4 == 0)
            if self.happens(0.03):
                await self.crash()
                await self.look(thoroughly=False)
                await self.pause(4.0)
                await self.boot()
        self.calm = True
        self.start(Caretaker(self).run())
        await self._come_to_an_end()
        await self._end()

    def _people(self) -> None:
        restart = RestartPolicy(initial_interval=0.5, maximum_interval=3.0, maximum_restarts=50, window=60.0)
        able = AgentSpec(capabilities=("a", "b"), slots=4, role="coder")
        self.start(SimulatedWorker(self, "able", {"able": able}).run())
        plain = {"p1": AgentSpec(), "p2": AgentSpec(slots=2, capabilities=("a",))}
        self.start(SimulatedWorker(self, "plain", plain).run())
        self.start(SimulatedWorker(self, "single", {"single": AgentSpec(capabilities=("b",), role="coder")}).run())
        capacity = RunnerCapacity(drivers=("process",), maximum_agents=2)
        self.start(SimulatedWorker(self, "runner", {}, runner=capacity).run())
        local = AgentSpec(driver="process", restart=restart, stop_grace=2.0, start_timeout=6.0, capabilities=("a",))
        for name in ("x", "y", "z"):
            self.start(SimulatedCaller(self, name, local).run())

    async def _come_to_an_end(self) -> None:
        end = self.clock.now() + PATIENCE
        starved: set[str] = set()
        while self.clock.now() < end:
            await self.clock.sleep(8.0)
            await self.look(thoroughly=False)
            incarnation = self.incarnation
            assert incarnation is not None
            tasks = await self.tasks()
            if all(task.terminal for task in tasks):
                return
            now_starved = self.checks.starved(incarnation.kernel, tasks)
            assert not starved & now_starved, f"{starved & now_starved} wait although agents are free"
            starved = now_starved
        assert self.incarnation is not None
        self.checks.quiet(self.incarnation.kernel, await self.tasks())

    async def _end(self) -> None:
        await self.look(thoroughly=True)
        missing = self.delegated - {task.id for task in await self.tasks()}
        assert not missing, f"acknowledged and lost: {missing}"
        for task_id, epoch in self.acknowledged:
            known = self.checks.log.tasks[NAMESPACE, task_id].results
            assert epoch in known, f"the acknowledged result of {task_id}, attempt {epoch}, is lost"
        self.ended = True
        await self.crash()
        await _ended(self._actors)


def _ringing(notifier: LocalNotifier) -> Callable[[Sequence[Event]], None]:
    return lambda events: notifier.ring(events[-1].sequence)


async def _ended(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


class SimulationFailed(AssertionError):
    """An invariant broke; the message says how to see it again."""


def simulate(seed: int) -> World:
    """Run the simulation of a seed; raises `SimulationFailed`. The same seed gives the same run."""
    world = World(seed)
    try:
        run(world.live, world.clock, world.dice)
    except (AssertionError, KernelError, LookupError, RuntimeError, TypeError, ValueError) as error:
        again = f"make soak SEED={seed} ROUNDS=1 ARGS=tests/server/kernel/test_simulation.py"
        raise SimulationFailed(f"seed {seed}: {type(error).__name__}: {error}\nsee it again: {again}") from error
    return world
