"""What is done to a fleet, by a schedule that follows from a seed."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from agenthive.client import Client
from agenthive.errors import HiveError

from agenthive_server.testing.harness import WorkerProcess
from agenthive_server.testing.history import state_name
from agenthive_server.testing.waiting import eventually

from .replicas import Replica, Replicas, in_contact

LEASE: Final = 4.0
"""Seconds after which a role is free again."""

BACK_WITHIN: Final = 5.0
"""Seconds after which tasks have to be assigned again, whatever became of one replica."""

KINDS: Final = (
    "kill replica",
    "kill dispatcher",
    "reset wire",
    "swallow wire",
    "pause replica",
    "pause worker",
    "kill database",
    "restart database",
    "stop redis",
    "flush redis",
    "rolling restart",
)


@dataclass(frozen=True)
class Fault:
    """What happens, `gap` seconds after the last was over, to which of those it can happen to, and for how long."""

    kind: str
    gap: float
    victim: float
    span: float


def plan(seed: int, count: int, kinds: Sequence[str] = KINDS) -> list[Fault]:
    """Return a schedule: every kind once in random order, then all once more, and so on."""
    chance = random.Random(seed)
    chosen: list[str] = []
    while len(chosen) < count:
        chosen += chance.sample(kinds, len(kinds))
    return [Fault(kind, chance.uniform(0.1, 0.8), chance.random(), chance.random()) for kind in chosen[:count]]


@dataclass
class Harm:
    """Does it, sees to it that the fleet is whole again, and notes how long nothing was assigned."""

    replicas: Replicas
    workers: Sequence[WorkerProcess]
    clients: dict[str, Client]
    agents: int
    grace: float
    role: str
    # Seconds until tasks were assigned again, by the kind of the fault.
    recoveries: list[tuple[str, float]] = field(default_factory=list)
    # Sequences of the log during which the replicas were restarted one by one.
    restarts: list[tuple[int, int]] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    _probes: int = 0
    _paused: set[asyncio.Task[None]] = field(default_factory=set)

    async def do(self, fault: Fault) -> None:
        """Do one thing and wait until the fleet is whole."""
        await asyncio.sleep(fault.gap)
        acts: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "kill replica": self._kill_replica,
            "kill dispatcher": self._kill_dispatcher,
            "reset wire": self._reset_wire,
            "swallow wire": self._swallow_wire,
            "pause replica": self._pause_replica,
            "pause worker": self._pause_worker,
            "kill database": self._kill_database,
            "restart database": self._restart_database,
            "stop redis": self._stop_redis,
            "flush redis": self._flush_redis,
            "rolling restart": self._rolling_restart,
        }
        try:
            await acts[fault.kind](fault)
            await self.replicas.in_service()
        except AssertionError as error:
            error.add_note(f"after {fault}:")
            for line in await self.health():
                error.add_note(line)
            raise

    async def health(self) -> list[str]:
        """Return how each replica says it is."""
        return [await self._health(name) for name in self.clients]

    async def _health(self, name: str) -> str:
        try:
            health = await self.clients[name].health(timeout=2)
        except HiveError as error:
            return f"{name}: {error}"
        bad = [f"{each.name}: {each.reason}" for each in health.components if each.reason]
        return f"{name}: {health.queued_tasks} queued, {health.held_tasks} held, {', '.join(bad)}"

    def _victim(self, fault: Fault) -> Replica:
        return self.replicas.all[int(fault.victim * len(self.replicas.all))]

    async def _kill_replica(self, fault: Fault) -> None:
        await self._kill(fault, self._victim(fault))

    async def _kill_dispatcher(self, fault: Fault) -> None:
        await self._kill(fault, await self.replicas.holder(self.role) or self._victim(fault))

    async def _kill(self, fault: Fault, victim: Replica) -> None:
        others = self.replicas.others(victim)
        since = self._now()
        await victim.server.kill()
        if others:
            await self._back(fault, since, others)
        await victim.server.start()
        if not others:
            await self._back(fault, self._now(), [victim])

    async def _reset_wire(self, fault: Fault) -> None:
        victim = self._victim(fault)
        victim.link.cut()
        await self._while_away(fault, victim, 0.5 + 2 * fault.span)
        victim.link.mend()
        await self._again(fault, victim)

    async def _swallow_wire(self, fault: Fault) -> None:
        victim = self._victim(fault)
        victim.link.freeze()
        await self._while_away(fault, victim, LEASE + 0.5 + fault.span)
        victim.link.mend()
        await self._again(fault, victim)

    async def _pause_replica(self, fault: Fault) -> None:
        victim = self._victim(fault)
        victim.send_signal(signal.SIGSTOP)
        try:
            await self._while_away(fault, victim, LEASE + 0.5 + fault.span)
        finally:
            victim.send_signal(signal.SIGCONT)
        await self._again(fault, victim)

    async def _pause_worker(self, fault: Fault) -> None:
        """Stop a worker for longer than its leases outlive it; what comes next comes meanwhile."""

        async def pause() -> None:
            worker.send_signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(self.grace + 1 + fault.span)
            finally:
                worker.send_signal(signal.SIGCONT)

        worker = self.workers[int(fault.victim * len(self.workers))]
        task = asyncio.create_task(pause())
        self._paused.add(task)
        task.add_done_callback(self._paused.discard)

    async def _kill_database(self, fault: Fault) -> None:
        await self._without_database(fault, self.replicas.postgres.kill)

    async def _restart_database(self, fault: Fault) -> None:
        await self._without_database(fault, self.replicas.postgres.stop)

    async def _stop_redis(self, fault: Fault) -> None:
        since = self._now()
        await asyncio.to_thread(self.replicas.redis.stop)
        try:
            await self._back(fault, since, self.replicas.all)
            await asyncio.sleep(fault.span)
        finally:
            await asyncio.to_thread(self.replicas.redis.start)

    async def _flush_redis(self, fault: Fault) -> None:
        since = self._now()
        await asyncio.to_thread(self.replicas.redis.flush)
        await self._back(fault, since, self.replicas.all)

    async def _without_database(self, fault: Fault, end: Callable[[], None]) -> None:
        await asyncio.to_thread(end)
        await asyncio.sleep(fault.span)
        await asyncio.to_thread(self.replicas.postgres.start)
        await self._back(fault, self._now(), self.replicas.all)

    async def quiet(self) -> None:
        """Wait until all that was stopped goes on, and every agent is in contact."""
        if self._paused:
            await asyncio.wait(self._paused)
        await self.replicas.in_service()
        await self._all_in_contact()

    async def _rolling_restart(self, fault: Fault) -> None:
        await self.quiet()
        before = (await self.clients["balancer"].health()).last_sequence
        for replica in self.replicas.all:
            self.exits.append(await replica.server.stop())
            await replica.server.start()
            await self.replicas.in_service()
        await self._all_in_contact()
        self.restarts.append((before, (await self.clients["balancer"].health()).last_sequence))

    async def _while_away(self, fault: Fault, victim: Replica, span: float) -> None:
        """Let one replica be away for a while; the others are to go on."""
        since = self._now()
        if others := self.replicas.others(victim):
            await self._back(fault, since, others)
        await asyncio.sleep(max(0.0, since + span - self._now()))

    async def _again(self, fault: Fault, victim: Replica) -> None:
        if not self.replicas.others(victim):
            await self._back(fault, self._now(), [victim])

    async def _back(self, fault: Fault, since: float, asked: Sequence[Replica]) -> None:
        """Wait until a task that any of these replicas takes is assigned; note how much longer than usual that took."""
        taken = max(await asyncio.gather(*(self._assigned(replica.name) for replica in asked))) - since
        again = self._now()
        usual = max(await asyncio.gather(*(self._assigned(replica.name) for replica in asked))) - again
        self.recoveries.append((fault.kind, max(0.0, taken - usual)))

    async def _assigned(self, name: str) -> float:
        client = self.clients[name]
        self._probes += 1
        task_id = request_id = f"probe-{self._probes}"
        said = ""

        async def assigned() -> bool:
            nonlocal said
            try:
                task = await client.delegate(
                    "job",
                    {"number": 0, "seconds": 0, "fails": False},
                    task_id=task_id,
                    request_id=request_id,
                    required_capabilities=["probe"],
                    timeout=1.0,
                )
            except HiveError as error:
                said = str(error)
                return False
            said = state_name(task.state)
            return said != "QUEUED"

        try:
            await eventually(assigned, what=f"{task_id} is assigned when {name} takes it")
        except AssertionError as error:
            error.add_note(f"{name} said last: {said}")
            raise
        return self._now()

    async def _all_in_contact(self) -> None:
        balancer = self.clients["balancer"]
        await eventually(lambda: in_contact(balancer, self.agents), what="all agents are in contact")

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
