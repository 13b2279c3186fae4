"""Opens plugins in order, closes them in reverse, and switches them while calls go on.

What acts is always one immutable whole, swapped at once: calls in flight finish on the chain they started with. One
switch is made at a time, in a task of the host's: a caller that goes away takes nothing back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import KernelError, Refused, StoreUnavailable
from agenthive_server.kernel.events import Event, EventType

from .bell import Bell
from .cell import Bounds
from .configuration import Raw
from .instance import Server
from .overview import First, Overview
from .rack import Dispatch, Patience, Rack, Socket
from .registration import Failure
from .registry import Registry
from .standing import PluginReport, Standing, State
from .switches import Switches
from .troubles import Troubles
from .wanted import WantedSet, Wish

_log = logging.getLogger(__name__)

T = TypeVar("T")

LAST_SWITCH: Final = 10.0
"""Seconds a switch under way may take when the server stops."""

SWITCHES: Final = frozenset(
    {EventType.PLUGIN_ENABLED, EventType.PLUGIN_DISABLED, EventType.PLUGIN_CONFIGURED, EventType.PLUGIN_FAILED}
)

FIRST_LOOK: Final = 5.0
LONGEST_LOOK: Final = 60.0
"""Seconds between two looks at what was switched on other replicas, should the event have been missed; and between two
tries to open what cannot be opened here: doubled each time."""

FRESH: Final = 2.0
"""Seconds for which whoever asks how plugins are waits for what was switched on other replicas."""


class PluginHost:
    """All plugins of a server: `open`, then switches, then `close`."""

    def __init__(
        self,
        registry: Registry,
        first: Mapping[str, First],
        server: Server,
        wanted: WantedSet,
        socket: Socket,
        dispatch: Dispatch,
        *,
        bounds: Bounds | None = None,
        patience: Patience | None = None,
        exposed: Callable[[], bool] = lambda: False,
        follows: bool = False,
        place: str = "",
    ) -> None:
        """`exposed` says whether others can reach the server, so that it must stay protected.

        `follows`: other replicas switch plugins as well. `place`: the name of this one.
        """
        self.registry = registry
        self._first = first
        self._clock = server.clock
        self._wanted = wanted
        self._follows = follows
        self._bell = Bell(SWITCHES, server.clock)
        self._opened = asyncio.Event()
        self._troubles = Troubles(registry, wanted, server.clock, self._keep, place)
        self._rack = self._troubles.rack = Rack(
            server,
            socket,
            dispatch,
            bounds or Bounds(),
            patience or Patience(),
            failed=self._troubles.failed,
            blocked=self._troubles.blocked,
        )
        self._switches = Switches(registry, wanted, self._rack, server.clock, exposed)
        self.overview = Overview(registry, first, self._rack)
        self._lock = asyncio.Lock()
        self._work: set[asyncio.Task[Any]] = set()
        self._closing = False

    # Start and stop -------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the plugins that are wanted. Raises `KernelError` when one that is required cannot be."""
        self._switches.turn, wishes = await self._wanted.load()
        standings = self._rack.standings
        for registration in self.registry:
            name = registration.name
            first = self._first.get(name, First())
            wish = wishes.get(name) or Wish(enabled=first.enabled or first.required, config=first.config)
            standings[name] = Standing(registration, wish, required=first.required, now=self._clock.now())
        try:
            self._check_wanted(wishes)
            for standing in standings.values():
                await self._open_first(standing)
            for standing in standings.values():
                await self._rack.begin(standing)
        except BaseException:
            await self.close()
            raise
        self._opened.set()

    def _check_wanted(self, wishes: Mapping[str, Wish]) -> None:
        """Raise `Refused` for a plugin that is not there, and without which perhaps nothing may pass.

        What the settings want and is not to be found or read is such a one, for nobody knows what its failure means; of
        one that was switched on while the server ran its record knows.
        """
        wanted = {name for name, first in self._first.items() if first.enabled or first.required}
        wanted |= {name for name, wish in wishes.items() if wish.enabled and wish.closed}
        for name in sorted(wanted):
            if self.registry.find(name) is None:
                raise self.registry.missing(name)

    async def _open_first(self, standing: Standing) -> None:
        wish = standing.wish
        if standing.required:
            if wish.failed or not wish.enabled:
                _log.warning("plugin %s had been switched off; the settings require it", standing.name)
        elif not wish.enabled:
            return
        elif wish.failed:
            standing.settle(State.FAILED, wish.failed, self._clock.now())
            return
        try:
            self.registry.check_on(standing.name, self._rack.on())
            self._rack.install(standing, await self._rack.opened(standing, wish.config))
        except KernelError as error:
            # Nothing gets past one without which nothing passes: not even because it could not be opened.
            if standing.required or standing.registration.failure is Failure.CLOSED:
                raise
            _log.error("%s", error.message)
            standing.settle(State.FAILED, error.message, self._clock.now())

    async def hand_over(self) -> None:
        """Let other replicas do what of the plugins runs on one at a time: this one is about to stop.

        A switch that takes long is not waited for: they have it at the latest when this one has stopped.
        """
        try:
            async with asyncio.timeout(LAST_SWITCH), self._lock:
                await self._rack.hand_over()
        except TimeoutError:
            _log.warning("plugins could not be handed over in time")

    async def close(self) -> None:
        """Close all, last opened first. A switch under way may finish, within reason."""
        self._closing = True
        if self._work:
            _, late = await asyncio.wait(self._work, timeout=LAST_SWITCH)
            for work in late:
                work.cancel("the server stops")
        async with self._lock:
            await self._rack.clear()

    async def run(self) -> None:
        """Tell of failures, and follow what is switched elsewhere, until cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._troubles.run())
            if self._follows:
                both.create_task(self._follow())

    # Switches -------------------------------------------------------------------------------------------------------

    async def enable(self, caller: Caller, name: str) -> PluginReport:
        """Switch a plugin on, for good. Raises `NotFound`, `Refused` (PLUGIN_CONFLICT, PLUGIN_CANNOT_OPEN)."""
        standing = self.overview.standing(name)
        return await self._switched(standing, lambda: self._switches.enable(caller, standing))

    async def disable(self, caller: Caller, name: str) -> PluginReport:
        """Switch a plugin off, for good. Raises `NotFound`, `Refused` (PLUGIN_CONFLICT)."""
        standing = self.overview.standing(name)
        return await self._switched(standing, lambda: self._switches.disable(caller, standing))

    async def configure(self, caller: Caller, name: str, raw: Raw, revision: int = 0) -> PluginReport:
        """Change the settings of a plugin, for good; with `revision` only if that is the present one.

        Raises `NotFound`, `BadRequest`, `Conflict`, `Refused` (PLUGIN_CANNOT_OPEN).
        """
        standing = self.overview.standing(name)
        return await self._switched(standing, lambda: self._switches.configure(caller, standing, raw, revision))

    async def _switched(self, standing: Standing, switch: Callable[[], Coroutine[Any, Any, None]]) -> PluginReport:
        await asyncio.shield(self._keep(switch))
        return self.overview.of(standing)

    # Other replicas -------------------------------------------------------------------------------------------------

    def heard(self, events: Sequence[Event]) -> None:
        """Follow soon when events tell of a switch."""
        if any(event.type in self._bell.kinds for event in events):
            self._bell.ring()

    async def fresh(self) -> None:
        """Return when what was switched on other replicas is so here too, or it takes too long."""
        if not self._follows:
            return
        try:
            if self._switches.turn != await self._wanted.turn():
                await asyncio.wait({self._keep(self._switches.follow)}, timeout=FRESH)
        except StoreUnavailable:
            # Operators have to see what is on here all the more.
            return

    async def _follow(self) -> None:
        """Follow what is switched elsewhere: when told of it, and now and then."""
        await self._opened.wait()
        pause = FIRST_LOOK
        while True:
            await self._bell.wait(pause)
            try:
                await self._keep(self._switches.follow)
                if self._switches.missing:
                    await self._keep(self._switches.try_again)
            except KernelError as error:
                _log.warning("what was switched elsewhere could not be followed: %s", error.message)
            pause = min(2 * pause, LONGEST_LOOK) if self._switches.missing else FIRST_LOOK

    def _keep(self, switch: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Make a switch while no other is made, to the end, whatever becomes of the caller."""

        async def alone() -> T:
            async with self._lock:
                if self._closing:
                    raise Refused("the server is stopping", reason="DRAINING")
                return await switch()

        outer, self._rack.running.act = self._rack.running.act, None
        task = asyncio.get_running_loop().create_task(alone())
        self._rack.running.act = outer
        self._work.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._work.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            # Whoever asked for the switch hears of it too, if still there.
            _log.debug("a switch of a plugin failed", exc_info=error)

    # What it says ---------------------------------------------------------------------------------------------------

    @property
    def protected(self) -> bool:
        """Whether a plugin is on that lets no call through without credentials."""
        return bool(self._rack.protectors())

    async def join_token(self) -> str:
        """Return a token with which the server's own runner may join; empty where nobody asks for one."""
        for standing in self._rack.standings.values():
            instance = standing.instance
            if instance is not None and instance.plugin.join_token is not None:
                return await instance.plugin.join_token()
        return ""

    def report(self, name: str) -> PluginReport:
        """Return one plugin as operators see it. Raises `NotFound`."""
        return self.overview.report(name)

    def reports(self) -> list[PluginReport]:
        """Return all plugins that are installed, by name."""
        return self.overview.reports()
