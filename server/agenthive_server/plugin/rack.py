"""The open plugins in their order, and the steps by which one comes in, is replaced and goes out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from agenthive_server.kernel.errors import KernelError
from agenthive_server.kernel.events import EventType
from agenthive_server.kernel.replicas import Role

from .caller import Deal, Tell
from .cell import Bounds, Cell, Running
from .configuration import Raw, configured
from .instance import Instance, Server
from .registration import Registration
from .sealed import sealed
from .standing import Standing, State
from .tasks import TaskFactory
from .watchdog import Block, Watchdog

ATTACH_EVERY: Final = 1.0
"""Seconds between two tries to begin with handlers while the store cannot be written."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the host waits for a plugin, in seconds."""

    open: float = 30.0
    grace: float = 2.0
    """For calls in flight, before a plugin that is switched off is closed."""
    end: float = 5.0
    """For its tasks and its way out, before what is left is left behind."""


class Socket(Protocol):
    """Where plugins are plugged in: the chain, the verbs, the services."""

    def plug(self, instances: Sequence[Instance]) -> None:
        """Let these act from now on, in this order, and no others. Raises nothing."""


class Dispatch(Protocol):
    """Calls the handlers of plugins, each from its own cursor."""

    async def attach(
        self, plugin: str, handlers: Mapping[EventType, Deal], gap: Tell | None = None, *, role: Role | None = None
    ) -> None:
        """Begin to call handlers, where they left off; `gap` where events are gone they had not come to.

        With a role they are called while this replica has it.
        """

    async def detach(self, plugin: str) -> None:
        """Call them no more; returns when none runs."""

    def lag(self, plugin: str) -> int:
        """Return how many events its handlers have not come to."""

    def failing(self, plugin: str) -> str:
        """Return why a handler is being tried again; empty when all goes well."""


class Rack:
    """Holds the standings. Its steps are taken one after the other: whoever takes them sees to that."""

    def __init__(
        self,
        server: Server,
        socket: Socket,
        dispatch: Dispatch,
        bounds: Bounds,
        patience: Patience,
        *,
        failed: Callable[[Cell, str, str, bool], None],
        blocked: Callable[[Block], None],
    ) -> None:
        self.standings: dict[str, Standing] = {}
        self.running = Running()
        self.dispatch = dispatch
        self.patience = patience
        self.clock = server.clock
        self._server = server
        self._socket = socket
        self._bounds = bounds
        self._failed = failed
        # Waits of those whose handlers could not begin at once.
        self._late: dict[str, asyncio.Task[None]] = {}
        self._factory = TaskFactory(self.running)
        self._watchdog = Watchdog(self.running, self._cells, blocked, server.clock, seconds=bounds.block)

    async def opened(self, standing: Standing, raw: Raw, registration: Registration[Any] | None = None) -> Instance:
        """Return a new instance, which does not act yet. Raises `BadRequest` and `Refused` (PLUGIN_CANNOT_OPEN)."""
        registration = registration or standing.registration
        config = configured(registration, raw)
        self._factory.install()
        self._watchdog.start()
        cell = Cell(registration.name, registration.failure, self.running, self._bounds, self.clock, self._failed)
        instance = Instance(registration, config, cell, standing.metrics, self._server)
        try:
            await instance.open(self.patience.open)
        except BaseException:
            standing.retire(cell)
            self.stand_down()
            raise
        return instance

    def install(self, standing: Standing, instance: Instance) -> None:
        """Let an instance act; its handlers and loops are begun by `begin`."""
        standing.instance, standing.sealed = instance, False
        standing.settle(State.ENABLED, "", self.clock.now())
        self.plug()

    async def seal(self, standing: Standing, why: str) -> Instance | None:
        """Refuse what a plugin should look at that cannot be opened; returns what acted before, to be put away."""
        instance = await self.opened(standing, {}, sealed(standing.name))
        old, standing.instance, standing.sealed = standing.instance, instance, True
        standing.settle(State.FAILED, why, self.clock.now())
        self.plug()
        return old

    async def begin(self, standing: Standing) -> None:
        """Start handlers and loops of a plugin that acts."""
        instance = standing.instance
        if instance is not None:
            instance.start()
            if instance.handlers and not await self._attached(standing, instance):
                self._late[standing.name] = asyncio.get_running_loop().create_task(
                    self._attach_late(standing, instance)
                )

    async def _attached(self, standing: Standing, instance: Instance) -> bool:
        try:
            await self.dispatch.attach(standing.name, instance.handlers, instance.gap, role=instance.seat)
        except KernelError as error:
            _log.warning("plugin %s: its handlers cannot begin yet: %s", standing.name, error.message)
            return False
        return True

    async def _attach_late(self, standing: Standing, instance: Instance) -> None:
        """Begin to call handlers once the store can be written again, if the plugin still acts then."""
        while standing.instance is instance:
            await self.clock.sleep(ATTACH_EVERY)
            if standing.instance is instance and await self._attached(standing, instance):
                return

    async def detach(self, name: str) -> None:
        """Let the handlers of a plugin be."""
        late = self._late.pop(name, None)
        if late is not None:
            late.cancel()
            await asyncio.wait({late})
        await self.dispatch.detach(name)

    async def replace(self, standing: Standing, instance: Instance) -> None:
        """Let a new instance act, in the place of the old one if there is one."""
        old = standing.instance
        if old is not None:
            old.stop_loops()
            await self.detach(standing.name)
        self.install(standing, instance)
        await self.begin(standing)

    def take_out(self, standing: Standing, state: State, reason: str) -> Instance | None:
        """Let a plugin act no more; returns what is left to be put away."""
        standing.settle(state, reason, self.clock.now())
        instance, standing.instance, standing.sealed = standing.instance, None, False
        if instance is not None:
            self.plug()
        return instance

    async def put_away(self, standing: Standing, instance: Instance | None, grace: float) -> None:
        """Close what was taken out."""
        if instance is not None:
            await self.detach(standing.name)
            await self.closed(standing, instance, grace)
            await self.release(instance)
            self.stand_down()

    @staticmethod
    async def release(instance: Instance) -> None:
        """Let another replica do what an instance did that runs on one at a time."""
        if instance.seat is not None:
            await instance.seat.release()

    async def hand_over(self) -> None:
        """Let other replicas do what runs on one at a time; the plugins act on here. Their loops for that end first."""
        for standing in reversed(list(self.standings.values())):
            if standing.instance is not None and standing.instance.seat is not None:
                await standing.instance.seat.leave(self.patience.end)
                await self.detach(standing.name)
                await standing.instance.seat.release()

    async def closed(self, standing: Standing, instance: Instance, grace: float) -> None:
        """Close an instance that acts no more, unless it is closed already."""
        if not instance.closed:
            await instance.close(grace, self.patience.end)
            standing.retire(instance.cell)

    async def clear(self) -> None:
        """Close all, last opened first."""
        for standing in reversed(self.standings.values()):
            if standing.instance is not None:
                await self.put_away(standing, self.take_out(standing, State.DISABLED, ""), 0.0)
        self.stand_down()

    def plug(self) -> None:
        """Let exactly those act that are on, in order."""
        self._socket.plug([each.instance for each in self.standings.values() if each.instance is not None])

    def stand_down(self) -> None:
        """Without plugins nothing watches, and tasks cost what they cost."""
        if all(standing.instance is None for standing in self.standings.values()):
            self._factory.remove()
            self._watchdog.stop()

    def on(self) -> frozenset[str]:
        """Return the names of those that act."""
        return frozenset(name for name, standing in self.standings.items() if standing.on)

    def protectors(self) -> list[str]:
        """Return those that are on and let no call through without credentials."""
        return [
            name
            for name, each in self.standings.items()
            if each.instance is not None and each.instance.plugin.protects and each.instance.cell.closed
        ]

    def _cells(self) -> Iterable[Cell]:
        return [each.instance.cell for each in tuple(self.standings.values()) if each.instance is not None]
