"""The servers of a fleet: replicas on one database, each over a wire that can be cut, and a balancer before them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import asyncpg  # type: ignore[import-untyped]  # ships without types
from agenthive.client import Client
from agenthive.errors import HiveError

from agenthive_server.kernel.clock import SystemClock
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.records import Kind, RoleRecord
from agenthive_server.kernel.tasks import Task
from agenthive_server.settings import load
from agenthive_server.storage.codec import unpack
from agenthive_server.stores import open_store
from agenthive_server.testing.harness import ServerProcess
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.proxy import Proxy
from agenthive_server.testing.redis import RedisServer
from agenthive_server.testing.waiting import eventually

from .balancer import Balancer

_PAGE = 5_000


class Replica:
    """One `agenthived serve`, and its wire to the database."""

    def __init__(self, name: str, server: ServerProcess, link: Proxy) -> None:
        self.name = name
        self.server = server
        self.link = link

    @property
    def alive(self) -> bool:
        """Whether its process runs, be it stopped or not."""
        return self.server.process is not None and self.server.process.returncode is None

    def send_signal(self, number: signal.Signals) -> None:
        """Send any signal to its process, for example SIGSTOP and SIGCONT; to none, where it has ended."""
        if self.server.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.server.process.send_signal(number)


class Replicas:
    """The replicas of a hive, in the order of their numbers."""

    def __init__(
        self, folder: Path, postgres: PostgresServer, redis: RedisServer, count: int, settings: Mapping[str, object]
    ) -> None:
        """`settings` are those of every replica, by dotted name."""
        self.postgres = postgres
        self.redis = redis
        self._url = postgres.url()
        self._folder = folder
        self._settings = settings
        self.all: list[Replica] = []
        self._count = count
        self._balancer: Balancer | None = None
        # HOST:PORT of what stands before them instead of the balancer, which then only watches.
        self.front = ""

    @property
    def target(self) -> str:
        """HOST:PORT of what stands before the replicas."""
        assert self._balancer is not None
        return self.front or self._balancer.target

    @property
    def targets(self) -> dict[str, str]:
        """HOST:PORT of everything one can call, by name."""
        return {"balancer": self.target, **{replica.name: replica.server.target for replica in self.all}}

    async def start(self) -> None:
        """Start the replicas, one after the other: the first makes the tables."""
        for number in range(self._count):
            link = Proxy(f"127.0.0.1:{self.postgres.port}")
            await link.start()
            store = self.postgres.url(port=link.port)
            settings = {**self._settings, "server.store": store, "server.redis": self.redis.url()}
            name = f"replica-{number + 1}"
            self.all.append(Replica(name, ServerProcess(self._folder / name, settings=settings), link))
            await self.all[-1].server.start()
        self._balancer = Balancer([replica.server.target for replica in self.all])
        await self._balancer.start()

    async def close(self) -> None:
        """Kill what still runs."""
        for replica in self.all:
            replica.send_signal(signal.SIGCONT)
            await replica.server.kill()
            await replica.link.close()
        if self._balancer is not None:
            await self._balancer.close()

    async def in_service(self) -> None:
        """Wait until all replicas run and say they serve; one that has left is started again, as by a supervisor."""
        for replica in self.all:
            if not replica.alive:
                await replica.server.start()
        balancer = self._balancer
        assert balancer is not None
        await eventually(lambda: len(balancer.healthy) == self._count, what="all replicas serve")

    async def stop(self) -> list[int]:
        """Stop all in an orderly way; returns the exit codes."""
        return [await replica.server.stop() for replica in self.all]

    def others(self, replica: Replica) -> list[Replica]:
        """Return all but one."""
        return [other for other in self.all if other is not replica]

    async def holder(self, role: str) -> Replica | None:
        """Return the replica that holds a role, as the database has it."""
        rows = await self._ask("SELECT namespace, id, revision, body FROM role WHERE id = $1", f"role/{role}")
        names = [cast(RoleRecord, unpack(Kind.ROLE, *row)).holder for row in rows]
        for replica in self.all:
            # A replica's name is its machine, its process, and a word.
            if replica.server.process is not None and any(f"-{replica.server.process.pid}-" in name for name in names):
                return replica
        return None

    async def _ask(self, query: str, *values: object) -> list[tuple[str, str, int, bytes]]:
        connection = await asyncpg.connect(self._url)
        try:
            return [tuple(row) for row in await connection.fetch(query, *values)]
        finally:
            await connection.close()

    async def read_store(self) -> tuple[list[Task], list[Event]]:
        """Return all tasks and the whole log as they are stored. No replica may run."""
        settings = load(flags={"server.store": self._url}, environ={})
        store = open_store(settings, SystemClock())
        await store.open()
        try:
            tasks = [cast(Task, record) for record in await store.scan(Kind.TASK)]
            events: list[Event] = []
            while page := await store.read_events(len(events), _PAGE):
                events += page
            return tasks, events
        finally:
            await store.close()


@asynccontextmanager
async def open_replicas(
    folder: Path, postgres: PostgresServer, redis: RedisServer, count: int, settings: Mapping[str, object]
) -> AsyncIterator[Replicas]:
    """Run replicas on a database of their own; at the end all are gone."""
    replicas = Replicas(folder, postgres, redis, count, settings)
    try:
        await replicas.start()
        yield replicas
    finally:
        await replicas.close()


async def in_contact(client: Client, count: int) -> bool:
    """Return whether so many agents are in contact; not while nobody can be asked."""
    try:
        found = [agent async for agent in client.list_agents()]
    except HiveError:
        return False
    return sum(bool(agent.session_id) for agent in found) >= count
