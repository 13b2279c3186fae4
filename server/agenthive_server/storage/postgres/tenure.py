"""The right of this server to be the one that writes: a lease it takes when it opens, and renews until it closes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path
from typing import Final
from uuid import uuid4

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.ports import StoreUnusable
from agenthive_server.kernel.records import RoleRecord

from .clock import DatabaseClock
from .roles import RENEWED_EVERY, Leases
from .writer import Fence

ROLE: Final = "server"
"""The role of the only server on a database. When there are replicas, each will have one of its own."""

LOOKED_EVERY: Final = 0.25

_log = logging.getLogger(__name__)


class Tenure:
    """Holds the role for one server process. Once it is another's, `ended` is set, `lost` says so, and it is so for
    good."""

    def __init__(self, leases: Leases, clock: Clock) -> None:
        self._leases = leases
        self._clock = clock
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{_place()}:{uuid4().hex}"
        self.lost = ""
        self.ended = asyncio.Event()
        self._role: RoleRecord | None = None
        self._renewing: asyncio.Task[None] | None = None

    @property
    def fence(self) -> Fence | None:
        """What every commit of this server rests on."""
        return (self._role.ref, self._role.revision) if self._role is not None else None

    async def begin(self) -> None:
        """Take the role, and renew it from then on.

        Where a server that is gone has not given it up, this waits until its lease ends, `roles.SPAN` at most; not for
        one that ran here, where it can be seen to be gone. Raises `StoreUnusable` when a server renews it.
        """
        seen: RoleRecord | None = None
        while (role := await self._take(seen)).holder != self.holder:
            if seen is not None and (seen.revision, seen.expire_time) != (role.revision, role.expire_time):
                host, pid, *_ = role.holder.split(":")
                raise StoreUnusable(f"the database is in use by another server (process {pid} on {host})")
            if seen is not None or not _gone(role.holder):
                await self._clock.sleep(LOOKED_EVERY)
            seen = role
        self._role = role
        self._renewing = asyncio.create_task(self._run())

    async def end(self) -> None:
        """Give the role up, if the database can be reached."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        if self._role is not None and not self.lost:
            try:
                await self._leases.give_up(self._role)
            except StoreUnavailable as error:
                _log.warning("store_lease_not_given_up", extra={"error": error.message})

    async def _take(self, seen: RoleRecord | None) -> RoleRecord:
        asked = self._clock.now()
        gone = seen.holder if seen is not None and _gone(seen.holder) else ""
        told = await self._leases.take(ROLE, self.holder, gone=gone)
        self._follow(asked, told.now)
        return told.role

    async def _run(self) -> None:
        while not self.lost:
            await self._clock.sleep(RENEWED_EVERY)
            try:
                await self._renew()
            except StoreUnavailable as error:
                # Nothing is lost by that: a lease that has ended is held on, unless somebody takes it.
                _log.info("store_lease_not_renewed", extra={"error": error.message})

    async def _renew(self) -> None:
        assert self._role is not None
        asked = self._clock.now()
        told = await self._leases.renew(self._role)
        if told is None:
            self.lost = "another server has taken over this database; start this one again"
            self.ended.set()
            _log.critical("store_lease_lost", extra={"holder": self.holder})
            return
        self._role = told.role
        self._follow(asked, told.now)

    def _follow(self, asked: float, told: float) -> None:
        if isinstance(self._clock, DatabaseClock):
            self._clock.follow(asked, told)


def _place() -> str:
    """Return where process ids mean the same processes: this boot of this machine, and its space of ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _gone(holder: str) -> bool:
    """Whether the server of a lease surely does not run any more: it ran here, and its process is not there."""
    _, pid, place, _ = holder.split(":")
    if not place or place != _place():
        return False
    try:
        os.kill(int(pid), 0)
        # One that has ended and that nobody has looked after yet.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return True
    except OSError:
        return False
