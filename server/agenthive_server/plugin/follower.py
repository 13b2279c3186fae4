"""The handlers of one plugin on their way along the log: one event after the other, each until it has been dealt with.

A follower is *behind* while it reads the log itself, and *live* once it has come as far as the pump of the dispatcher,
which then hands it the events it has handlers for. One that is handed more than it can hold falls behind again: the log
keeps them, not the memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from agenthive_server.events.log import EventLog
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import CursorCompacted, KernelError
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.ports import Chance
from agenthive_server.kernel.replicas import Role

from .caller import LONGEST_PAUSE, Caller, Deal, LeftOut, Tell

READ: Final = 500
BREATH: Final = 0.002
"""Seconds after which others are let run, between two events."""

MOST: Final = 1_000
"""Events one may have waiting in memory."""

TROUBLE_PAUSE: Final = 1.0
"""Seconds before the log is read again after that could not be done."""

_log = logging.getLogger(__name__)


class Follower:
    """Follows the log for one plugin. Owned by the dispatcher, which keeps its cursor."""

    def __init__(
        self,
        plugin: str,
        handlers: Mapping[EventType, Deal],
        gap: Tell | None,
        *,
        log: EventLog,
        clock: Clock,
        chance: Chance,
        role: Role,
        load: Callable[[], Awaitable[int]],
        pumped: Callable[[], int],
        moved: Callable[[], None],
    ) -> None:
        """`load` returns the stored cursor, `pumped` how far the pump is; `moved` is called when it got on itself."""
        self.plugin = plugin
        # With their names as people know them: looking that up costs as much as a simple handler.
        self.handlers = {kind: (handler, EventType(kind).name) for kind, handler in handlers.items()}
        self.role = role
        # The cursor as it is stored, and whether events were dealt with since.
        self.saved = 0
        self.saved_at = 0.0
        self.dirty = False
        # When it was told to leave out events, and up to which.
        self.hurried_at = 0.0
        self.leave_out = 0
        self._gap = gap
        self._log = log
        self._clock = clock
        self._load = load
        self._pumped = pumped
        self._moved = moved
        # Everything up to here was dealt with; while it is live, everything before the first event of the queue.
        self._done = 0
        self._live = False
        self._queue: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._parked = False
        self._breathed = 0.0
        self._trouble = ""
        self._caller = Caller(plugin, clock, chance)

    # Where it is ----------------------------------------------------------------------------------------------------

    @property
    def reached(self) -> int:
        """The sequence up to which all events were dealt with."""
        if not self._live:
            return self._done
        return self._queue[0].sequence - 1 if self._queue else max(self._done, self._pumped())

    @property
    def failing(self) -> str:
        """Why it does not get on; empty when it does."""
        return self._trouble or self._caller.failing

    @property
    def at_rest(self) -> asyncio.Event:
        """Set while no handler runs."""
        return self._caller.at_rest

    @property
    def lag(self) -> int:
        """Events it has not come to."""
        return 0 if self._live and not self._queue else max(0, self._log.head - self.reached)

    def begin(self, position: int) -> None:
        """Start behind an event."""
        self._done = self.saved = position
        self.saved_at = self._clock.monotonic()
        self._live = self.dirty = False
        self._queue.clear()

    def offer(self, event: Event) -> None:
        """Take an event there is a handler for, if it is live; returns at once."""
        if not self._live or event.sequence <= self._done:
            return
        if len(self._queue) >= MOST:
            self.fall_behind()
            return
        if not self._queue:
            self._wake.set()
        self._queue.append(event)

    def fall_behind(self) -> None:
        """Read the log itself from now on."""
        self._done, self._live = self.reached, False
        self._queue.clear()
        self._wake.set()

    def park(self) -> None:
        """Begin with no further event; `at_rest` is set when the present one is dealt with."""
        self._parked = True
        self._wake.set()

    def hurry(self, last: int) -> None:
        """Leave events out up to one, also the one that is being dealt with; `gap` is told of them."""
        self.leave_out = last
        self._wake.set()
        self._caller.give_up()

    # On its way -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the log until cancelled, whenever this replica has the role."""
        while True:
            await self.role.acquire()
            try:
                self.begin(await self._load())
                while self.role.held:
                    await self._breathe()
                    await self._step()
            except KernelError as error:
                self._trouble = error.message
                await self._clock.sleep(TROUBLE_PAUSE)
            except Exception as error:  # noqa: BLE001 - a defect here must not end the handlers for good
                _log.exception("plugin_handlers_failed", extra={"plugin": self.plugin})
                self._trouble = type(error).__name__
                await self._clock.sleep(LONGEST_PAUSE)

    async def _step(self) -> None:
        if self._parked:
            await asyncio.Event().wait()
        if self.leave_out > self.reached:
            await self._tell_gap(self.leave_out)
        elif not self._live:
            await self._catch_up()
        elif self._queue:
            await self._work_off()
        else:
            self._wake.clear()
            await self._wake.wait()

    async def _work_off(self) -> None:
        """Deal with what waits in the queue, until something has to be waited for or others must be let run."""
        queue, time, until = self._queue, asyncio.get_running_loop().time, self._breathed + BREATH
        waits = None
        while queue and waits is None:
            # Left in the queue until it was dealt with: whoever asks how far it is must not be told too much.
            event = queue[0]
            waits = self._deal_with(event)
            if waits is not None and not await waits:
                break
            if queue and queue[0] is event:
                queue.popleft()
            self.dirty = True
            if time() > until:
                break
        if self.dirty:
            self._moved()

    async def _catch_up(self) -> None:
        try:
            events = await self._log.read(self._done, READ)
        except CursorCompacted:
            await self._tell_gap(self._log.oldest - 1)
            return
        for event in events:
            await self._breathe()
            if self._parked or not self.role.held or self.leave_out > self._done:
                return
            waits = self._deal_with(event)
            if waits is not None and not await waits:
                return
            if event.type in self.handlers:
                self._note()
        # Nobody else runs between this look and becoming live, so nothing falls in between.
        if self._done >= self._pumped():
            self._live = True
        elif not events:
            await self._clock.sleep(TROUBLE_PAUSE)

    def _deal_with(self, event: Event) -> Awaitable[bool] | None:
        """Have an event handled; returns None when it was at once, else to be awaited: whether it was, not left out."""
        handled = self.handlers.get(event.type)
        if handled is not None:
            waits = self._caller.deal(*handled, event)
            if waits is not None:
                return self._wait_for(waits, event)
        self._done = event.sequence
        self._trouble = ""
        return None

    async def _wait_for(self, waits: Awaitable[None], event: Event) -> bool:
        try:
            await waits
        except LeftOut:
            return False
        self._done = event.sequence
        self._trouble = ""
        return True

    async def _breathe(self) -> None:
        """Let others run now and then: a handler that never waits must not hold the server up over many events."""
        time = asyncio.get_running_loop().time
        if time() - self._breathed > BREATH:
            await asyncio.sleep(0)
            self._breathed = time()

    async def _tell_gap(self, last: int) -> None:
        first, gap = self.reached + 1, self._gap
        _log.error("plugin_events_missed", extra={"plugin": self.plugin, "first": first, "last": last})
        if gap is not None and first <= last:
            try:
                await self._caller.insist(lambda: gap(first, last), last, "gap")
            except LeftOut:
                # More is to be left out than it is being told of.
                return
        self._done = max(self._done, last)
        while self._queue and self._queue[0].sequence <= last:
            self._queue.popleft()
        self._note()

    def _note(self) -> None:
        self.dirty = True
        self._moved()
