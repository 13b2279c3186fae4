"""One run of a fleet under load and harm: it is started, hurt by the schedule of a seed, brought to rest and judged."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agenthive.client import Client

from agenthive_server.rpc.convert.events import event_to_proto
from agenthive_server.testing.bookkeeper import Bookkeeper
from agenthive_server.testing.followers import Follower
from agenthive_server.testing.harness import WorkerProcess
from agenthive_server.testing.history import head
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.redis import RedisServer
from agenthive_server.testing.waiting import eventually

from . import checks
from .faults import BACK_WITHIN, KINDS, Fault, Harm, plan
from .haproxy import DRAIN_DELAY, Front, open_haproxy
from .load import Board, FleetCaller
from .recorder import Recorder
from .replicas import Replicas, in_contact, open_replicas

GRACE: Final = 4.0

SETTINGS: Final[dict[str, object]] = {
    "limits.reconnect_grace_seconds": GRACE,
    "limits.heartbeat_interval_seconds": 1,
    "limits.accept_timeout_seconds": 3,
    "server.drain_grace_seconds": 5,
    "server.drain_delay_seconds": 0.6,
}
"""Of every replica. The delay is longer than the balancer takes to notice."""

_LAST: Final = 60.0
"""Seconds until all tasks have ended once nobody asks for more."""

_FIRST: Final = 180.0
"""Seconds until all worker processes are there: they start together."""


@dataclass(frozen=True)
class Size:
    """How big a fleet is."""

    replicas: int = 1
    workers: int = 10
    followers: int = 4
    callers: int = 6
    kinds: Sequence[str] = KINDS
    # Before the replicas, three of them, instead of a balancer of our own.
    front: Front | None = None


@dataclass
class Proof:
    """A running fleet, and what is known of it."""

    replicas: Replicas
    workers: list[WorkerProcess]
    keepers: list[Bookkeeper]
    followers: dict[str, Follower]
    clients: dict[str, Client]
    callers: list[FleetCaller]
    board: Board
    harm: Harm
    recorder: Recorder
    beside: list[asyncio.Task[None]] = field(default_factory=list)

    async def run(self, faults: Sequence[Fault]) -> checks.Record:
        """Harm the fleet as planned, let every task come to its end, stop it, and return what is known."""
        calling = [asyncio.create_task(caller.run()) for caller in self.callers]
        try:
            for fault in faults:
                await self.harm.do(fault)
                for task in [*calling, *self.beside]:
                    if task.done():
                        task.result()
        finally:
            for caller in self.callers:
                caller.stopped = True
            await asyncio.gather(*calling)
        last = await self._come_to_rest()
        assert await self.replicas.stop() == [0] * len(self.replicas.all)
        tasks, log = await self.replicas.read_store()
        return checks.Record(
            head=last,
            log=[event_to_proto(event) for event in log],
            tasks={task.id: checks.shown(task) for task in tasks},
            calls=self.recorder.calls,
            reports=[
                *checks.read_journals(self.workers),
                *(each for keeper in self.keepers for each in keeper.reports.values()),
            ],
            followers=self.followers,
        )

    async def _come_to_rest(self) -> int:
        """See every task to its end, and every subscriber to the head of the log, which is returned."""
        await self.harm.quiet()
        known = {call.task_id for call in self.recorder.calls if call.task is not None}
        ending = {task_id: asyncio.create_task(self.callers[0].finish(task_id)) for task_id in sorted(known)}
        _, open_ones = await asyncio.wait(ending.values(), timeout=_LAST)
        if open_ones:
            names = [task_id for task_id, task in ending.items() if task in open_ones]
            await _cancel(list(open_ones))
            stuck = AssertionError(f"{len(names)} tasks do not end, {names[0]} for one")
            stuck.add_note(str(await self.clients["balancer"].get_task(names[0])))
            for line in await self.harm.health():
                stuck.add_note(line)
            raise stuck
        last = await head(self.clients["balancer"])
        await eventually(
            lambda: all(each.cursor and len(each.events) >= last for each in self.followers.values()),
            what="every subscriber has caught up",
        )
        return last


def judge(record: checks.Record, harm: Harm) -> str:
    """Raise AssertionError with what did not hold; else return a summary."""
    checks.check_acknowledged(record)
    checks.check_results(record)
    checks.check_followers(record)
    count = checks.check_linearizable(record)
    assert checks.burned(record.log, harm.restarts) == []
    assert harm.exits == [0] * len(harm.exits)
    slow = [f"{kind}: {seconds:.1f} s" for kind, seconds in harm.recoveries if seconds > BACK_WITHIN]
    assert slow == []
    longest = max((seconds for _, seconds in harm.recoveries), default=0.0)
    return f"{len(record.tasks)} tasks, {len(record.log)} events, {count} operations, back within {longest:.1f} s"


@asynccontextmanager
async def open_proof(
    folder: Path, postgres: PostgresServer, redis: RedisServer, size: Size, seed: int
) -> AsyncIterator[Proof]:
    """Start a fleet on a database of its own; at the end it is gone."""
    settings = {**SETTINGS, "server.drain_delay_seconds": DRAIN_DELAY} if size.front else SETTINGS
    chance, recorder, board = random.Random(seed + 1), Recorder(), Board()
    async with (
        open_replicas(folder, postgres, redis, size.replicas, settings) as replicas,
        contextlib.AsyncExitStack() as stack,
    ):
        if size.front is not None:
            at = list(replicas.targets.values())[1:]
            replicas.front = await stack.enter_async_context(open_haproxy(size.front, at, folder))
        clients = {name: await stack.enter_async_context(Client(at)) for name, at in replicas.targets.items()}
        wants = ("", "", "sdk", "books")
        callers = [
            FleetCaller(f"caller-{n}", clients, board, recorder, seed * 1_000 + n * 10, capabilities=wants)
            for n in range(size.callers)
        ]
        keepers = [Bookkeeper(f"books-{n}") for n in range(2)]
        probes = [Bookkeeper(f"probe-{n}", capabilities=["probe"], slots=1_000) for n in range(2)]
        followers = _followers(list(replicas.targets.values()), size.followers, chance)
        workers = [_worker(replicas.target, number, folder) for number in range(size.workers)]
        for worker in workers:
            stack.push_async_callback(worker.kill)
            await worker.start()
        agents = len(workers) + len(keepers) + len(probes)
        beside = [asyncio.create_task(keeper.run(replicas.target)) for keeper in [*keepers, *probes]]
        beside += [asyncio.create_task(follower.run()) for follower in followers.values()]
        stack.push_async_callback(_cancel, beside)
        await eventually(lambda: in_contact(clients["balancer"], agents), limit=_FIRST, what="all agents are there")
        harm = Harm(replicas, workers, clients, agents, GRACE, "dispatcher")
        yield Proof(replicas, workers, [*keepers, *probes], followers, clients, callers, board, harm, recorder, beside)


def _worker(target: str, number: int, folder: Path) -> WorkerProcess:
    return WorkerProcess(target, f"sdk-{number}", "--capability", "sdk", "--slots", "2", folder=folder)


def _followers(targets: list[str], count: int, chance: random.Random) -> dict[str, Follower]:
    """Return subscribers that begin in different places; every other comes and goes."""
    return {
        f"subscriber-{n}": Follower(
            *(targets[n % len(targets) :] + targets[: n % len(targets)]), restless=chance if n % 2 else None
        )
        for n in range(count)
    }


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def prove(
    folder: Path, postgres: PostgresServer, redis: RedisServer, size: Size, *, seed: int, rounds: int, again: str = ""
) -> str:
    """Run a fleet through so many faults and judge it; returns a summary.

    Raises AssertionError, or what else went wrong, with what was done, and `again`: the command that does it once more.
    """
    faults = plan(seed, rounds, size.kinds)
    try:
        async with open_proof(folder, postgres, redis, size, seed) as proof:
            record = await proof.run(faults)
        summary = judge(record, proof.harm)
    except BaseException as error:
        error.add_note(f"seed {seed}: {', '.join(fault.kind for fault in faults)}")
        error.add_note(f"once more: {again}")
        raise
    return f"seed {seed}: {summary}; {recorder_words(proof.recorder)}"


def recorder_words(recorder: Recorder) -> str:
    """Return in words how many calls there were."""
    unknown = sum(call.task is None and not call.refusal for call in recorder.calls)
    refused = sum(bool(call.refusal) for call in recorder.calls)
    return f"{len(recorder.calls)} calls, {recorder.repeated} repeats, {refused} refused, {unknown} without an answer"
