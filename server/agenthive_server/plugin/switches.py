"""How plugins are switched: by whoever asks here, and after what was asked for on another replica.

A switch builds on all wishes as they are: it follows them first, tries what is wanted, and writes it if nobody was
quicker; else it begins again. What another replica has written is followed whatever comes of it here, for the wish is
the hive's: a plugin that cannot be opened here is off here or, where nothing passes without it, refuses in its place.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import Conflict, KernelError
from agenthive_server.kernel.events import EventType

from .configuration import Raw, configured, with_secrets
from .instance import Instance
from .rack import Rack
from .registration import Failure
from .registry import Registry, conflict
from .sealed import sealed
from .standing import Standing, State
from .wanted import Overtaken, WantedSet, Wish

TRIES: Final = 10
"""Times a switch is begun again because another one was quicker."""

_log = logging.getLogger(__name__)


class Switches:
    """Switches plugins, one at a time: whoever calls sees to that."""

    def __init__(
        self, registry: Registry, wanted: WantedSet, rack: Rack, clock: Clock, exposed: Callable[[], bool]
    ) -> None:
        # Up to which all wishes are known.
        self.turn = 0
        self._registry = registry
        self._wanted = wanted
        self._rack = rack
        self._clock = clock
        self._exposed = exposed

    # By whoever asks here -------------------------------------------------------------------------------------------

    async def enable(self, caller: Caller, standing: Standing) -> None:
        """Switch a plugin on, for good."""
        await self._insist(lambda: self._enable(caller, standing))

    async def disable(self, caller: Caller, standing: Standing) -> None:
        """Switch a plugin off, for good."""
        await self._insist(lambda: self._disable(caller, standing))

    async def configure(self, caller: Caller, standing: Standing, raw: Raw, revision: int) -> None:
        """Change the settings of a plugin, for good; with `revision` only if that is the present one."""
        await self._insist(lambda: self._configure(caller, standing, raw, revision))

    async def _insist(self, switch: Callable[[], Awaitable[None]]) -> None:
        for _ in range(TRIES):
            await self.follow()
            try:
                return await switch()
            except Overtaken:
                continue
        raise Conflict("other switches of plugins kept coming first; repeat this one", retry_after=0.1)

    async def _enable(self, caller: Caller, standing: Standing) -> None:
        rack, closed = self._rack, standing.registration.failure is Failure.CLOSED
        wish = replace(standing.wish, enabled=True, failed="", closed=closed)
        if standing.on:
            if not standing.wish.enabled:
                await self._write(caller, standing, wish, EventType.PLUGIN_ENABLED)
            return
        self._registry.check_on(standing.name, rack.on())
        instance = await rack.opened(standing, wish.config)
        written = False
        try:
            written = await self._write(caller, standing, wish, EventType.PLUGIN_ENABLED)
        finally:
            if not written:
                await rack.closed(standing, instance, 0.0)
                rack.stand_down()
        if written:
            await self._take(standing, instance)

    async def _disable(self, caller: Caller, standing: Standing) -> None:
        name = standing.name
        if standing.instance is None and not standing.wish.enabled:
            return
        self._registry.check_off(name, self._rack.on())
        if standing.required:
            raise conflict(name, f"the settings of the server require plugin {name}")
        if self._is_protector(name):
            raise conflict(name, f"plugin {name} protects this server, which others can reach")
        wish = Wish(enabled=False, config=standing.wish.config)
        if await self._write(caller, standing, wish, EventType.PLUGIN_DISABLED):
            await self._off(standing)

    async def _configure(self, caller: Caller, standing: Standing, raw: Raw, revision: int) -> None:
        present, old = standing.wish, standing.instance
        raw = with_secrets(standing.registration, raw, present.config)
        configured(standing.registration, raw)
        wish = replace(present, config=raw, closed=standing.registration.failure is Failure.CLOSED)
        new: Instance | None = None
        written = False
        try:
            if old is not None:
                new = await self._renewed(standing, old, raw)
            written = await self._write(caller, standing, wish, EventType.PLUGIN_CONFIGURED, revision)
        finally:
            if not written and old is not None:
                if new is not None:
                    await self._rack.closed(standing, new, 0.0)
                await self._back(standing, old)
        if written and new is not None:
            await self._take(standing, new)

    async def _write(self, caller: Caller, standing: Standing, wish: Wish, kind: EventType, expected: int = 0) -> bool:
        """Write a wish; False when this call was made before: what it wished was followed, and perhaps more since."""
        written = await self._wanted.write(caller, standing.name, wish, kind, turn=self.turn, expected=expected)
        if written.turn is None:
            return False
        standing.wish, self.turn = written.wish, written.turn
        return True

    # After another replica ------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Do what was wished elsewhere since the last time. Raises `StoreUnavailable`."""
        if self.turn == await self._wanted.turn():
            return
        turn, wishes = await self._wanted.load()
        await self.apply(wishes)
        self.turn = turn

    async def try_again(self) -> None:
        """Open what is wanted and could not be opened here."""
        await self.apply({})

    async def apply(self, wishes: Mapping[str, Wish]) -> None:
        """Let plugins be as they are wished, and those nobody has a wish for as they should be."""
        standings = self._rack.standings
        self._add_strangers(wishes)
        changed = {name: standing.wish.config for name, standing in standings.items()}
        for name, standing in standings.items():
            standing.wish = wishes.get(name, standing.wish)
        renewed = {name for name, config in changed.items() if standings[name].wish.config != config}
        # Whoever lets nothing pass comes first and goes last; whom it replaces may be in its way.
        for standing in [each for each in standings.values() if each.registration.failure is Failure.CLOSED]:
            await self._on(standing, renewed)
        for standing in reversed(list(standings.values())):
            if not self._is_wanted(standing):
                await self._off(standing)
        for standing in list(standings.values()):
            await self._on(standing, renewed)

    @property
    def missing(self) -> bool:
        """Whether something is wanted and could not be opened here."""
        return any(self._is_wanted(standing) and not standing.on for standing in self._rack.standings.values())

    def _add_strangers(self, wishes: Mapping[str, Wish]) -> None:
        """Know also those that are not installed here, and without which nothing passes."""
        for name, wish in wishes.items():
            if wish.enabled and wish.closed and name not in self._rack.standings:
                self._rack.standings[name] = Standing(sealed(name), wish, required=False, now=self._clock.now())

    def _is_wanted(self, standing: Standing) -> bool:
        """Whether a plugin is to be on here; what the settings require, or must protect this server, stays on."""
        wish = standing.wish
        if wish.failed:
            return False
        return wish.enabled or standing.required or self._is_protector(standing.name)

    def _is_protector(self, name: str) -> bool:
        return self._exposed() and self._rack.protectors() == [name]

    async def _on(self, standing: Standing, renewed: set[str]) -> None:
        """Let a plugin that is wanted be on, with the settings that are wanted."""
        if not self._is_wanted(standing) or (standing.on and standing.name not in renewed):
            return
        renewed.discard(standing.name)
        old = standing.instance
        try:
            if self._registry.find(standing.name) is None:
                raise self._registry.missing(standing.name)
            self._registry.check_on(standing.name, self._rack.on())
            new = await (
                self._rack.opened(standing, standing.wish.config)
                if old is None
                else self._renewed(standing, old, standing.wish.config)
            )
        except KernelError as error:
            _log.error("plugin %s cannot be as it was switched on another server: %s", standing.name, error.message)
            await self._without(standing, error.message)
        else:
            await self._take(standing, new)

    async def _without(self, standing: Standing, why: str) -> None:
        """Do without a plugin that cannot be opened here; where nothing passes without it, nothing does."""
        if standing.sealed:
            standing.settle(State.FAILED, why, self._clock.now())
        elif standing.registration.failure is Failure.CLOSED:
            await self._rack.put_away(standing, await self._rack.seal(standing, why), self._rack.patience.grace)
        else:
            old = self._rack.take_out(standing, State.FAILED, why)
            await self._rack.put_away(standing, old, self._rack.patience.grace)

    async def _off(self, standing: Standing) -> None:
        wish = standing.wish
        failed = wish.failed if wish.enabled else ""
        instance = self._rack.take_out(standing, State.FAILED if failed else State.DISABLED, failed)
        await self._rack.put_away(standing, instance, self._rack.patience.grace)
        if self._registry.find(standing.name) is None:
            del self._rack.standings[standing.name]

    # Steps ----------------------------------------------------------------------------------------------------------

    async def _take(self, standing: Standing, new: Instance) -> None:
        """Let a new instance act in the place of the one there is, if any."""
        old = standing.instance
        await self._rack.replace(standing, new)
        if old is not None:
            await self._rack.closed(standing, old, self._rack.patience.grace)

    async def _renewed(self, standing: Standing, old: Instance, raw: Raw) -> Instance:
        """Return an instance with other settings. Where two must not overlap, the old one is closed before."""
        rack = self._rack
        if not standing.registration.overlaps and not standing.sealed:
            if not old.cell.closed:
                standing.instance = None
                rack.plug()
            await rack.detach(standing.name)
            await rack.closed(standing, old, rack.patience.grace)
        return await rack.opened(standing, raw)

    async def _back(self, standing: Standing, old: Instance) -> None:
        """Go on with the present settings when other ones could not be taken."""
        if standing.registration.overlaps or standing.sealed:
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
