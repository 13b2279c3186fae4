"""Where a hive is moved to: a PostgreSQL database, or a schema in one, that is empty or holds a part of the same hive.

Until the move has finished, a table says that it has not (`tables.MOVING`), and the store's own row is missing: no
server opens it, and one that was about to cannot commit. All is done on one connection, which holds a lock for as long
as it lives, so that what is written is written by the only one who moves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import Refused
from agenthive_server.storage.address import named_schema, shown
from agenthive_server.storage.columns import REVISION
from agenthive_server.storage.postgres import tables
from agenthive_server.storage.postgres.database import PATIENTLY, Database, migrate
from agenthive_server.storage.postgres.dial import Connection, Dialer
from agenthive_server.storage.postgres.failures import refused, sentence
from agenthive_server.storage.postgres.statements import type_name
from agenthive_server.storage.schema import META, metadata

from .parts import PARTS, Part, Row
from .source import Mark, Standing

SESSION: Final = {
    "application_name": "agenthive migrate-store",
    "statement_timeout": "10min",
    "idle_in_transaction_session_timeout": "60s",
    # What the last transaction syncs is all that was written before it too; without it nothing counts.
    "synchronous_commit": "off",
    # Pages by key, of tables nobody has analyzed yet.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
}

LOCK_LIMIT: Final = 5.0
LOCK_LOOK: Final = 0.25
"""Seconds for which, and after which again, the lock is asked for: a mover that was killed leaves it in a moment."""

_LOCK: Final = "SELECT pg_try_advisory_lock(hashtextextended('agenthive move ' || current_schema(), 0))"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a database holds: `standing` of a hive that can be served, `mark` of a move that has begun, or nothing."""

    standing: Standing | None = None
    mark: Mark | None = None
    log_id: str = ""


class Target:
    """A database, once `connect` has returned. Raises what the driver raises; `StoreUnusable` and `Refused` besides."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._url = url
        self._clock = clock
        self._dialer = Dialer(url, clock)
        self._database = Database(url, self._connect, clock)
        self._db: Connection | None = None

    @property
    def name(self) -> str:
        """Its URL for people, without anything secret."""
        schema = named_schema(self._url)
        return shown(self._url) + (f"?search_path={schema}" if schema else "")

    async def _connect(self) -> Connection:
        return await self._dialer.connect(**SESSION)

    async def connect(self) -> None:
        """Connect anew and be the only one who moves a hive here; `Refused` when another is."""
        self.hang_up()
        self._db, _ = await self._database.reach()
        end = self._clock.monotonic() + LOCK_LIMIT
        while not await self._value(_LOCK):
            if self._clock.monotonic() >= end:
                raise Refused(f"another migrate-store is at work on {self.name}")
            await self._clock.sleep(LOCK_LOOK)

    def hang_up(self) -> None:
        """Let go of it; what was under way is undone."""
        if self._db is not None:
            self._db.terminate()
            self._db = None

    async def _value(self, text: str, *values: object) -> Any:
        row = await self._connection.fetchrow(text, *values)
        return row[0] if row is not None else None

    @property
    def _connection(self) -> Connection:
        assert self._db is not None, "connect comes first"
        return self._db

    # Whose it is

    async def look(self) -> Found:
        """Return what is there."""
        if await self._database.revision(self._connection, moving=True) == "":
            return Found()
        return await self._found()

    async def _found(self) -> Found:
        db = self._connection
        if await self._value("SELECT to_regclass($1)", tables.MOVING) is not None:
            row = await db.fetchrow(f"SELECT move_id, log_id FROM {tables.MOVING}")  # noqa: S608 - a constant
            assert row is not None
            return Found(mark=Mark(move_id=row[0], target=self.name), log_id=row[1])
        row = await db.fetchrow("SELECT log_id, head, head_time, group_count FROM meta")
        if row is None or not await self._anything():
            return Found()
        standing = Standing(log_id=row[0], head=row[1], head_time=row[2], group_count=row[3])
        return Found(standing=standing, log_id=standing.log_id)

    async def _anything(self) -> bool:
        """Whether any table holds a row, besides those that hold one from the start."""
        row = await self._connection.fetchrow(tables.TABLES_HERE, list(metadata.tables))
        names = [name for name in row[1] if name != META.name] if row is not None else []
        text = " OR ".join(f"EXISTS (SELECT FROM {name})" for name in names)
        return bool(await self._value(f"SELECT {text}"))

    async def begin(self, log_id: str) -> Found:
        """Make the tables if need be, and say that a move to here has begun; returns what was begun, now or before.

        Returns a standing where the same hive is there, whole. Raises `Refused` where there is another, or a part of
        another.
        """
        db = self._connection
        async with db.transaction():
            await db.execute(PATIENTLY)
            revision = await self._database.revision(db, moving=True)
            if revision == "":
                await db.execute("; ".join(tables.create_all()))
            found = await self._found()
            if found.log_id and found.log_id != log_id:
                part = "a part of" if found.mark else ""
                raise Refused(
                    f"{self.name} holds {part or 'already'} another hive (log {found.log_id}); move into an empty"
                    " database, or a schema of its own with ?search_path=NAME"
                )
            if not found.log_id:
                found = await self._mark(log_id)
        if revision and revision < REVISION:
            await migrate(self._url, self._connect)
        return found

    async def _mark(self, log_id: str) -> Found:
        db = self._connection
        move_id = uuid4().hex
        await db.execute(f"CREATE TABLE {tables.MOVING} (move_id TEXT NOT NULL, log_id TEXT NOT NULL)")
        await db.execute(f"INSERT INTO {tables.MOVING} VALUES ($1, $2)", move_id, log_id)  # noqa: S608 - a constant
        await db.execute("DELETE FROM meta")
        return Found(mark=Mark(move_id=move_id, target=self.name), log_id=log_id)

    async def finish(self, standing: Standing) -> None:
        """Make it a hive that can be served, durably."""
        db = self._connection
        for part in PARTS:
            # So that the first server plans its statements for tables as full as they are.
            await db.execute(f"ANALYZE {part.name}")
        async with db.transaction():
            await db.execute("SET LOCAL synchronous_commit = on")
            values = (1, standing.log_id, standing.head, standing.head_time, standing.group_count)
            await db.execute(tables.INSERT_META, *values)
            await db.execute(f"DROP TABLE {tables.MOVING}")

    async def take_back(self, standing: Standing) -> None:
        """Make it a part of a hive that is being moved again; `Refused` when it is not as it was finished."""
        db = self._connection
        async with db.transaction():
            await db.execute(PATIENTLY)
            await db.execute("SELECT FROM meta FOR UPDATE")
            found = await self._found()
            if found.standing is not None and found.standing != standing:
                raise Refused(
                    f"{self.name} has been served since: it is at event {found.standing.head}, and the move ended at"
                    f" {standing.head}. Nothing was changed"
                )
            if found.standing is not None:
                await self._mark(standing.log_id)

    # Rows

    async def pages(self, part: Part, *, keys_only: bool) -> AsyncIterator[list[Row]]:
        """Yield all rows in the order of their keys, sealed but for their labels, or their keys."""
        columns = ", ".join(part.key if keys_only else part.sealed_columns())
        key = ", ".join(part.key)
        places = ", ".join(f"${number}" for number in range(1, len(part.key) + 1))
        text, after = f"SELECT {columns} FROM {part.name}", tuple[Any, ...]()  # noqa: S608 - names of the schema
        end = f" ORDER BY {key} LIMIT {part.page}"
        while page := await self._connection.fetch(
            text + (f" WHERE ({key}) > ({places})" if after else "") + end, *after
        ):
            yield page
            after = part.key_of(page[-1])

    async def write(self, part: Part, gone: Sequence[tuple[Any, ...]], rows: Sequence[Row]) -> None:
        """Remove the rows of some keys, then add rows, all in one transaction.

        Raises `Refused`, naming the row, when PostgreSQL cannot hold one.
        """
        try:
            await self._write(part, gone, rows)
        except Exception as error:
            if not refused(error):
                raise
            if len(rows) <= 1:
                what = f"the row {part.key_of(rows[0])} of {part.name}" if rows else f"changes of {part.name}"
                raise Refused(f"PostgreSQL cannot hold {what}: {sentence(error)}") from error
            await self._write(part, gone, [])
            for row in rows:
                await self.write(part, [], [row])

    async def _write(self, part: Part, gone: Sequence[tuple[Any, ...]], rows: Sequence[Row]) -> None:
        db = self._connection
        async with db.transaction():
            if gone:
                lists = [f"${n}::{type_name(part.table, name)}[]" for n, name in enumerate(part.key, 1)]
                wanted = f"SELECT * FROM unnest({', '.join(lists)})"  # noqa: S608 - names of the schema
                text = f"DELETE FROM {part.name} WHERE ({', '.join(part.key)}) IN ({wanted})"  # noqa: S608 - names of the schema
                await db.execute(text, *map(list, zip(*gone, strict=True)))
            if rows:
                await db.copy_records_to_table(part.name, records=rows, columns=part.columns)
