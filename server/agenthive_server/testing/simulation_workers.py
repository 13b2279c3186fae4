"""The workers and the runner of a simulation, with the part of the edge that carries their streams."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from agenthive_server.kernel.agents import AgentSpec
from agenthive_server.kernel.errors import KernelError, NotFound, Overloaded, SessionFenced, StoreUnavailable
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.session_items import (
    Accept,
    AgentReport,
    Answer,
    Ask,
    Assign,
    Beat,
    Cancel,
    Delivery,
    HandBack,
    Hello,
    HostedAgent,
    Item,
    LeaseRef,
    Mail,
    MessagesDelivered,
    MessagesRead,
    Outgoing,
    Pause,
    Reconnect,
    Refusal,
    Reject,
    Result,
    Revoke,
    Start,
    Stop,
)
from agenthive_server.kernel.sessions import RunnerCapacity
from agenthive_server.kernel.tasks import ErrorClass, Question, TaskError

if TYPE_CHECKING:
    from .simulation import World
    from .simulation_server import SimulatedServer

NAMESPACE = "default"
CLASSES = [*ErrorClass, ErrorClass.TOOL, ErrorClass.TOOL, ErrorClass.INFRA]


class SimulatedLink:
    """A stream: what the server says waits here until the worker looks."""

    def __init__(self, server: SimulatedServer) -> None:
        self.server = server
        self.ended = False
        self._told: list[Delivery] = []
        self._bell = asyncio.Event()

    def deliver(self, delivery: Delivery) -> None:
        """Keep one thing said."""
        self._told.append(delivery)
        self._bell.set()

    def fence(self, error: KernelError) -> None:
        """Note the end."""
        self.ended = True
        self._bell.set()

    def take(self) -> list[Delivery]:
        """Return what was said since the last look."""
        told, self._told = self._told, []
        self._bell.clear()
        return told


class SimulatedWorker:
    """A process with one session that hosts agents: its own, or as a runner those it was told to start."""

    def __init__(
        self, world: World, name: str, agents: dict[str, AgentSpec], *, runner: RunnerCapacity | None = None
    ) -> None:
        self._world = world
        self._name = name
        self._own = agents
        self._runner = runner
        self._sent = 0
        self._started: dict[str, int] = {}
        self._forget()

    def _forget(self) -> None:
        """Begin as a new process: nothing of the old one is known."""
        self._session_id = ""
        self._epoch = 0
        self._held: dict[LeaseRef, str] = {}
        self._known: set[LeaseRef] = set()
        self._tail: list[Item] = []
        self._answers: dict[str, bool] = {}
        self._hosted = list(self._own)

    # Streams --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, again and again, until the end."""
        world = self._world
        while not world.ended:
            link = await self._connected()
            if link is not None:
                await self._stream(link)
                world.start(self._edge_lost(link, self._session_id, self._epoch))
                self._mishap(link)
            await world.pause(world.dice.choice([0.2, 1.0, 4.0, 15.0]) if not world.calm else 0.5)

    async def _connected(self) -> SimulatedLink | None:
        from .simulation import Gone

        world = self._world
        server = world.server
        if server is None:
            return None
        link = SimulatedLink(server)
        agents = tuple(HostedAgent(agent_id=name, spec=self._own.get(name)) for name in self._hosted)
        hello = Hello(session_id=self._session_id, agents=agents, leases=tuple(self._held), runner=self._runner)
        try:
            welcome = await world.call(lambda k: k.sessions.connect(NAMESPACE, "", hello, link), server)
        except NotFound:
            self._forget()
            return None
        except (Gone, KernelError):
            return None
        self._session_id, self._epoch = welcome.session_id, welcome.epoch
        for lease in [held for held in self._held if held not in welcome.valid_leases]:
            del self._held[lease]
        return link

    async def _stream(self, link: SimulatedLink) -> None:
        world = self._world
        next_beat = 0.0
        while not link.ended and link.server.alive:
            for told in link.take():
                self._heed(told)
                if isinstance(told, Reconnect):
                    return
            if self._tail and not await self._flush(link, self._session_id, self._epoch, self._tail):
                return
            if world.clock.now() >= next_beat:
                next_beat = world.clock.now() + 5.0
                await self._beat(link)
            if world.happens(0.01):
                return
            try:
                async with asyncio.timeout(1.0):
                    await link._bell.wait()
            except TimeoutError:
                pass

    async def _flush(self, link: SimulatedLink, session_id: str, epoch: int, tail: list[Item]) -> bool:
        """Send what is not acknowledged yet; False when the stream is over."""
        from .simulation import Gone

        items = list(tail)
        try:
            verb = partial(_applying, session_id, epoch, items)
            refusals = await self._world.call(verb, link.server)
        except (StoreUnavailable, Overloaded):
            await self._world.pause(0.3)
            return True
        except (Gone, SessionFenced):
            return False
        self._acknowledged(items, refusals)
        del tail[: len(items)]
        return True

    def _acknowledged(self, items: Sequence[Item], refusals: Sequence[Refusal]) -> None:
        refused = {refusal.index for refusal in refusals}
        for index, item in enumerate(items):
            if isinstance(item, Result) and item.result is not None and index not in refused:
                self._world.acknowledged.append((item.task_id, item.epoch))

    async def _beat(self, link: SimulatedLink) -> None:
        from .simulation import Gone

        world = self._world
        beats = []
        for lease in self._held:
            news = world.dice.random() < 0.3
            checkpoint = b"so far" if news and world.dice.random() < 0.5 else None
            fraction = world.dice.random() if news else None
            beats.append(Beat(task_id=lease.task_id, epoch=lease.epoch, fraction=fraction, checkpoint=checkpoint))
        with suppress(Gone, KernelError):
            await world.call(partial(_beating, self._session_id, self._epoch, beats), link.server)

    async def _edge_lost(self, link: SimulatedLink, session_id: str, epoch: int) -> None:
        """The edge notes the end of a stream; when that fails, the reaper has to."""
        from .simulation import Gone

        leaves = self._world.happens(0.03)
        try:
            if leaves:
                await self._world.call(
                    lambda k: k.sessions.leave(NAMESPACE, session_id, epoch, "going home"), link.server
                )
            else:
                await self._world.call(lambda k: k.sessions.lost(NAMESPACE, session_id, epoch, "cut"), link.server)
        except (Gone, KernelError):
            pass

    def _mishap(self, link: SimulatedLink) -> None:
        """Between two streams the process may die; its last words arrive late."""
        world = self._world
        if not world.happens(0.3):
            return
        if self._tail:
            world.start(self._late(link, self._session_id, self._epoch, self._tail))
        self._forget()

    async def _late(self, link: SimulatedLink, session_id: str, epoch: int, tail: list[Item]) -> None:
        await self._world.pause(5.0)
        await self._flush(link, session_id, epoch, tail)

    # What the server says -------------------------------------------------------------------------------------------

    def _heed(self, told: Delivery) -> None:
        match told:
            case Assign():
                self._assigned(told)
            case Cancel() | Revoke():
                self._end(told)
            case Answer():
                self._answers[told.task_id] = True
            case Start():
                self._start(told)
            case Stop():
                self._stop(told)
            case Mail():
                ids = tuple(message.id for message in told.messages)
                self._tail.append(MessagesDelivered(told.agent_id, ids))
                if self._world.dice.random() < 0.5:
                    self._tail.append(MessagesRead(told.agent_id, ids))
            case Pause() | Reconnect() | _:
                pass

    def _assigned(self, told: Assign) -> None:
        world = self._world
        lease = LeaseRef(told.task.id, told.task.lease_epoch)
        assert told.task.lease is not None
        if lease in self._held:
            return
        if told.repeated:
            self._tail.append(HandBack(lease.task_id, lease.epoch, reason="not in hand"))
        elif lease in self._known or world.happens(0.05):
            pass
        elif world.happens(0.07):
            self._tail.append(Reject(lease.task_id, lease.epoch, "busy", world.dice.expovariate(0.3)))
        else:
            if world.calm or world.dice.random() < 0.9:
                self._tail.append(Accept(lease.task_id, lease.epoch))
            self._held[lease] = told.task.lease.agent_id
            world.start(self._work(lease))
        self._known.add(lease)

    def _end(self, told: Cancel | Revoke) -> None:
        lease = LeaseRef(told.task_id, told.epoch)
        if isinstance(told, Revoke):
            self._held.pop(lease, None)
        elif not self._world.happens(0.15):
            self._held.pop(lease, None)
            self._tail.append(Result(told.task_id, told.epoch, canceled="stopped"))

    def _start(self, told: Start) -> None:
        if self._runner is not None and self._started.get(told.agent.id, 0) < told.agent.start_epoch:
            self._started[told.agent.id] = told.agent.start_epoch
            self._world.start(self._starting(told.agent.id, self._session_id))
        elif self._runner is None and told.wake:
            self._tail.append(AgentReport(told.agent.id, "READY"))

    async def _starting(self, agent_id: str, session_id: str) -> None:
        await self._world.pause(1.0)
        if self._session_id != session_id or self._world.happens(0.1):
            return
        if self._world.happens(0.1):
            self._tail.append(AgentReport(agent_id, "FAILED", "no such program", 127))
        else:
            if agent_id not in self._hosted:
                self._hosted.append(agent_id)
            self._tail.append(AgentReport(agent_id, "READY"))

    def _stop(self, told: Stop) -> None:
        if self._world.happens(0.1):
            return
        for lease in [lease for lease, agent_id in self._held.items() if agent_id == told.agent_id]:
            del self._held[lease]
            self._tail.append(HandBack(lease.task_id, lease.epoch, b"half", "stopping"))
        if self._runner is not None and told.agent_id in self._hosted:
            self._hosted.remove(told.agent_id)
        self._tail.append(AgentReport(told.agent_id, "SLEEPING" if told.sleep else "STOPPED", told.reason))

    # Work -----------------------------------------------------------------------------------------------------------

    async def _work(self, lease: LeaseRef) -> None:
        world = self._world
        await world.pause(world.dice.choice([0.1, 1.0, 5.0]))
        if world.happens(0.08):
            await self._question(lease)
        if lease not in self._held or world.happens(0.04):
            # The second: it hangs, while its process beats on.
            return
        if world.happens(0.04):
            # It is forgotten: nobody renews the lease.
            del self._held[lease]
            return
        sender = self._held.pop(lease)
        if world.happens(0.1):
            self._sent += 1
            self._tail.append(
                Outgoing(
                    request_id=f"{self._name}{self._sent}",
                    sender_agent_id=sender,
                    agent_id="able",
                    payload=Payload(data=b"done soon"),
                )
            )
        self._tail.append(self._outcome(lease))

    def _outcome(self, lease: LeaseRef) -> Item:
        world = self._world
        if world.happens(0.3):
            delay = world.dice.choice([None, None, 0.5])
            kind = world.dice.choice(CLASSES)
            error = TaskError(error_class=kind, reason="ODD", message="as drawn", next_retry_delay=delay)
            return Result(lease.task_id, lease.epoch, error=error)
        if world.happens(0.05):
            return HandBack(lease.task_id, lease.epoch, b"half", "no time")
        if world.happens(0.02):
            return Result(lease.task_id, lease.epoch, canceled="by myself")
        return Result(lease.task_id, lease.epoch, result=Payload(data=f"{lease.epoch}".encode()))

    async def _question(self, lease: LeaseRef) -> None:
        world = self._world
        release = world.dice.random() < 0.5
        default = Payload(data=b"default") if world.dice.random() < 0.5 else None
        question = Question(question="which?", default=default, release_slot=release)
        self._answers.pop(lease.task_id, None)
        self._tail.append(Ask(lease.task_id, lease.epoch, question, b"asked"))
        if release:
            self._held.pop(lease, None)
            return
        while lease in self._held and lease.task_id not in self._answers:
            await world.clock.sleep(1.0)


async def _applying(session_id: str, epoch: int, items: Sequence[Item], kernel: Kernel) -> list[Refusal]:
    return await kernel.sessions.apply(NAMESPACE, session_id, epoch, items)


async def _beating(session_id: str, epoch: int, beats: Sequence[Beat], kernel: Kernel) -> None:
    kernel.sessions.heard(NAMESPACE, session_id, epoch)
    news = kernel.sessions.beat(NAMESPACE, session_id, epoch, beats)
    if news is not None:
        await news
