"""What a database must be like, and how it becomes so: checked, and made or migrated by whoever comes first."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from uuid import uuid4

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.ports import StoreUnusable
from agenthive_server.storage.address import named_schema, shown
from agenthive_server.storage.columns import REVISION
from agenthive_server.storage.schema import metadata

from . import tables
from .dial import Connection
from .failures import FAILURES, STARTING, code, sentence

OLDEST_VERSION: Final = 13
"""The first major version that tells what became of a transaction by an id that is never used again."""

STARTING_LIMIT: Final = 30.0
LOOKED_EVERY: Final = 0.25
"""Seconds for which, and after which again, a database is looked at that says it is starting up."""

LOCK: Final = 0x6167656E74686976
"""The advisory lock under which tables are made and changed: `agenthiv`."""

PATIENTLY: Final = (
    "SET LOCAL statement_timeout = '10min'; SET LOCAL idle_in_transaction_session_timeout = '5min';"
    f" SELECT pg_advisory_xact_lock({LOCK})"
)
"""Be the only one who makes or changes tables until the end of the transaction, however long it takes."""

_log = logging.getLogger(__name__)


class Database:
    """A database by its URL. `connect` makes a connection to it, or raises what the driver raises."""

    def __init__(self, url: str, connect: Callable[[], Awaitable[Connection]], clock: Clock) -> None:
        self._url = url
        self._connect = connect
        self._clock = clock

    async def prepare(self) -> dict[str, str]:
        """Make or migrate the tables, once, whoever else does so now; raises `StoreUnusable` with a sentence.

        Returns what sessions must set for commits to be durable.
        """
        db, needed = await self.reach()
        try:
            if await self.revision(db) not in _FITTING:
                await self._make(db)
            return needed
        except FAILURES as error:
            raise self._unusable(f"cannot be prepared: {sentence(error)}") from error
        finally:
            db.terminate()

    async def reach(self) -> tuple[Connection, dict[str, str]]:
        """Connect, and see that the database is fit and has the schema the URL asks for; raises `StoreUnusable`.

        Returns the connection, and what sessions must set for commits to be durable.
        """
        db = await self._open()
        try:
            needed = await self._require_fit(db)
            await self._make_schema(db)
        except FAILURES as error:
            db.terminate()
            raise self._unusable(f"cannot be prepared: {sentence(error)}") from error
        except BaseException:
            db.terminate()
            raise
        return db, needed

    async def _open(self) -> Connection:
        """Connect; a database that is about to be there is waited for."""
        end = self._clock.monotonic() + STARTING_LIMIT
        while True:
            try:
                return await self._connect()
            except (*FAILURES, ValueError) as error:
                if code(error) != STARTING or self._clock.monotonic() >= end:
                    raise self._unusable(f"cannot be opened: {_told(error)}") from error
            await self._clock.sleep(LOOKED_EVERY)

    def _unusable(self, why: str) -> StoreUnusable:
        return StoreUnusable(f"{shown(self._url)} {why}")

    async def _require_fit(self, db: Connection) -> dict[str, str]:
        version = int(db.get_server_version()[0])
        if version < OLDEST_VERSION:
            raise self._unusable(f"is PostgreSQL {version}; {OLDEST_VERSION} or newer is needed")
        row = await db.fetchrow(tables.FITNESS)
        assert row is not None
        encoding, standby, fsync, synchronous = row
        if encoding != "UTF8":
            raise self._unusable(f"keeps texts as {encoding}; a database with encoding UTF8 is needed")
        if standby:
            raise self._unusable("is a standby, which cannot be written; name the primary")
        if fsync == "off":
            _log.warning("database_not_durable", extra={"fsync": fsync, "database": shown(self._url)})
        return {"synchronous_commit": "on"} if synchronous == "off" else {}

    async def _make_schema(self, db: Connection) -> None:
        schema = named_schema(self._url)
        # Looked for first: to make one that is there needs a right that its user may not have.
        if schema and await db.fetchrow("SELECT FROM pg_namespace WHERE nspname = $1", schema) is None:
            async with db.transaction():
                # Two who make it at once would collide.
                await db.execute(PATIENTLY)
                await db.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema.replace(chr(34), chr(34) * 2)}"')

    async def revision(self, db: Connection, *, moving: bool = False) -> str:
        """Return at which migration the tables stand, empty when there are none. Raises `StoreUnusable` for others.

        So it does for a hive that has not been moved here whole yet, unless it is asked by who moves it.
        """
        row = await db.fetchrow(tables.TABLES_HERE, ["alembic_version", tables.MOVING, *metadata.tables])
        schema, names = row if row is not None else (None, [])
        if schema is None:
            raise self._unusable("has no schema to use: its search_path names none that is there")
        if tables.MOVING in names:
            if not moving:
                raise self._unusable(
                    "holds a part of a hive that is being moved here; it can be served when"
                    " `agenthived migrate-store` has finished"
                )
            names = [name for name in names if name != tables.MOVING]
        if not names:
            return ""
        if not {"alembic_version", "meta", "event", "blob_chunk"}.issubset(names):
            raise self._unusable(
                f"has tables of another program in schema {schema}; give Agent Hive a schema or database"
            )
        found = await db.fetchrow(tables.REVISION_HERE)
        revision = str(found[0]) if found is not None else "unknown"
        if revision not in _FITTING and not revision < REVISION:
            raise self._unusable(f"was used by a newer version of Agent Hive (its tables are at {revision})")
        return revision

    async def _make(self, db: Connection) -> None:
        async with db.transaction():
            await db.execute(PATIENTLY)
            # Somebody may have been here since.
            revision = await self.revision(db)
            if revision == "":
                await db.execute("; ".join(tables.create_all()))
                await db.execute(tables.INSERT_META, 1, uuid4().hex, 0, 0.0, 0)
        if revision and revision not in _FITTING:
            await migrate(self._url, self._connect)


_FITTING: Final = frozenset({REVISION, f"{int(REVISION) + 1:04d}"})
"""Migrations with which this version works: its own, and the next, which only adds to it."""


def _told(error: Exception) -> str:
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        # What a URL cannot be parsed for may be a part of the password.
        return "its URL cannot be understood; expected postgresql://USER@HOST:PORT/DATABASE"
    return sentence(error)


async def migrate(url: str, connect: Callable[[], Awaitable[Connection]]) -> None:
    """Bring the tables to this version; does nothing when they are there already. Raises `StoreUnusable`."""
    # Imported here: a start with tables that are as they should be does without.
    import sqlalchemy
    from alembic import command, util
    from alembic.config import Config
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    from agenthive_server.storage import migrations

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))

    def upgrade(connection: sqlalchemy.Connection) -> None:
        for statement in PATIENTLY.split(";"):
            connection.exec_driver_sql(statement)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(upgrade)
    except util.CommandError as error:
        raise StoreUnusable(f"{shown(url)} was used by a newer version of Agent Hive: {error}") from error
    except (sqlalchemy.exc.SQLAlchemyError, *FAILURES) as error:
        raise StoreUnusable(f"{shown(url)} cannot be migrated: {sentence(error)}") from error
    finally:
        await engine.dispose()
