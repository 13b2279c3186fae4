"""Calls the handlers of plugins, each plugin from a cursor of its own: at least once, in the order of the log.

One pump reads the log for all and hands each plugin the events it has handlers for; a plugin that is slow, or fails,
delays itself only. Cursors are stored about once a second, all together, so that after a crash some events are handled
again, and none is left out. Compaction waits for the handlers up to twice the retention; one that is then still behind
is told what it misses before that is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, cast

from agenthive_server.events.log import EventLog
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.decide import Decisions, View
from agenthive_server.kernel.errors import CursorCompacted, KernelError
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.ports import Chance, Notifier
from agenthive_server.kernel.records import CursorRecord, Key, Kind
from agenthive_server.kernel.replicas import AlwaysHeld, Role

from .caller import Deal, Tell
from .follower import Follower

READ: Final = 1_000
PACE: Final = 0.01
"""Seconds the pump rests after events, so that many of them wake it once."""

SAVE_EVERY: Final = 1.0
SAVE_AFTER: Final = 5_000
SAVE_ALWAYS: Final = 60.0
"""Cursors are stored at most once a second, where events were handled; else after so many that concerned nobody, or
after so many seconds: compaction, which another replica may do, waits for them."""

GRACE: Final = 2.0
"""Seconds a handler that runs is given to end when its plugin is switched off, before it is cancelled."""

GAP_PATIENCE: Final = 60.0
"""Seconds after which compaction goes on although a handler has not taken note of its gap."""

_log = logging.getLogger(__name__)


class Dispatcher:
    """The handlers of all plugins. `run` is a loop of the server; everything else may be called at any time."""

    def __init__(self, log: EventLog, notifier: Notifier, decisions: Decisions, clock: Clock, chance: Chance) -> None:
        self._log = log
        self._notifier = notifier
        self._decisions = decisions
        self._clock = clock
        self._chance = chance
        self._followers: dict[str, Follower] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wanted: dict[EventType, tuple[Follower, ...]] = {}
        self._somebody = asyncio.Event()
        self._moved = asyncio.Event()
        self._position = 0

    # Plugins come and go --------------------------------------------------------------------------------------------

    async def attach(
        self, plugin: str, handlers: Mapping[EventType, Deal], gap: Tell | None = None, *, role: Role | None = None
    ) -> None:
        """Begin to call handlers: where they left off, or, for a plugin that had none before, with what happens next.

        Where that is, is stored when this returns. `gap` is told of events that were compacted before the handlers came
        to them: first and last sequence. With a `role` they are called only while this replica has it. Raises
        `StoreUnavailable`.
        """
        await self.detach(plugin)
        position = await self._decisions.run(partial(_begun, _key(plugin), self._log.head))
        follower = Follower(
            plugin,
            handlers,
            gap,
            log=self._log,
            clock=self._clock,
            chance=self._chance,
            role=role or AlwaysHeld(),
            load=partial(self._load, plugin, position),
            pumped=lambda: self._position,
            moved=self._moved.set,
        )
        follower.begin(position)
        if not self._followers:
            self._position = self._log.head
        self._followers[plugin] = follower
        self._tasks[plugin] = asyncio.create_task(follower.run(), name=f"{plugin}/handlers")
        self._route()

    async def detach(self, plugin: str) -> None:
        """Call them no more; returns when none runs. Their cursor stays, for when they come back."""
        follower = self._followers.pop(plugin, None)
        if follower is None:
            return
        self._route()
        follower.park()
        try:
            async with asyncio.timeout(GRACE):
                await follower.at_rest.wait()
        except TimeoutError:
            pass
        await self._end(plugin)
        await self._save([follower])

    async def _end(self, plugin: str) -> None:
        task = self._tasks.pop(plugin)
        task.cancel()
        _, stubborn = await asyncio.wait({task}, timeout=GRACE)
        if stubborn:
            _log.error("plugin_handler_does_not_end", extra={"plugin": plugin})

    def _route(self) -> None:
        wanted: dict[EventType, tuple[Follower, ...]] = {}
        for follower in self._followers.values():
            for kind in follower.handlers:
                wanted[kind] = (*wanted.get(kind, ()), follower)
        self._wanted = wanted
        if self._followers:
            self._somebody.set()
        else:
            self._somebody.clear()

    def lag(self, plugin: str) -> int:
        """Return how many events its handlers have not come to; zero where another replica calls them."""
        follower = self._followers.get(plugin)
        return follower.lag if follower is not None and follower.role.held else 0

    def failing(self, plugin: str) -> str:
        """Return why a handler is being tried again; empty when all goes well."""
        follower = self._followers.get(plugin)
        return follower.failing if follower is not None else ""

    # The pump -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Hand out events and store cursors until cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._keep_pumping())
            both.create_task(self._keep_saving())

    async def _keep_pumping(self) -> None:
        while True:
            await self._somebody.wait()
            try:
                await self._pump()
            except KernelError as error:
                _log.warning("plugin_dispatch_is_delayed", extra={"reason": error.reason})
                await self._clock.sleep(SAVE_EVERY)

    async def _keep_saving(self) -> None:
        """Store what has moved at once after a rest, so that a server that is killed often gets on, then seldom."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            await self._save(list(self._followers.values()))
            await self._clock.sleep(SAVE_EVERY)

    async def _pump(self) -> None:
        try:
            events = await self._log.read(self._position, READ)
        except CursorCompacted:
            for follower in self._followers.values():
                follower.fall_behind()
            self._position = self._log.oldest - 1
            return
        if not events:
            await self._notifier.wait(self._position, SAVE_EVERY)
            self._look_what_moved()
            return
        self._hand_out(events)
        await self._clock.sleep(PACE)

    def _hand_out(self, events: Sequence[Event]) -> None:
        wanted = self._wanted
        for event in events:
            for follower in wanted.get(event.type, ()):
                follower.offer(event)
        self._position = events[-1].sequence
        self._look_what_moved()

    def _look_what_moved(self) -> None:
        if any(map(self._worth_saving, self._followers.values())):
            self._moved.set()

    # Cursors --------------------------------------------------------------------------------------------------------

    async def _load(self, plugin: str, otherwise: int) -> int:
        def decide(view: View) -> int:
            found = _find(view, _key(plugin))
            return found.sequence if found else otherwise

        return await self._decisions.run(decide)

    async def _save(self, followers: Sequence[Follower]) -> None:
        """Store the cursors that have moved, in one change. Where that fails, it is for the next time."""
        moved = [(follower, follower.reached) for follower in followers if self._worth_saving(follower)]
        if not moved:
            return

        def decide(view: View) -> None:
            for follower, reached in moved:
                follower.role.check(view)
                old = _find(view, _key(follower.plugin)) or _cursor(_key(follower.plugin))
                if old.sequence < reached:
                    view.put(old.evolve(sequence=reached))

        for follower, _ in moved:
            follower.dirty = False
        try:
            await self._decisions.run(decide)
        except KernelError as error:
            for follower, _ in moved:
                follower.dirty = True
            self._moved.set()
            _log.warning("plugin_cursors_not_stored", extra={"reason": error.reason})
            return
        for follower, reached in moved:
            follower.saved, follower.saved_at = reached, self._clock.monotonic()

    def _worth_saving(self, follower: Follower) -> bool:
        moved = follower.reached - follower.saved
        if moved <= 0 or not follower.role.held:
            # Without the role whoever calls its handlers now stores where they are.
            return False
        return follower.dirty or moved >= SAVE_AFTER or self._clock.monotonic() - follower.saved_at >= SAVE_ALWAYS

    # Compaction -----------------------------------------------------------------------------------------------------

    def release(self, until: int, overdue: int) -> int:
        """Return up to which sequence events may go, at most `until`.

        Handlers that have not come to `overdue` are told of what they miss up to there, and then waited for no longer.
        """
        for follower in self._followers.values():
            if not follower.role.held:
                # Its handlers run on another replica, which is told of its gap when it comes to it.
                record = self._decisions.memory.latest((Kind.CURSOR, _key(follower.plugin)))
                stored = record.sequence if isinstance(record, CursorRecord) else until
                until = min(until, max(stored, overdue))
                continue
            if follower.saved >= until:
                continue
            if follower.reached > follower.saved:
                # A cursor that is stored seldom, because nothing concerned it.
                follower.dirty = True
                self._moved.set()
            if follower.reached < overdue and self._hurry(follower, overdue):
                until = min(until, overdue)
            else:
                until = min(until, follower.saved)
        return until

    def _hurry(self, follower: Follower, overdue: int) -> bool:
        """Let a follower leave events out, whatever it is doing; returns whether it had its time for that."""
        now = self._clock.monotonic()
        if follower.leave_out <= follower.reached:
            follower.hurried_at = now
            follower.hurry(overdue)
        return now - follower.hurried_at > GAP_PATIENCE


def _key(plugin: str) -> Key:
    return ("", f"plugin/{plugin}")


def _find(view: View, key: Key) -> CursorRecord | None:
    return cast("CursorRecord | None", view.find((Kind.CURSOR, key)))


def _cursor(key: Key) -> CursorRecord:
    return CursorRecord(namespace=key[0], id=key[1], sequence=0)


def _begun(key: Key, head: int, view: View) -> int:
    """Return the stored cursor; one that is not there yet begins at the head of the log."""
    found = _find(view, key)
    if found is None:
        found = view.put(_cursor(key).evolve(sequence=head))
    return found.sequence
