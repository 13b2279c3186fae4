"""The lease rows of a `SharedDatabase`: what `storage.postgres.roles` writes, so that the real tenure runs on them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from agenthive_server.kernel.records import RoleRecord
from agenthive_server.storage.postgres.roles import NAMESPACE, REPLICA, ROLE, SPAN, Leases, Roster

from .shared_database import SharedDatabase

T = TypeVar("T")


class Ask(Protocol):
    """Runs a question: it may delay it, or raise."""

    async def __call__(self, question: Callable[[], Awaitable[T]], /) -> T:
        """Return the answer."""


class SharedLeases(Leases):
    """The rows in memory, by the clock of the database. `ask` runs each question."""

    def __init__(self, database: SharedDatabase, ask: Ask) -> None:
        self._database = database
        self._ask = ask

    async def join(self, replica: str, process: str, revision: int, facts: str = "") -> RoleRecord:
        """Make the row of a replica and return it."""
        database = self._database

        async def question() -> RoleRecord:
            row = RoleRecord(
                namespace=NAMESPACE,
                id=REPLICA + replica,
                revision=revision,
                holder=process,
                epoch=revision,
                expire_time=database.clock.now() + SPAN,
                facts=facts,
            )
            known = database.row(row.id)
            database.put_row(row, known.revision if known is not None else 0)
            return row

        return await self._ask(question)

    async def renew(self, own: RoleRecord) -> tuple[RoleRecord | None, Roster]:
        """Move the end of a row on, and look at all; the row is None when it is not there any more."""
        database = self._database

        async def question() -> tuple[RoleRecord | None, Roster]:
            now = database.clock.now()
            renewed = own.evolve(expire_time=max(own.expire_time, now + SPAN))
            there = database.put_row(renewed, own.revision)
            return (renewed if there else None), Roster(database.rows(), now)

        return await self._ask(question)

    async def expel(self, row: RoleRecord, *, gone: bool = False) -> bool:
        """Remove the row of a replica if its time is over."""
        database = self._database

        async def question() -> bool:
            known = database.row(row.id)
            if known is None or known.revision != row.revision:
                return False
            if not gone and known.expire_time > database.clock.now():
                return False
            return database.remove_row(known)

        return await self._ask(question)

    async def leave(self, own: RoleRecord) -> None:
        """Remove a row."""

        async def question() -> None:
            self._database.remove_row(own)

        await self._ask(question)

    async def take(self, role: str, own: RoleRecord) -> RoleRecord | None:
        """Take a role that nobody acts in, under a new epoch; None when somebody does, or `own` is not there."""
        database = self._database

        async def question() -> RoleRecord | None:
            me, known, mine = own.id.removeprefix(REPLICA), database.row(ROLE + role), database.row(own.id)
            if mine is None or mine.revision != own.revision:
                return None
            holder = known.holder if known is not None else ""
            if holder not in ("", me) and database.row(REPLICA + holder) is not None:
                return None
            epoch, revision = (known.epoch, known.revision) if known is not None else (0, 0)
            taken = RoleRecord(
                namespace=NAMESPACE,
                id=ROLE + role,
                revision=revision + 1,
                holder=me,
                epoch=epoch + 1,
                expire_time=0.0,
            )
            database.put_row(taken, revision)
            return taken

        return await self._ask(question)

    async def give_up(self, role: RoleRecord) -> None:
        """Let anybody take a role at once, unless it is another's already."""

        async def question() -> None:
            self._database.put_row(role.evolve(revision=role.revision + 1, holder=""), role.revision)

        await self._ask(question)
