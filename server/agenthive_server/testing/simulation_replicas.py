"""Several servers on one database under stress, replayed by its seed.

Beside what happens to one server, replicas stand still and go on, lose their database, are killed while a commit of
theirs is still on its way, stop and are replaced; what they hear of each other comes late or never.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from functools import partial

from agenthive_server.kernel.agents import Agent
from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.events import EventType
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.records import Kind
from agenthive_server.kernel.sessions import Session, SessionState
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import Task, TaskSpec, Timeouts
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.storage.postgres.roles import REPLICA, SPAN
from agenthive_server.storage.postgres.writer import Fence

from .faults import FaultyStore
from .shared_database import SharedDatabase
from .shared_store import SharedStore
from .simulation import NAMESPACE, Gone, World, replay
from .simulation_server import LIMITS, SimulatedServer

REPLICAS = 3
PAUSES = 12

LOST = ("LEASE_LOST", "HEARTBEAT_TIMEOUT", "AGENT_GONE")
"""Why leases end that nobody wanted to end."""

PATIENCE = 15.0
"""Seconds after which a caller goes to another replica."""


class ReplicatedWorld(World):
    """A world with several servers."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.deadline = PATIENCE
        self._names = itertools.count(1)
        # Who was given more than can be done at once.
        self.crowded = ""
        self.pauses = 0

    def make_disk(self) -> MemoryStore:
        """Return the tables of the database."""
        self.database = SharedDatabase(self.clock, log_id="simulation")
        self.database.delay = self._delay
        self.database.witness = self._committed
        return self.database.disk

    def make_store(self) -> FaultyStore:
        """Return the store of one more replica."""
        return SharedStore(self.database)

    def _delay(self) -> float | None:
        if self.happens(0.1):
            return None
        return self.dice.expovariate(5.0) if self.happens(0.3) else 0.001

    @property
    def server(self) -> SimulatedServer | None:
        """Any of them: the balancer does not know which one stands still."""
        return self.dice.choice(self.servers) if self.servers else None

    @property
    def leader(self) -> SimulatedServer:
        """The one that has the role."""
        return next(server for server in self.servers if server.kernel.leading.held)

    # What happens ---------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Start all replicas."""
        for _ in range(REPLICAS):
            await self.boot(self._name())

    def _name(self) -> str:
        return f"r{next(self._names)}"

    async def disturb(self) -> None:
        """Let something happen to one of the servers, or nothing."""
        if self.happens(0.04):
            self.start(self._replace(self.dice.choice(self.servers), orderly=self.dice.random() < 0.3))
        if self.happens(0.08):
            self.start(self._stop(self.dice.choice(self.servers)))
        if self.happens(0.05):
            server = self.dice.choice(self.servers)
            server.down_until = self.clock.now() + self.dice.expovariate(0.15)
        if self.happens(0.05):
            self.database.trim(self.dice.choice([3, 20]))

    async def _replace(self, server: SimulatedServer, *, orderly: bool) -> None:
        if len(self.servers) < REPLICAS or self.calm:
            return
        if orderly and not server.process.stopped:
            self.servers.remove(server)
            task = server.process.start(server.leave())
            await asyncio.wait({task}, timeout=10.0)
            await server.kill()
        else:
            await self.crash(server)
            self._commit_late(server)
        await self.pause(3.0)
        if not self.calm:
            await self.boot(self._name())

    def _commit_late(self, server: SimulatedServer) -> None:
        """What a server had sent before it was killed may be written after that, as long as it was not replaced."""
        shared = server.shared
        assert shared is not None
        if shared.under_way is not None and self.dice.random() < 0.5:
            self.start(self._late(*shared.under_way))

    async def _late(self, group: list[ChangeSet], fence: Fence | None) -> None:
        await self.pause(1.0)
        with suppress(StoreUnavailable):
            await self.database.commit(group, fence)

    async def _stop(self, server: SimulatedServer) -> None:
        """Let a process stand still for a while: up to beyond its lease, and beyond the grace of its sessions."""
        if server.process.stopped or self.calm:
            return
        self.pauses += 1
        server.process.stopped = True
        await self.pause(self.dice.choice([1.0, 5.0, 15.0]))
        if server.alive:
            server.process.go_on()

    async def quieten(self) -> None:
        """Let all replicas be there and well."""
        for server in self.servers:
            if server.process.stopped:
                server.process.go_on()
        while len(self.servers) < REPLICAS:
            await self.boot(self._name())
        await self.clock.sleep(3 * SPAN + LIMITS.reconnect_grace)

    # What must hold -------------------------------------------------------------------------------------------------

    async def look(self, *, thoroughly: bool) -> None:
        """Check the invariants as things stand."""
        assert not self.crowded, self.crowded
        if self.calm:
            for server in self.servers:
                committed, following = self.database.group_count, server.kernel.following
                assert following is not None
                with suppress(Gone):
                    await self.call(lambda kernel: kernel.decisions.fresh(), server)
                assert following.group >= committed, f"{server.name} does not catch up"
            self._attended()
        await super().look(thoroughly=thoroughly)

    def knows_all(self, server: SimulatedServer) -> bool:
        """Whether a replica has followed everything that was committed."""
        shared, following = server.shared, server.kernel.following
        assert shared is not None
        assert following is not None
        return following.group == self.database.group_count and not shared.tenure.lost and not server.process.stopped

    def _committed(self, changes: ChangeSet) -> None:
        """Check that nobody is given more than can be done at once; as the change was committed, slots are known."""
        tables = self.disk._tables
        for record in changes.puts.values():
            if not isinstance(record, Task) or record.lease is None or record.lease.start_time:
                continue
            key = (record.namespace, record.lease.agent_id)
            agent = tables[Kind.AGENT][key]
            held = [
                task.id
                for task in tables[Kind.TASK].values()
                if isinstance(task, Task) and task.lease is not None and task.lease.agent_id == agent.id
            ]
            assert isinstance(agent, Agent)
            if len(held) > agent.spec.slots:
                # The store would only be taken to have failed.
                self.crowded = f"{agent.id} has {agent.spec.slots} slots and holds {held}"

    def _attended(self) -> None:
        """Check that every session is in contact with a replica, or on its way to its end."""
        servers = {server.name: server for server in self.servers}
        for session in self.disk._tables[Kind.SESSION].values():
            assert isinstance(session, Session)
            if session.state is SessionState.OPEN:
                server = servers.get(session.replica)
                assert server is not None, f"{session.id} is open on {session.replica}, which is gone"
            else:
                silent = self.clock.now() - session.suspect_time
                most = LIMITS.reconnect_grace + 3 * SPAN
                assert silent < most, f"{session.id} was not ended after {silent:g} s without contact"
        roles = [server.name for server in self.servers if server.kernel.leading.held]
        assert len(roles) == 1, f"{roles} dispatch"
        there = {name for name in self.database.rows() if name.startswith(REPLICA)}
        assert there == {REPLICA + name for name in servers}, there


class PausedWorld(ReplicatedWorld):
    """Good weather, but for replicas that stand still now and then: each time for less than the grace of sessions."""

    async def live(self) -> None:
        """Work, with pauses; none of them costs a lease."""
        self.calm = True
        await self.begin()
        self._people()
        # A worker that was never welcomed comes as another.
        await self.clock.sleep(5.0)
        spec = TaskSpec(type="work", timeouts=Timeouts(heartbeat=LIMITS.reconnect_grace))
        for number in range(PAUSES):
            tasks = [NewTask(spec, f"t{number}-{n}") for n in range(4)]
            await self.call(partial(_delegating, tasks), self.dice.choice(self.servers))
            server = self.dice.choice(self.servers)
            server.process.stopped = True
            await self.clock.sleep(self.dice.uniform(1.0, LIMITS.reconnect_grace))
            server.process.go_on()
            await self.clock.sleep(self.dice.uniform(2.0, 8.0))
        await self._come_to_an_end()
        for event in self.disk._events:
            assert event.type is not EventType.SESSION_ENDED, f"a session ended: {event}"
            assert event.data.get("reason") not in LOST, f"a lease was lost: {event}"
        await self._end()


async def _delegating(tasks: list[NewTask], kernel: Kernel) -> None:
    await kernel.tasks.delegate(Caller(namespace=NAMESPACE), tasks)


def simulate_pauses(seed: int) -> ReplicatedWorld:
    """Let replicas stand still for less than the grace; raises `SimulationFailed` when that costs a lease."""
    return replay(PausedWorld(seed), "test_simulation_replicas.py")


def simulate_replicas(seed: int) -> ReplicatedWorld:
    """Run the simulation of a seed; raises `SimulationFailed`. The same seed gives the same run."""
    return replay(ReplicatedWorld(seed), "test_simulation_replicas.py")
