"""Who is there and who acts in which role, as lease rows.

Each replica keeps one row alive, its *membership*, whose end is by the database's clock. A role names the replica that
acts in it and has no end of its own: it is free when that replica has no row any more. A row whose time is over is
removed by whoever sees it, under the lock of the log's head like any change; since every commit of a replica rests on
its row, one that was stopped and wakes commits nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, cast

from agenthive_server.kernel.records import Key, Kind, RoleRecord
from agenthive_server.storage.codec import pack_body, unpack

from . import statements
from .dial import Connection
from .link import Link

SPAN: Final = 4.0
"""Seconds for which a membership is given, and after which one that was not renewed is over."""

RENEWED_EVERY: Final = 1.0

NAMESPACE: Final = ""
"""Roles belong to no namespace."""

REPLICA: Final = "replica/"
ROLE: Final = "role/"
"""What the names of rows begin with: memberships, and roles proper."""


@dataclass(frozen=True, slots=True)
class Roster:
    """All rows by name, and what time it was then by the database's clock."""

    rows: Mapping[str, RoleRecord]
    now: float

    def members(self) -> dict[str, RoleRecord]:
        """Return the memberships by the id of the replica."""
        return {name.removeprefix(REPLICA): row for name, row in self.rows.items() if name.startswith(REPLICA)}

    def holders(self) -> dict[str, str]:
        """Return who acts in each role that was ever taken."""
        roles = (name.removeprefix(ROLE) for name in self.rows if name.startswith(ROLE))
        return {role: self.holder(role) for role in roles}

    def holder(self, role: str) -> str:
        """Return the replica that acts in a role; empty when nobody does."""
        row = self.rows.get(ROLE + role)
        return row.holder if row is not None and REPLICA + row.holder in self.rows else ""


class Leases:
    """Reads and writes these rows. `now` says what time it is; None asks the database's clock.

    All methods raise `StoreUnavailable`; what was asked for may have happened then, and may be asked for again.
    """

    def __init__(self, link: Link, now: Callable[[], float] | None = None) -> None:
        self._link = link
        self._now = now

    async def join(self, replica: str, process: str, revision: int, facts: str = "") -> RoleRecord:
        """Make the row of a replica and return it. `process` tells where it runs; no row of it had this revision."""
        return await self._link.call(lambda db: self._join(db, replica, process, revision, facts))

    async def renew(self, own: RoleRecord) -> tuple[RoleRecord | None, Roster]:
        """Move the end of a row on, with what it says of its replica, and look at all.

        The row is None when it is not there any more. One whose time is over and that nobody removed is kept.
        """
        # No longer than the row lasts: a database that says nothing is noticed when it ends.
        return await self._link.call(lambda db: self._renew(db, own), limit=SPAN)

    async def expel(self, row: RoleRecord, *, gone: bool = False) -> bool:
        """Remove the row of a replica if its time is over; at once when the replica is known to be `gone`."""
        return await self._link.call(lambda db: self._expel(db, row, gone))

    async def leave(self, own: RoleRecord) -> None:
        """Remove a row: its replica is there no more, and what it did others may do at once."""
        await self._link.call(lambda db: self._remove(db, own))

    async def take(self, role: str, own: RoleRecord) -> RoleRecord | None:
        """Take a role that nobody acts in, under a new epoch; None when somebody does, or `own` is not there."""
        return await self._link.call(lambda db: self._take(db, role, own))

    async def give_up(self, role: RoleRecord) -> None:
        """Let anybody take a role at once, unless it is another's already."""
        await self._link.call(lambda db: self._give_up(db, role))

    async def _join(self, db: Connection, replica: str, process: str, revision: int, facts: str) -> RoleRecord:
        now = await self._time(db)
        key = (NAMESPACE, REPLICA + replica)
        row = RoleRecord(
            namespace=key[0],
            id=key[1],
            revision=revision,
            holder=process,
            epoch=revision,
            expire_time=now + SPAN,
            facts=facts,
        )
        async with db.transaction():
            known = await self._locked(db, key)
            if known is None:
                await db.execute(statements.INSERT_ROLE, *key, revision, pack_body(row))
            else:
                await self._put(db, row, known.revision)
        return row

    async def _renew(self, db: Connection, own: RoleRecord) -> tuple[RoleRecord | None, Roster]:
        # Without the head: it changes nothing that anybody rests on, and must not wait for those who hold that.
        now = await self._time(db)
        renewed = own.evolve(expire_time=max(own.expire_time, now + SPAN))
        there = await self._put(db, renewed, own.revision)
        rows = await db.fetch(statements.scan_records(Kind.ROLE, open_only=False))
        found = {row.id: cast("RoleRecord", row) for row in (unpack(Kind.ROLE, *row) for row in rows)}
        return (renewed if there else None), Roster(found, now)

    async def _expel(self, db: Connection, row: RoleRecord, gone: bool) -> bool:
        async with db.transaction():
            # A change like any other: whoever committed under this row has done so before.
            await db.execute(statements.LOCK_HEAD)
            known = await self._locked(db, row.key)
            if known is None or known.revision != row.revision:
                return False
            if not gone and known.expire_time > await self._time(db):
                return False
            return await self._delete(db, known)

    async def _remove(self, db: Connection, own: RoleRecord) -> bool:
        async with db.transaction():
            await db.execute(statements.LOCK_HEAD)
            return await self._delete(db, own)

    async def _take(self, db: Connection, role: str, own: RoleRecord) -> RoleRecord | None:
        key = (NAMESPACE, ROLE + role)
        me = own.id.removeprefix(REPLICA)
        async with db.transaction():
            await db.execute(statements.LOCK_HEAD)
            known = await self._locked(db, key)
            mine = await self._locked(db, own.key)
            if mine is None or mine.revision != own.revision:
                return None
            holder = known.holder if known is not None else ""
            if holder not in ("", me) and await self._locked(db, (NAMESPACE, REPLICA + holder)) is not None:
                return None
            epoch, revision = (known.epoch, known.revision) if known is not None else (0, 0)
            taken = RoleRecord(
                namespace=key[0], id=key[1], revision=revision + 1, holder=me, epoch=epoch + 1, expire_time=0.0
            )
            if known is None:
                await db.execute(statements.INSERT_ROLE, *key, taken.revision, pack_body(taken))
            else:
                await self._put(db, taken, revision)
        return taken

    async def _give_up(self, db: Connection, role: RoleRecord) -> None:
        async with db.transaction():
            await db.execute(statements.LOCK_HEAD)
            await self._put(db, role.evolve(revision=role.revision + 1, holder=""), role.revision)

    async def _time(self, db: Connection) -> float:
        row = await db.fetchrow(statements.SELECT_NOW, self._now() if self._now else None)
        assert row is not None
        return float(row[0])

    async def _locked(self, db: Connection, key: Key) -> RoleRecord | None:
        row = await db.fetchrow(statements.LOCK_ROLE, *key)
        return cast("RoleRecord", unpack(Kind.ROLE, *row)) if row is not None else None

    async def _put(self, db: Connection, row: RoleRecord, before: int) -> bool:
        """Write a row over the revision before; False when that is not there."""
        values = (row.revision, pack_body(row), *row.key, before)
        return await db.execute(statements.UPDATE_ROLE, *values) == "UPDATE 1"

    async def _delete(self, db: Connection, row: RoleRecord) -> bool:
        return await db.execute(statements.DELETE_ROLE, *row.key, row.revision) == "DELETE 1"
