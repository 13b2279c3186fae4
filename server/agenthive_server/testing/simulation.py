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
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from agenthive_server.kernel.agents import AgentSpec, RestartPolicy
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import KernelError, StoreUnavailable
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.records import Kind
from agenthive_server.kernel.sessions import RunnerCapacity
from agenthive_server.kernel.tasks import Task
from agenthive_server.storage.memory import MemoryStore

from .faults import FaultyStore
from .simulation_callers import Caretaker, SimulatedCaller
from .simulation_checks import Checks
from .simulation_loop import run
from .simulation_server import SimulatedServer
from .simulation_workers import SimulatedWorker

T = TypeVar("T")

NAMESPACE = "default"
ROUNDS = 80
"""Looks at the invariants while there is chaos, about one a second."""

PATIENCE = 900.0
"""Seconds of good weather after which everything must have come to its end."""


class Gone(Exception):
    """The caller has no answer and does not know what became of its call."""


W = TypeVar("W", bound="World")


class World:
    """Everything in one simulation."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.clock = ManualClock()
        self.disk = self.make_disk()
        self.checks = Checks(self.disk, self.clock)
        self.servers: list[SimulatedServer] = []
        # No more faults; nobody misbehaves any more.
        self.calm = False
        # Seconds after which callers give up waiting for an answer; None: they wait.
        self.deadline: float | None = None
        # The newest revision of each task that somebody was told of.
        self.revisions: dict[str, int] = {}
        self.ended = False
        self.acknowledged: list[tuple[str, int]] = []
        self.delegated: set[str] = set()
        self.crashes = 0
        self._ids = itertools.count(1)
        self._actors: list[asyncio.Task[None]] = []

    def make_disk(self) -> MemoryStore:
        """Return where everything is in the end."""
        return MemoryStore(self.clock, log_id="simulation")

    # Chance ---------------------------------------------------------------------------------------------------------

    def happens(self, probability: float) -> bool:
        """Draw a misfortune: never when all is calm."""
        return self.dice.random() < probability and not self.calm

    async def pause(self, mean: float) -> None:
        """Let a random time pass."""
        await self.clock.sleep(self.dice.expovariate(1.0 / mean))

    def new_id(self) -> str:
        """Make an id."""
        return f"id{next(self._ids)}"

    # The server -----------------------------------------------------------------------------------------------------

    @property
    def server(self) -> SimulatedServer | None:
        """The one that callers and workers find at this moment."""
        return self.servers[0] if self.servers else None

    def make_store(self) -> FaultyStore:
        """Return the store for a server."""
        return FaultyStore(self.disk)

    async def boot(self, name: str = "") -> None:
        """Start a server on what the store holds."""
        while True:
            server = SimulatedServer(self, name, self.make_store())
            try:
                await server.open()
            except StoreUnavailable:
                await server.kill()
                await self.pause(0.5)
            else:
                self.servers.append(server)
                return

    async def crash(self, server: SimulatedServer) -> None:
        """End a server between two of its steps; what was not written is lost."""
        self.servers.remove(server)
        self.crashes += 1
        server.require_well()
        await server.kill()

    async def call(self, verb: Callable[[Kernel], Coroutine[Any, Any, T]], at: SimulatedServer | None = None) -> T:
        """Call a server; raises what the verb raises, and `Gone` when the caller gave up or the server died."""
        server = at or self.server
        if server is None or not server.alive:
            raise Gone
        task = server.process.start(verb(server.kernel))
        patience = self.dice.expovariate(10.0) if self.happens(0.06) else self.deadline
        await asyncio.wait({task}, timeout=patience)
        if not task.done():
            task.cancel()
            if not server.process.stopped:
                await asyncio.wait({task})
        if not task.done() or task.cancelled():
            raise Gone
        return task.result()

    # The run --------------------------------------------------------------------------------------------------------

    def start(self, actor: Coroutine[Any, Any, None]) -> None:
        """Let an actor act until the end."""
        self._actors.append(asyncio.create_task(actor))

    async def look(self, *, thoroughly: bool) -> None:
        """Check the invariants as things stand."""
        for actor in self._actors:
            if actor.done() and not actor.cancelled() and (error := actor.exception()) is not None:
                raise error
        self._actors = [actor for actor in self._actors if not actor.done()]
        await self.checks.stored()
        for server in self.servers:
            server.require_well()
            if self.knows_all(server):
                await self.checks.memory(server.kernel)
                await self.checks.progress(server.kernel)
            if thoroughly:
                self.checks.index(server.kernel)
            else:
                self.checks.queues(server.kernel)

    def knows_all(self, server: SimulatedServer) -> bool:
        """Whether memory should hold what the store does at this moment."""
        return not server.following

    async def tasks(self) -> list[Task]:
        """Return every task as it is stored."""
        return [record for record in await self.disk.scan(Kind.TASK) if isinstance(record, Task)]

    async def live(self) -> None:
        """Chaos, good weather, the end."""
        await self.begin()
        self._people()
        for n in range(ROUNDS):
            await self.pause(1.0)
            await self.look(thoroughly=n % 4 == 0)
            await self.disturb()
        self.calm = True
        await self.quieten()
        self.start(Caretaker(self).run())
        await self._come_to_an_end()
        await self._end()

    async def begin(self) -> None:
        """Start what is there at the beginning."""
        await self.boot()

    async def disturb(self) -> None:
        """Let something happen to the servers, or nothing."""
        if self.happens(0.03):
            await self.crash(self.servers[0])
            await self.look(thoroughly=False)
            await self.pause(4.0)
            await self.boot()

    async def quieten(self) -> None:
        """Let all be well with the servers from now on."""

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
            tasks = await self.tasks()
            if all(task.terminal for task in tasks):
                return
            now_starved = self.checks.starved(self.leader.kernel, tasks)
            assert not starved & now_starved, f"{starved & now_starved} wait although agents are free"
            starved = now_starved
        self.checks.quiet(self.leader.kernel, await self.tasks())

    @property
    def leader(self) -> SimulatedServer:
        """The server that assigns, in good weather."""
        return self.servers[0]

    async def _end(self) -> None:
        await self.look(thoroughly=True)
        missing = self.delegated - {task.id for task in await self.tasks()}
        assert not missing, f"acknowledged and lost: {missing}"
        for task_id, epoch in self.acknowledged:
            known = self.checks.log.tasks[NAMESPACE, task_id].results
            assert epoch in known, f"the acknowledged result of {task_id}, attempt {epoch}, is lost"
        self.ended = True
        for server in list(self.servers):
            await self.crash(server)
        for actor in self._actors:
            actor.cancel()
        if self._actors:
            await asyncio.wait(self._actors)


class SimulationFailed(AssertionError):
    """An invariant broke; the message says how to see it again."""


def simulate(seed: int) -> World:
    """Run the simulation of a seed; raises `SimulationFailed`. The same seed gives the same run."""
    return replay(World(seed), "test_simulation.py")


def replay(world: W, file: str) -> W:
    """Run a world to its end; raises `SimulationFailed`, which names the file of the test to see it again with."""
    try:
        run(world.live, world.clock, world.dice)
    except (AssertionError, KernelError, LookupError, RuntimeError, TypeError, ValueError) as error:
        again = f"make soak SEED={world.seed} ROUNDS=1 ARGS=tests/server/kernel/{file}"
        raise SimulationFailed(f"seed {world.seed}: {type(error).__name__}: {error}\nsee it again: {again}") from error
    return world
