"""Calls one handler for one event until it goes well, or until it is told to leave the event out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import KernelError
from agenthive_server.kernel.ports import Chance

from .occasion import Occasion

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 60.0
"""Seconds before an event whose handler failed is tried again: doubled with each failure, up to this, with jitter."""

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

    async def insist(self, call: Callable[[], Awaitable[None]], sequence: int, what: str) -> None:
        """Call until it goes well, with growing pauses: what is left out once is never made up for.

        Raises `LeftOut` after `give_up`. A handler that takes no notice of its cancellation goes on, and counts.
        """
        self._task = asyncio.current_task()
        pause = FIRST_PAUSE
        try:
            while not await self._try(call, sequence, what):
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

    async def _try(self, call: Callable[[], Awaitable[None]], sequence: int, what: str) -> bool:
        self.at_rest.clear()
        try:
            with Occasion(sequence):
                await call()
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
