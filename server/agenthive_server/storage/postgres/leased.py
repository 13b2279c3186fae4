"""A role that one of the replicas has at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.records import RoleRecord

from .roles import Leases, Roster

if TYPE_CHECKING:
    from agenthive_server.kernel.decide import View

_log = logging.getLogger(__name__)


class Place(Protocol):
    """What of a server's tenure a role needs."""

    me: str
    roster: Roster
    caught_up: Callable[[], Awaitable[None]]

    @property
    def own(self) -> RoleRecord | None:
        """The row of this server, None while it must take no role."""


class LeasedRole:
    """One role of this replica, as `kernel.replicas.Role`."""

    def __init__(self, name: str, place: Place, leases: Leases) -> None:
        self.name = name
        self._place = place
        self._leases = leases
        self._record: RoleRecord | None = None
        self._tell: Callable[[], None] = lambda: None
        self._changed = asyncio.Event()
        # Several loops wait for one role.
        self._taking = asyncio.Lock()

    @property
    def held(self) -> bool:
        """Whether this replica has the role."""
        return self._record is not None

    async def acquire(self) -> None:
        """Wait until this replica has it, and knows everything that was committed before; cancelling gives up."""
        while not self.held:
            async with self._taking:
                if await self._taken():
                    return
                self._changed.clear()
            await self._changed.wait()

    async def _taken(self) -> bool:
        own = self._place.own
        if self._record is not None:
            return True
        if own is None or self._place.roster.holder(self.name) not in ("", self._place.me):
            return False
        try:
            record = await self._leases.take(self.name, own)
            if record is None:
                return False
            await self._place.caught_up()
        except StoreUnavailable as error:
            _log.info("role_not_taken", extra={"role": self.name, "error": error.message})
            return False
        if self._place.own is not own and (self._place.own is None or self._place.own.revision != own.revision):
            # Lost again while catching up.
            return False
        self._record = record
        _log.info("role_taken", extra={"role": self.name, "epoch": record.epoch})
        return True

    def check(self, view: View) -> None:
        """Let the change set of a decision stand only if the role is then still held. Raises `StoreUnavailable`."""
        if self._record is None:
            raise StoreUnavailable(f"the role {self.name} is another replica's")
        view.check(self._record)

    async def release(self) -> None:
        """Let another replica have it at once; without a database it is free when this one leaves."""
        record = self._record
        self.lose()
        if record is not None:
            try:
                await self._leases.give_up(record)
            except StoreUnavailable as error:
                _log.info("role_not_given_up", extra={"role": self.name, "error": error.message})

    def lose(self) -> None:
        """Note that others may have it."""
        if self._record is not None:
            self._record = None
            self._tell()

    def when_lost(self, tell: Callable[[], None]) -> None:
        """Have `tell` called whenever this replica has it no more."""
        self._tell = tell

    def roster_read(self) -> None:
        """Let whoever waits for it look whether it is free."""
        self._changed.set()
