"""Opens plugins in order, closes them in reverse, and switches them while calls go on.

What acts is always one immutable whole, swapped at once: calls in flight finish on the chain they started with. One
switch is made at a time, in a task of the host's: a caller that goes away takes nothing back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import KernelError, Refused
from agenthive_server.kernel.events import EventType

from .cell import Bounds
from .configuration import Raw, configured, with_secrets
from .instance import Instance, Server
from .overview import First, Overview, cannot
from .rack import Dispatch, Patience, Rack, Socket
from .registration import Failure
from .registry import Registry, conflict
from .standing import PluginReport, Standing, State
from .troubles import Troubles
from .wanted import WantedSet, Wish

_log = logging.getLogger(__name__)

T = TypeVar("T")

LAST_SWITCH: Final = 10.0
"""Seconds a switch under way may take when the server stops."""


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
    ) -> None:
        """`exposed` says whether others can reach the server, so that it must stay protected."""
        self.registry = registry
        self._first = first
        self._clock = server.clock
        self._wanted = wanted
        self._exposed = exposed
        self._troubles = Troubles(registry, wanted, server.clock, self._keep)
        self._rack = self._troubles.rack = Rack(
            server,
            socket,
            dispatch,
            bounds or Bounds(),
            patience or Patience(),
            failed=self._troubles.failed,
            blocked=self._troubles.blocked,
        )
        self.overview = Overview(registry, first, self._rack)
        self._lock = asyncio.Lock()
        self._work: set[asyncio.Task[Any]] = set()
        self._closing = False

    # Start and stop -------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the plugins that are wanted. Raises `KernelError` when one that is required cannot be."""
        wishes = await self._wanted.load()
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

    def _check_wanted(self, wishes: Mapping[str, Wish]) -> None:
        """Raise `Refused` for a plugin that is not there, and without which perhaps nothing may pass.

        What the settings want and is not to be found or read is such a one, for nobody knows what its failure means; of
        one that was switched on while the server ran its record knows.
        """
        wanted = {name for name, first in self._first.items() if first.enabled or first.required}
        wanted |= {name for name, wish in wishes.items() if wish.enabled and wish.closed}
        for name in sorted(wanted):
            if self.registry.find(name) is None:
                raise cannot(name, self.registry.broken.get(name, "it is not installed"))

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
        """Let other replicas do what of the plugins runs on one at a time: this one is about to stop."""
        async with self._lock:
            await self._rack.hand_over()

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
        """Tell of failures until cancelled."""
        await self._troubles.run()

    # Switches -------------------------------------------------------------------------------------------------------

    async def enable(self, caller: Caller, name: str) -> PluginReport:
        """Switch a plugin on, for good. Raises `NotFound`, `Refused` (PLUGIN_CONFLICT, PLUGIN_CANNOT_OPEN)."""
        standing = self.overview.standing(name)
        return await asyncio.shield(self._keep(lambda: self._enable(caller, standing)))

    async def _enable(self, caller: Caller, standing: Standing) -> PluginReport:
        name = standing.name
        wish = Wish(enabled=True, config=standing.wish.config, closed=standing.registration.failure is Failure.CLOSED)
        if standing.on:
            if not standing.wish.enabled:
                standing.wish = await self._wanted.write(caller, name, wish, EventType.PLUGIN_ENABLED)
            return self.overview.of(standing)
        self.registry.check_on(name, self._rack.on())
        instance = await self._rack.opened(standing, wish.config)
        try:
            standing.wish = await self._wanted.write(caller, name, wish, EventType.PLUGIN_ENABLED)
        except BaseException:
            await self._rack.closed(standing, instance, 0.0)
            self._rack.stand_down()
            raise
        if standing.wish.enabled:
            await self._rack.replace(standing, instance)
        else:
            # This call was made before, and another has come since.
            await self._rack.closed(standing, instance, 0.0)
        return self.overview.of(standing)

    async def disable(self, caller: Caller, name: str) -> PluginReport:
        """Switch a plugin off, for good. Raises `NotFound`, `Refused` (PLUGIN_CONFLICT)."""
        standing = self.overview.standing(name)
        return await asyncio.shield(self._keep(lambda: self._disable(caller, standing)))

    async def _disable(self, caller: Caller, standing: Standing) -> PluginReport:
        name = standing.name
        if not standing.on and not standing.wish.enabled:
            return self.overview.of(standing)
        self.registry.check_off(name, self._rack.on())
        if standing.required:
            raise conflict(name, f"the settings of the server require plugin {name}")
        if self._exposed() and self._rack.protectors() == [name]:
            raise conflict(name, f"plugin {name} protects this server, which others can reach")
        wish = Wish(enabled=False, config=standing.wish.config)
        standing.wish = await self._wanted.write(caller, name, wish, EventType.PLUGIN_DISABLED)
        if not standing.wish.enabled:
            instance = self._rack.take_out(standing, State.DISABLED, "")
            await self._rack.put_away(standing, instance, self._rack.patience.grace)
        return self.overview.of(standing)

    async def configure(self, caller: Caller, name: str, raw: Raw, revision: int = 0) -> PluginReport:
        """Change the settings of a plugin, for good; with `revision` only if that is the present one.

        Raises `NotFound`, `BadRequest`, `Conflict`, `Refused` (PLUGIN_CANNOT_OPEN).
        """
        standing = self.overview.standing(name)
        return await asyncio.shield(self._keep(lambda: self._configure(caller, standing, raw, revision)))

    async def _configure(self, caller: Caller, standing: Standing, raw: Raw, revision: int) -> PluginReport:
        present, rack = standing.wish, self._rack
        raw = with_secrets(standing.registration, raw, present.config)
        configured(standing.registration, raw)
        closed = standing.registration.failure is Failure.CLOSED
        wish = Wish(enabled=present.enabled, config=raw, failed=present.failed, closed=closed)
        old = standing.instance
        new = await self._renewed(standing, old, raw) if old is not None else None
        kind = EventType.PLUGIN_CONFIGURED
        try:
            standing.wish = await self._wanted.write(caller, standing.name, wish, kind, expected=revision)
        except BaseException:
            if new is not None and old is not None:
                await rack.closed(standing, new, 0.0)
                await self._back(standing, old)
            raise
        if new is not None and old is not None:
            await rack.replace(standing, new)
            if standing.registration.overlaps:
                await rack.closed(standing, old, rack.patience.grace)
        return self.overview.of(standing)

    async def _renewed(self, standing: Standing, old: Instance, raw: Raw) -> Instance:
        """Return an instance with other settings. Where two must not overlap, the old one is closed before."""
        rack = self._rack
        if standing.registration.overlaps:
            return await rack.opened(standing, raw)
        if not old.cell.closed:
            standing.instance = None
            rack.plug()
        await rack.detach(standing.name)
        await rack.closed(standing, old, rack.patience.grace)
        try:
            return await rack.opened(standing, raw)
        except BaseException:
            await self._back(standing, old)
            raise

    async def _back(self, standing: Standing, old: Instance) -> None:
        """Go on with the present settings when other ones could not be taken."""
        if standing.registration.overlaps:
            return
        try:
            await self._rack.replace(standing, await self._rack.opened(standing, standing.wish.config))
        except KernelError as error:
            _log.error("%s", error.message)
            standing.settle(State.FAILED, error.message, self._clock.now())
            await self._rack.release(old)
            if not old.cell.closed:
                standing.instance = None
                self._rack.plug()

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
