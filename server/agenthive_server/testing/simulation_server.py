"""The servers of a simulation: kernel, committer and loops of one process, on a store that is slow and fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from agenthive_server.events.log import EventLog
from agenthive_server.events.notifier import LocalNotifier
from agenthive_server.events.subscriptions import Subscriptions
from agenthive_server.kernel.changes import ChangeSet, Outcome
from agenthive_server.kernel.errors import CursorCompacted, KernelError, StoreUnavailable
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.limits import Limits
from agenthive_server.replica import Replica
from agenthive_server.storage.committer import Committer

from .faults import FaultyStore
from .shared_store import SharedStore
from .simulation_loop import Process

if TYPE_CHECKING:
    from .simulation import World

LIMITS = Limits(accept_timeout=5.0, heartbeat_interval=5.0, reconnect_grace=12.0)


class SimulatedServer:
    """One life of a server process."""

    def __init__(self, world: World, name: str, store: FaultyStore) -> None:
        self._world = world
        self.name = name
        self.store = store
        self.shared = store if isinstance(store, SharedStore) else None
        self.process = Process()
        self.alive = True
        # Written, but not followed yet.
        self.following = False
        self.down_until = 0.0
        self.broken: Exception | None = None
        self._loops: list[asyncio.Task[None]] = []
        store.before, store.after, store.reading = self._before, self._after, self._reading
        if self.shared is not None:
            store.answering = self._answering
            self.shared.one_by_one = lambda: world.happens(0.03)
            self.shared.brief = lambda: world.happens(0.1)
            self.shared.tenure.me, self.shared.tenure.process = name, ""
        self._build()

    def _build(self) -> None:
        world, shared = self._world, self.shared
        self._notifier = LocalNotifier(world.clock)
        self.log = EventLog(self.store, encode=lambda event: b"")
        self.committer = Committer(self.store, settled=self._settled, failed=self._failed, clock=world.clock)
        self.kernel = Kernel(
            self.store,
            self.committer.submit,
            self.log,
            self._notifier,
            clock=world.clock,
            new_id=world.new_id,
            chance=world.dice.random,
            limits=LIMITS,
            replicas=shared.tenure if shared else None,
            feed=shared,
        )
        self.announced = Announced(self.name)
        self.kernel.observers += [self.log.append, self._ring, self.announced.follow]
        self._replica: Replica | None = None
        if shared is not None:
            subscriptions = Subscriptions(self.log, self._notifier, world.clock)
            self._replica = Replica(
                shared, self.kernel, self.log, self.committer, subscriptions, world.clock, str, None, lambda _: None
            )

    def _ring(self, events: Sequence[Event]) -> None:
        self._notifier.ring(events[-1].sequence)

    # What follows a commit: the committer would only log what goes wrong there

    def _settled(self, group: Sequence[tuple[ChangeSet, Outcome]]) -> None:
        self._follow(lambda: self.kernel.settled(group))
        if self._replica is not None:
            self._replica.settled(group)

    def _failed(self, group: Sequence[ChangeSet], error: KernelError) -> None:
        self._follow(lambda: self.kernel.failed(group, error))

    def _follow(self, follow: Callable[[], None]) -> None:
        try:
            follow()
        except Exception as error:
            self.broken = error
            raise

    # The store ------------------------------------------------------------------------------------------------------

    async def _before(self, group: Sequence[ChangeSet]) -> None:
        world = self._world
        if world.happens(0.25):
            await world.pause(0.05)
        elif world.happens(0.02):
            await world.pause(1.5)
        if world.happens(0.01):
            self.down_until = world.clock.now() + world.dice.expovariate(0.4)
        if world.happens(0.02) or self.down:
            self.store.unwritable = "down"
            raise StoreUnavailable("the store is down")
        self.store.unwritable = ""

    @property
    def down(self) -> bool:
        """Whether the store cannot be reached from here."""
        return self._world.clock.now() < self.down_until and not self._world.calm

    async def _after(self, group: Sequence[ChangeSet]) -> None:
        if self._world.happens(0.1):
            self.following = True
            try:
                await self._world.pause(0.1)
            finally:
                self.following = False

    async def _reading(self) -> None:
        if self._world.happens(0.1):
            await self._world.pause(0.05)
        if self.down:
            raise StoreUnavailable("the store is down")

    async def _answering(self) -> None:
        if self._world.happens(0.1):
            await self._world.pause(0.1)

    # Its life -------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Start on what the store holds. Raises `StoreUnavailable`; then it is to be killed."""
        await self.process.start(self._open())

    async def _open(self) -> None:
        await self.store.open()
        await self.log.open()
        await self.kernel.open()
        self.announced.head = self.kernel.following.head if self.kernel.following else self.log.head
        loops: list[Any] = [self.committer.run, *self.kernel.loops().values(), self._notifier.run, self._read]
        if self._replica is not None:
            loops += self._replica.loops().values()
        self._loops = [asyncio.create_task(loop()) for loop in loops]

    async def _read(self) -> None:
        """Read the log as a subscriber does, from where it stands; every event is seen once."""
        position = self.log.head
        while True:
            try:
                if self.shared is not None and self._world.dice.random() < 0.1:
                    # Whoever begins to read asks the store how far the log reaches.
                    await self.log.refresh()
                events = await self.log.read(position, 100)
            except CursorCompacted:
                raise
            except StoreUnavailable:
                await self._world.clock.sleep(0.5)
                continue
            for event in events:
                assert event.sequence == position + 1, f"a reader was at {position} and got {event.sequence}"
                position = event.sequence
            if not events:
                await self._notifier.wait(position, 1.0)

    def require_well(self) -> None:
        """Raise what went wrong in it."""
        if self.broken is not None:
            raise AssertionError(f"what follows a commit failed: {self.broken!r}") from self.broken
        for loop in self._loops:
            if loop.done():
                raise AssertionError(f"a loop of the server has ended: {loop}") from loop.exception()
        renewing = self.shared.tenure._renewing if self.shared else None
        if renewing is not None and renewing.done():
            raise AssertionError("its place is not kept any more") from renewing.exception()

    async def leave(self) -> None:
        """Stop in an orderly way, as far as the kernel is concerned."""
        assert self.shared is not None
        self.kernel.drain()
        await self.kernel.replicas.retire()
        self.kernel.sessions.send_away()
        await self._world.clock.sleep(1.0)
        await self.shared.tenure.end()

    async def kill(self) -> None:
        """End it between two of its steps; what was not written is lost."""
        self.alive = False
        await self.process.kill()


class Announced:
    """What a server tells everyone in it: every event once, in the order of the log."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.head = 0

    def follow(self, events: Sequence[Event]) -> None:
        """Take what was announced; raises `AssertionError` for a gap or a repetition."""
        for event in events:
            assert event.sequence == self.head + 1, f"{self._name} told of {event.sequence} after {self.head}"
            self.head = event.sequence
