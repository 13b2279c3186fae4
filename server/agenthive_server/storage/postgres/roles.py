"""Roles as lease rows: who may act in a role, under which epoch, until when by the database's clock.

A role's record gets a new revision when its holder changes, and only then; renewing it moves nothing but its end. So a
change set that checks the revision (`ChangeSet.checks`) stands only under the epoch it was decided under, and a holder
that was stopped and wakes commits nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from agenthive_server.kernel.records import Key, Kind, RoleRecord
from agenthive_server.storage.codec import pack_body, unpack

from . import statements
from .dial import Connection
from .link import Link

SPAN: Final = 4.0
"""Seconds for which a lease is given, and after which one that was not renewed is free."""

RENEWED_EVERY: Final = 1.0

NAMESPACE: Final = ""
"""Roles belong to no namespace."""


@dataclass(frozen=True, slots=True)
class Told:
    """A role as it is stored, and what time it was then by the database's clock."""

    role: RoleRecord
    now: float


class Leases:
    """Takes, renews and gives up the leases of roles. `now` says what time it is; None asks the database's clock.

    All methods raise `StoreUnavailable`; what was asked for may have happened then, and may be asked for again.
    """

    def __init__(self, link: Link, now: Callable[[], float] | None = None) -> None:
        self._link = link
        self._now = now

    async def take(self, name: str, holder: str, *, gone: str = "") -> Told:
        """Take a role that is free or whose lease has ended, under a new epoch; else return it as it is held.

        `gone` is a holder that is known not to be there any more: its lease need not end first.
        """
        return await self._link.call(lambda db: self._take(db, (NAMESPACE, name), holder, gone))

    async def renew(self, role: RoleRecord) -> Told | None:
        """Move the end of a lease on; None when it is another's meanwhile. One that has ended and that nobody took is
        held on."""
        return await self._link.call(lambda db: self._renew(db, role))

    async def give_up(self, role: RoleRecord) -> None:
        """Let anybody take a role at once, unless it is another's already."""
        await self._link.call(lambda db: self._give_up(db, role))

    async def _take(self, db: Connection, key: Key, holder: str, gone: str) -> Told:
        async with db.transaction():
            # A change like any other: whoever committed under the old epoch has done so before.
            await db.execute(statements.LOCK_HEAD)
            row = await db.fetchrow(statements.LOCK_ROLE, *key)
            now = await self._time(db)
            known = cast("RoleRecord", unpack(Kind.ROLE, *row)) if row is not None else None
            if known is not None and known.holder not in ("", holder, gone) and known.expire_time > now:
                return Told(known, now)
            namespace, name = key
            epoch, revision = (known.epoch, known.revision) if known else (0, 0)
            taken = RoleRecord(
                namespace=namespace,
                id=name,
                revision=revision + 1,
                holder=holder,
                epoch=epoch + 1,
                expire_time=now + SPAN,
            )
            await self._put(db, taken, revision)
        return Told(taken, now)

    async def _renew(self, db: Connection, role: RoleRecord) -> Told | None:
        # Without the head: it changes nothing that anybody rests on, and must not wait for those who hold that.
        now = await self._time(db)
        renewed = role.evolve(expire_time=max(role.expire_time, now + SPAN))
        return Told(renewed, now) if await self._put(db, renewed, role.revision) else None

    async def _give_up(self, db: Connection, role: RoleRecord) -> None:
        async with db.transaction():
            await db.execute(statements.LOCK_HEAD)
            await self._put(db, role.evolve(revision=role.revision + 1, holder="", expire_time=0.0), role.revision)

    async def _time(self, db: Connection) -> float:
        row = await db.fetchrow(statements.SELECT_NOW, self._now() if self._now else None)
        assert row is not None
        return float(row[0])

    async def _put(self, db: Connection, role: RoleRecord, before: int) -> bool:
        """Write a role over the revision before; False when that is not there."""
        if before == 0:
            await db.execute(statements.INSERT_ROLE, *role.key, role.revision, pack_body(role))
            return True
        values = (role.revision, pack_body(role), *role.key, before)
        return await db.execute(statements.UPDATE_ROLE, *values) == "UPDATE 1"
