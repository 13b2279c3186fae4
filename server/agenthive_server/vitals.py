"""What the server says of itself: readings of its parts, facts, metrics, and a snapshot of its agents and tasks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import cast

from agenthive_server import telemetry
from agenthive_server.events.output import OutputHub
from agenthive_server.events.subscription import TakenSnapshot
from agenthive_server.events.subscriptions import Subscriptions
from agenthive_server.kernel.agents import Agent
from agenthive_server.kernel.census import Census
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import KernelError
from agenthive_server.kernel.health import Health, Probe, Reading, Report, Status
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.ports import Feed, Store
from agenthive_server.kernel.records import Kind
from agenthive_server.kernel.sessions import Session
from agenthive_server.kernel.tasks import TERMINAL, Task, TaskState
from agenthive_server.lifecycle import LoopLag, Loops
from agenthive_server.rpc.disk import DiskGuard
from agenthive_server.rpc.health import Board, Facts
from agenthive_server.rpc.stream import snapshot_events
from agenthive_server.storage.committer import Committer
from agenthive_server.telemetry import Sample

PING_EVERY = 2.0
"""Seconds between two reads of the database."""

OPEN_STATES = tuple(state for state in TaskState if state not in TERMINAL)

REPLICAS = "replicas"
"""The component that tells of other replicas."""

LATE_RING = 1.0
"""Seconds after which readers look by themselves: a ring that takes longer is of no use."""


@cache
def server_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("agenthive")
    except PackageNotFoundError:
        return "0"


class Vitals:
    """Asks the parts of the server how they are; answers from memory."""

    def __init__(
        self,
        *,
        clock: Clock,
        store: Store,
        committer: Committer,
        kernel: Kernel,
        subscriptions: Subscriptions,
        output: OutputHub,
        disk: DiskGuard,
        board: Board,
        loops: Loops,
    ) -> None:
        self._clock = clock
        self._store = store
        self._committer = committer
        self._kernel = kernel
        self._subscriptions = subscriptions
        self._output = output
        self._disk = disk
        self._board = board
        self._start_time = clock.now()
        self._ping_latency: float | None = None
        self._ping_failure = ""
        self._away = False
        self._asked = asyncio.Event()
        self.lag = LoopLag()
        self.census = Census(kernel.memory, kernel.agents.shown, clock)
        kernel.observers.append(self.census.observe)
        self._health = Health(clock)
        for probe in (self._store_reading, self._notifier_reading, kernel.probe, self.lag.probe, loops.probe):
            self._health.add(probe)

    def add(self, probe: Probe) -> None:
        """Let reports tell of one more part."""
        self._health.add(probe)

    def report(self, alone: bool = False) -> Report:
        """Return how the server and each of its parts is now; `alone`: without what it knows of other replicas."""
        return self._health.report(REPLICAS if alone else "")

    async def run(self) -> None:
        """Read from the database now and then, so that health knows before the next caller does; until cancelled."""
        while True:
            try:
                self._ping_latency = await self._store.ping()
                self._ping_failure = ""
            except KernelError as error:
                self._ping_failure = error.message
            self._board.serve(serving=not self._ping_failure and not self._away)
            self._output.expire()
            await self._pause()

    def present(self, there: bool) -> None:
        """Take the server out of service at once; when it is `there` again, see at once whether it can serve."""
        self._away = not there
        if self._away:
            self._board.serve(serving=False)
        self._asked.set()

    async def _pause(self) -> None:
        """Return when it is time to read again, or somebody has asked for it."""
        asked = asyncio.ensure_future(self._asked.wait())
        sleep = asyncio.ensure_future(self._clock.sleep(PING_EVERY))
        try:
            await asyncio.wait((asked, sleep), return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            sleep.cancel()
        self._asked.clear()

    def _store_reading(self) -> list[tuple[str, Reading]]:
        if self._ping_failure or self._away:
            return [("store", Reading(Status.DOWN, self._ping_failure or self._store.writable))]
        if self._store.writable:
            return [("store", Reading(Status.DEGRADED, f"cannot be written: {self._store.writable}"))]
        if self._disk.low:
            return [("store", Reading(Status.DEGRADED, "the disk is nearly full; new work is refused"))]
        latency = self._committer.last_latency or self._ping_latency
        return [("store", Reading(latency=latency))]

    def _notifier_reading(self) -> list[tuple[str, Reading]]:
        latency = self._subscriptions.notifier.latency
        late = latency is not None and latency > LATE_RING
        reason = "readers were woken late the last time" if late else ""
        return [("notifier", Reading(Status.DEGRADED if late else Status.OK, reason, latency))]

    def facts(self, alone: bool = False) -> Facts:
        """Return what HealthCheck tells beside the report; `alone`: with the tasks of sessions here only."""
        index = self._kernel.index
        here = [agent for contact in self._kernel.contacts for agent in index.agents_by_session.get(contact.key, ())]
        held = (index.leases_by_agent.get(agent, ()) for agent in here) if alone else index.leases_by_agent.values()
        return Facts(
            version=server_version(),
            start_time=self._start_time,
            agents_in_contact=len(here),
            queued_tasks=self._kernel.pool.queued,
            held_tasks=sum(map(len, held)),
            last_sequence=self._subscriptions.log.head,
            draining=self._board.draining,
        )

    def metrics(self) -> Iterator[Sample]:
        """Yield what there is to measure."""
        facts, committer, census = self.facts(), self._committer, self.census
        yield Sample(telemetry.INFO, ((telemetry.VERSION, server_version()),), 1)
        yield Sample(telemetry.READY, (), self._board.serving)
        yield Sample(telemetry.AGENTS_IN_CONTACT, (), facts.agents_in_contact)
        yield Sample(telemetry.TASKS_QUEUED, (), facts.queued_tasks)
        yield Sample(telemetry.TASKS_HELD, (), facts.held_tasks)
        yield Sample(telemetry.TASKS_ASSIGNED, (), self._kernel.dispatcher.assigned)
        for state in OPEN_STATES:
            yield Sample(telemetry.TASKS, ((telemetry.STATE, state),), census.tasks[state])
        for shown, count in census.agents().items():
            yield Sample(telemetry.AGENTS, ((telemetry.STATE, shown),), count)
        for kind, count in census.events.items():
            yield Sample(telemetry.EVENTS, ((telemetry.TYPE, kind.name),), count)
        yield Sample(telemetry.LOOP_LAG, (), self.lag.lag)
        yield from self.lag.delays.samples(telemetry.LOOP_DELAY)
        yield Sample(telemetry.COMMIT_GROUPS, (), committer.groups)
        yield Sample(telemetry.COMMIT_CHANGE_SETS, (), committer.change_sets)
        yield Sample(telemetry.COMMIT_ROWS, (), committer.rows)
        yield Sample(telemetry.COMMIT_FAILURES, (), committer.failures)
        yield Sample(telemetry.COMMIT_WAITING, (), committer.waiting_rows)
        yield Sample(telemetry.COMMIT_SECONDS, (), committer.last_latency)
        yield from committer.durations.samples(telemetry.COMMIT_DURATION)
        yield from committer.sizes.samples(telemetry.COMMIT_SIZE)
        yield from self._store_metrics()
        for name, value in self._subscriptions.metrics().items():
            yield Sample(name, (), value)

    def _store_metrics(self) -> Iterator[Sample]:
        yield from self._store.syncs.samples(telemetry.STORE_SYNC)
        free = self._store.free_bytes
        if free is not None:
            yield Sample(telemetry.STORE_FREE, (), free)

    def snapshot(self, namespace: str | None) -> TakenSnapshot | Awaitable[TakenSnapshot]:
        """Return the agents and open tasks of a namespace (None: all) as events, as of one place in the log.

        Where others commit too they are read from the store: memory is not as of any one place then.
        """
        feed = self._kernel.feed
        if feed is not None:
            return self._cut(feed, namespace)
        memory, agents = self._kernel.memory, self._kernel.agents
        shown = [
            (agent, agents.shown(agent))
            for latest in memory.all(Agent)
            if namespace in (None, latest.namespace)
            and isinstance(agent := memory.committed((Kind.AGENT, latest.key)), Agent)
        ]
        tasks = [
            task
            for latest in memory.all(Task)
            if namespace in (None, latest.namespace)
            and isinstance(task := memory.committed((Kind.TASK, latest.key)), Task)
            and not task.terminal
        ]
        return self._subscriptions.log.head, snapshot_events(shown, tasks)

    async def _cut(self, feed: Feed, namespace: str | None) -> TakenSnapshot:
        head, (agents, sessions, tasks) = await feed.cut((Kind.AGENT, Kind.SESSION, Kind.TASK))
        open_sessions = {session.key: cast(Session, session) for session in sessions}
        wanted = [cast(Task, task) for task in tasks if namespace in (None, task.namespace)]
        leases = Counter((task.namespace, task.lease.agent_id) for task in wanted if task.lease is not None)
        shown = [
            (
                agent,
                self._kernel.agents.shown_with(
                    agent, open_sessions.get((agent.namespace, agent.session_id)), leases[agent.key]
                ),
            )
            for agent in cast("list[Agent]", agents)
            if namespace in (None, agent.namespace)
        ]
        return head, snapshot_events(shown, wanted)
