"""Calls one handler for one event until it goes well, or until it is told to leave the event out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import KernelError
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.ports import Chance

from .occasion import Occasion, enter, leave

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 60.0
"""Seconds before an event whose handler failed is tried again: doubled with each failure, up to this, with jitter."""

Deal = Callable[[Event], Awaitable[None] | None]
"""A handler behind its wall: returns None when it is done with the event, or what to await until it is."""

Tell = Callable[[int, int], Awaitable[None] | None]
"""The same that is told of a gap."""

_log = logging.getLogger(__name__)


class LeftOut(Exception):
    """The event is to be left out."""


class Caller:
    """Calls the handlers of one plugin, one at a time."""

    def __init__(self, plugin: str, clock: Clock, chance: Chance) -> None:
        self._plugin = plugin
        self._clock = clock
        self._chance = chance
        # Why an event is being tried again.
        self.failing = ""
        # Set while no handler runs; also while one that failed is waited with.
        self.at_rest = asyncio.Event()
        self.at_rest.set()
        # The task that calls now, and whether it was cancelled because the event is to be left out.
        self._task: asyncio.Task[Any] | None = None
        self._given_up = False

    def give_up(self) -> None:
        """Leave out the event that is being dealt with now, if there is one."""
        if self._task is not None and not self._given_up:
            self._given_up = True
            self._task.cancel()

    def deal(self, deal: Deal, what: str, event: Event) -> Awaitable[None] | None:
        """Have an event handled; returns None when it was at once, as by most handlers, else `insist`, to be awaited.

        To be called, and awaited, in one and the same task.
        """
        occasion = Occasion(event.sequence)
        token = enter(occasion)
        try:
            waits = deal(_own(event))
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is dealt with
            waits = _raise(error)
        finally:
            leave(token)
        if waits is None:
            self.failing = ""
            return None
        return self.insist(lambda: deal(_own(event)), event.sequence, what, begun=(occasion, waits))

    async def insist(
        self,
        call: Callable[[], Awaitable[None] | None],
        sequence: int,
        what: str,
        *,
        begun: tuple[Occasion, Awaitable[None]] | None = None,
    ) -> None:
        """Call until it goes well, with growing pauses: what is left out once is never made up for.

        `begun` is what the first call returned, if that has been made, and its occasion. Raises `LeftOut` after
        `give_up`. A handler that takes no notice of its cancellation goes on, and counts.
        """
        self._task = asyncio.current_task()
        pause = FIRST_PAUSE
        occasion, waits = begun or (Occasion(sequence), None)
        try:
            while not await self._try(call, occasion, what, waits):
                occasion, waits = Occasion(sequence), None
                await self._clock.sleep(pause * (0.5 + 0.5 * self._chance()))
                pause = min(2 * pause, LONGEST_PAUSE)
        except asyncio.CancelledError:
            if self._took_back() and not self._cancelled():
                self.failing = ""
                raise LeftOut from None
            raise
        else:
            self._took_back()
        finally:
            self._task = None

    def _took_back(self) -> bool:
        """Whether the task was cancelled by `give_up`; it is not any more then."""
        given_up, self._given_up = self._given_up, False
        if given_up and self._task is not None:
            self._task.uncancel()
        return given_up

    def _cancelled(self) -> bool:
        """Whether this task is being cancelled, not only something it waits for."""
        return self._task is not None and self._task.cancelling() > 0

    async def _try(
        self,
        call: Callable[[], Awaitable[None] | None],
        occasion: Occasion,
        what: str,
        waits: Awaitable[None] | None,
    ) -> bool:
        self.at_rest.clear()
        sequence = occasion.sequence
        try:
            with occasion:
                if waits is None:
                    waits = call()
                if waits is not None:
                    await waits
        except asyncio.CancelledError:
            if self._cancelled():
                raise
            self._failed(what, sequence, "it was cancelled")
        except KernelError as error:
            self._failed(what, sequence, error.reason)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a plugin raises stays with it
            self._failed(what, sequence, type(error).__name__)
        else:
            self.failing = ""
            return True
        finally:
            self.at_rest.set()
        return False

    def _failed(self, what: str, sequence: int, why: str) -> None:
        if not self.failing:
            fields = {"plugin": self._plugin, "handler": what, "sequence": sequence, "error": why}
            _log.warning("plugin_handler_failed", extra=fields, exc_info=True)
        self.failing = f"{what} fails at event {sequence} and is tried again: {why}"


async def _raise(error: BaseException) -> None:
    raise error


def _own(event: Event) -> Event:
    """Return a copy for code that may do anything with it; the event itself is shared by all readers."""
    own = _new(Event)
    own.type = event.type
    own.namespace = event.namespace
    own.task_id = event.task_id
    own.agent_id = event.agent_id
    own.session_id = event.session_id
    own.role = event.role
    own.labels = {**event.labels}
    own.ancestors = event.ancestors
    own.data = {**event.data}
    own.sequence = event.sequence
    own.last = event.last
    own.time = event.time
    own.wire = None
    return own


# Its constructor costs half as much again.
_new = object.__new__
