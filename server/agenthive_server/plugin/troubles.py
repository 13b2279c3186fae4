"""What becomes of failures: they are told by events, and a plugin that fails too often is switched off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import KernelError
from agenthive_server.kernel.events import Event, EventType

from .cell import Cell
from .rack import Rack
from .registry import Registry
from .standing import Standing, State
from .wanted import NAMESPACE, Overtaken, WantedSet, Wish
from .watchdog import Block

TELL_EVERY: Final = 5.0
"""Seconds between two times that failures are told."""

MOST_AT_ONCE: Final = 100
"""Acts whose failures are told at once; of more there are too many to read."""

_SERVER: Final = Caller(namespace=NAMESPACE)
_log = logging.getLogger(__name__)


class Troubles:
    """Hears of failures from wherever they happen, and acts on them in tasks of the host's."""

    def __init__(
        self,
        registry: Registry,
        wanted: WantedSet,
        clock: Clock,
        keep: Callable[[Callable[[], Coroutine[Any, Any, None]]], object],
        place: str = "",
    ) -> None:
        """`keep` runs something while no other switch is made; `place` names this server among several."""
        self._on = f" on {place}" if place else ""
        self._registry = registry
        self._wanted = wanted
        self._clock = clock
        self._keep = keep
        # Failures that are to be told: by plugin and act, what happened last and how often.
        self._untold: dict[tuple[str, str], tuple[str, int]] = {}
        self._any = asyncio.Event()
        self.rack: Rack | None = None

    def failed(self, cell: Cell, act: str, what: str, off: bool) -> None:
        """Take note of a failure; called in the middle of whatever failed."""
        if off:
            self._keep(lambda: self._switch_off(cell, act, what))
            return
        key = (cell.name, act)
        if key in self._untold or len(self._untold) < MOST_AT_ONCE:
            self._untold[key] = (what, self._untold.get(key, ("", 0))[1] + 1)
        self._any.set()

    def blocked(self, block: Block) -> None:
        """Hear that the event loop stood still."""
        cell = block.cell
        if cell is None or not cell.live:
            return
        what = f"blocked the event loop for {block.seconds:.1f} s at {block.place}"
        # Imports are slow the first time: what blocks while it opens is named, and may go on.
        cell.tell(block.act, what, off=block.act != "open")

    async def run(self) -> None:
        """Tell of failures, until cancelled: the first at once, more of them in one event each few seconds."""
        while True:
            await self._any.wait()
            self._any.clear()
            untold, self._untold = self._untold, {}
            try:
                await self._wanted.tell(
                    [
                        _failure({"plugin": plugin, "act": act, "error": what, "count": count, "switched_off": False})
                        for (plugin, act), (what, count) in untold.items()
                    ]
                )
            except KernelError as error:
                _log.warning("failures of plugins could not be told: %s", error.message)
            await self._clock.sleep(TELL_EVERY)

    async def _switch_off(self, cell: Cell, act: str, what: str) -> None:
        """Switch off a plugin that failed; those that require it go with it, unless they are there to refuse."""
        assert self.rack is not None
        standings = self.rack.standings
        standing = standings[cell.name]
        if standing.instance is None or standing.instance.cell is not cell:
            return
        _log.error("plugin %s is switched off: %s: %s", cell.name, act, what)
        for name in self._registry.dependents(cell.name):
            other = standings[name]
            if other.instance is not None and not other.instance.cell.closed:
                why = f"switched off because {cell.name}, which it requires, failed"
                await self._off(self.rack, other, why, "requires", why)
        await self._off(self.rack, standing, f"switched off because it failed{self._on}: {act}: {what}", act, what)

    async def _off(self, rack: Rack, standing: Standing, reason: str, act: str, what: str) -> None:
        if standing.instance is not None:
            standing.instance.cell.end()
        instance = rack.take_out(standing, State.FAILED, reason)
        facts = {"act": act, "error": what, "count": 1, "switched_off": True}
        try:
            await self._wish_off(standing, reason, facts)
        except KernelError as error:
            _log.warning("that plugin %s is off could not be written: %s", standing.name, error.message)
        await rack.put_away(standing, instance, 0.0)

    async def _wish_off(self, standing: Standing, reason: str, facts: dict[str, Any]) -> None:
        """Have it off on every server, unless somebody wished for something else meanwhile."""
        while True:
            turn, wishes = await self._wanted.load()
            present = wishes.get(standing.name, standing.wish)
            if present.revision != standing.wish.revision:
                return
            wish = Wish(enabled=present.enabled, config=present.config, failed=reason)
            kind = EventType.PLUGIN_FAILED
            try:
                written = await self._wanted.write(_SERVER, standing.name, wish, kind, facts, turn=turn)
            except Overtaken:
                continue
            standing.wish = written.wish
            return


def _failure(facts: dict[str, Any]) -> Event:
    return Event(type=EventType.PLUGIN_FAILED, namespace=NAMESPACE, data=facts)
