"""The place of this server among the replicas of a database: its row, kept alive, and the roles it has.

A replica that cannot keep its row alive is *away*: it may have been replaced. When it finds its row removed, it has
been: nothing it knows is sure any more, and it joins again under another revision once it has read everything anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from uuid import uuid4

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.records import RoleRecord
from agenthive_server.kernel.replicas import Roll, Told

from .clock import DatabaseClock
from .leased import LeasedRole
from .roles import RENEWED_EVERY, SPAN, Leases, Roster
from .writer import Fence

SOON: Final = 0.02
"""Seconds after the end of somebody's row at which it is looked at."""

MOST_EXPELLED: Final = 16
"""Replicas found to be gone that are remembered."""

AWAY: Final = "this server could not keep its place among the replicas; others may have taken its work over"
EXPELLED: Final = "this server was away for too long and others have taken its work over; it is joining again"

_log = logging.getLogger(__name__)


class Tenure:
    """Keeps the place of one server process."""

    def __init__(self, leases: Leases, clock: Clock) -> None:
        self._leases = leases
        self._clock = clock
        self.me = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        # Where the process of a row runs, so that others on the same machine can see that it is gone.
        self.process = f"{os.getpid()}:{_place()}"
        # Why this server must not act at present; empty while all is well.
        self.lost = ""
        self.roster = Roster({}, 0.0)
        # Called when it is away, when it is back, and when it has joined again but not yet begun to commit.
        self.went: Callable[[], None] = lambda: None
        self.came: Callable[[], None] = lambda: None
        self.rejoined: Callable[[], Awaitable[None]] = _nothing
        # Waits until this server knows everything that is committed.
        self.caught_up: Callable[[], Awaitable[None]] = _nothing
        # What this server says of itself, as JSON; asked with every renewal.
        self.facts: Callable[[], str] = str
        # When this server found which others to be gone, by the database's clock; how often it joined again.
        self.expelled: list[tuple[str, float]] = []
        self.expelled_count = 0
        self.rejoined_count = 0
        self._own: RoleRecord | None = None
        self._retired = False
        self._revision = 0
        self._roles: dict[str, LeasedRole] = {}
        self._looks = 0
        # Replicas that were in a roster once; at which look one that never was will be taken to be gone.
        self._known: set[str] = set()
        self._absent: dict[str, int] = {}
        self._renewed_at = 0.0
        self._renewing: asyncio.Task[None] | None = None

    @property
    def fence(self) -> Fence | None:
        """What every commit of this server rests on."""
        return (self._own.ref, self._own.revision) if self._own is not None else None

    # Others ---------------------------------------------------------------------------------------------------------

    def there(self, replica: str) -> bool:
        """Whether a replica serves, this one included. One that does not will commit nothing any more."""
        if not replica:
            return False
        if replica == self.me or replica in self.roster.members():
            self._absent.pop(replica, None)
            return True
        # One that nobody has seen may have come since the roster was read, or while the next one is being read.
        return replica not in self._known and self._looks < self._absent.setdefault(replica, self._looks + 2)

    def role(self, name: str) -> LeasedRole:
        """Return the role of a name."""
        role = self._roles.get(name)
        if role is None:
            role = self._roles[name] = LeasedRole(name, self, self._leases)
        return role

    @property
    def own(self) -> RoleRecord | None:
        """The row of this server, None while it must take no role."""
        return None if self.lost or self._retired else self._own

    @property
    def retired(self) -> bool:
        """Whether this server is about to stop."""
        return self._retired

    def roll(self) -> Roll:
        """Return all replicas as they were last read."""
        members = self.roster.members()
        told = {replica: Told(row.facts, row.expire_time - SPAN) for replica, row in members.items()}
        return Roll(told, self.roster.holders(), self.roster.now)

    async def retire(self) -> None:
        """Leave every role to others at once and take none any more: this server is about to stop."""
        self._retired = True
        for role in self._roles.values():
            await role.release()

    # The place ------------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Join, and keep the place from then on. Raises `StoreUnavailable`."""
        await self._join()
        if not await self._kept():
            raise StoreUnavailable(EXPELLED)
        self._renewing = asyncio.create_task(self._run())

    async def end(self) -> None:
        """Leave, if the database can be reached: what this server did others may do at once."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        own, self._own = self._own, None
        if own is not None:
            try:
                await self._leases.leave(own)
            except StoreUnavailable as error:
                _log.warning("replica_left_its_row", extra={"error": error.message})

    async def _join(self) -> None:
        self._revision += 1
        asked = self._clock.now()
        self._own = await self._leases.join(self.me, self.process, self._revision, self.facts())
        self._renewed_at = self._clock.monotonic()
        self._follow(asked, self._own.expire_time - SPAN)

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(self._pause())
            try:
                if self.lost == EXPELLED:
                    await self._again()
                else:
                    await self._look()
                continue
            except StoreUnavailable as error:
                _log.info("replica_not_renewed", extra={"error": error.message})
            except Exception:  # noqa: BLE001 - a defect in what it tells or is told must not end it: it would be away for ever
                _log.exception("replica_not_renewed")
            # One that was expelled has to join again, whatever fails before it has.
            if self.lost != EXPELLED and self._clock.monotonic() - self._renewed_at > SPAN:
                self._away(AWAY)

    def _pause(self) -> float:
        """Return the seconds until the next look: a second, less when somebody's time may be over before."""
        ends = [row.expire_time for name, row in self.roster.members().items() if name != self.me]
        soonest = min(ends, default=float("inf")) + SOON - self._clock.now()
        return min(RENEWED_EVERY, max(soonest, 10 * SOON))

    async def _look(self) -> None:
        assert self._own is not None
        asked = self._clock.now()
        own, roster = await self._leases.renew(self._own.evolve(facts=self.facts()))
        self._follow(asked, roster.now)
        if own is None:
            self._own = None
            self._away(EXPELLED)
            return
        self._own = own
        self._looks += 1
        self._renewed_at = self._clock.monotonic()
        if self.lost == AWAY:
            _log.warning("replica_is_back", extra={"replica": self.me})
            self._back()
        self.roster = await self._without_the_dead(roster)
        self._known.update(roster.members())
        for role in self._roles.values():
            role.roster_read()

    async def _without_the_dead(self, roster: Roster) -> Roster:
        """Remove the rows whose time is over, or whose process can be seen to be gone."""
        rows = dict(roster.rows)
        for replica, row in roster.members().items():
            gone = _gone(row.holder)
            over = gone or row.expire_time <= roster.now
            if replica != self.me and over and await self._leases.expel(row, gone=gone):
                _log.warning("replica_expelled", extra={"replica": replica})
                del rows[row.id]
                self.expelled_count += 1
                self.expelled = [*self.expelled, (replica, roster.now)][-MOST_EXPELLED:]
        return Roster(rows, roster.now)

    async def _again(self) -> None:
        """Join again: with a row that no commit under way rests on, and begin to act when all is known.

        The place is kept meanwhile, however long that takes; if it is lost again, this is for the next time.
        """
        await self._join()
        if not await self._kept():
            return
        recovering = asyncio.ensure_future(self.rejoined())
        try:
            await self._wait(recovering)
            while not recovering.done():
                if not await self._kept():
                    return
                await self._wait(recovering)
            await recovering
        finally:
            recovering.cancel()
            await asyncio.gather(recovering, return_exceptions=True)
        _log.warning("replica_joined_again", extra={"replica": self.me})
        self.rejoined_count += 1
        self._back()

    async def _kept(self) -> bool:
        """Look; whether this server still has its row."""
        await self._look()
        return self._own is not None

    async def _wait(self, work: asyncio.Future[None]) -> None:
        """Wait for the end of some work, or until it is time for the next look."""
        sleep = asyncio.ensure_future(self._clock.sleep(self._pause()))
        try:
            await asyncio.wait((work, sleep), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()

    def _back(self) -> None:
        self.lost = ""
        self.came()

    def _away(self, why: str) -> None:
        if self.lost != why:
            _log.critical("replica_is_away", extra={"replica": self.me, "why": why})
        first, self.lost = not self.lost, why
        for role in self._roles.values():
            role.lose()
        if first:
            self.went()

    def _follow(self, asked: float, told: float) -> None:
        if isinstance(self._clock, DatabaseClock):
            self._clock.follow(asked, told)


async def _nothing() -> None:
    pass


def _place() -> str:
    """Return where process ids mean the same processes: this boot of this machine, and its space of ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _gone(process: str) -> bool:
    """Whether the process of a row surely does not run any more: it ran here, and it is not there."""
    pid, _, place = process.partition(":")
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
