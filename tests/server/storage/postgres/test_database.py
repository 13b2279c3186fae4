"""What the store does with a database: make, check, migrate once, and say in one sentence why not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from agenthive_server.kernel.changes import COMMITTED
from agenthive_server.kernel.clock import ManualClock, SystemClock
from agenthive_server.kernel.ports import StoreUnusable
from agenthive_server.kernel.records import Kind, StateRecord
from agenthive_server.storage.columns import REVISION
from agenthive_server.storage.postgres.database import STARTING_LIMIT, Database, migrate
from agenthive_server.storage.postgres.dial import Connection, Dialer
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.storage.schema import metadata
from agenthive_server.testing.harness import free_port
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.store_model import changing, task
from agenthive_server.testing.waiting import eventually
from asyncpg import CannotConnectNowError  # type: ignore[import-untyped] # the driver has no types

NewStore = Callable[..., PostgresStore]


def database(url: str) -> Database:
    clock = SystemClock()
    return Database(url, Dialer(url, clock).connect, clock)


async def refusal(url: str) -> str:
    with pytest.raises(StoreUnusable) as caught:
        await database(url).prepare()
    said = str(caught.value)
    assert "hive:" not in said
    assert "\n" not in said
    return said


async def catalog(admin: Connection, schema: str) -> set[tuple[Any, ...]]:
    """Return columns and indexes of a schema, the schema's name aside."""
    columns = await admin.fetch(
        "SELECT table_name, column_name, data_type, is_nullable, collation_name FROM information_schema.columns"
        " WHERE table_schema = $1 AND table_name <> 'alembic_version'",
        schema,
    )
    indexes = await admin.fetch(
        "SELECT tablename, indexname, replace(indexdef, schemaname || '.', '') FROM pg_indexes"
        " WHERE schemaname = $1 AND tablename <> 'alembic_version'",
        schema,
    )
    return {tuple(row) for row in (*columns, *indexes)}


@pytest.fixture
async def elsewhere(postgres: PostgresServer) -> AsyncIterator[Connection]:
    """A connection to the server that needs no schema of the test's."""
    connection = await Dialer(postgres.url(), SystemClock()).connect()
    yield connection
    await connection.close(timeout=5)


async def test_the_migrations_make_the_same_tables_as_a_new_database(
    postgres: PostgresServer, schema: str, elsewhere: Connection, new_store: NewStore
) -> None:
    fresh, migrated = postgres.url(f"{schema}a"), postgres.url(f"{schema}b")
    await database(fresh).prepare()
    await elsewhere.execute(f"CREATE SCHEMA {schema}b")
    for _ in range(2):
        await migrate(migrated, Dialer(migrated, SystemClock()).connect)
    made = await catalog(elsewhere, f"{schema}a")
    assert made == await catalog(elsewhere, f"{schema}b")
    assert len(made) > 60
    row = await elsewhere.fetchrow(f"SELECT array(SELECT version_num::text FROM {schema}b.alembic_version)")
    assert row is not None
    assert row[0] == [REVISION]
    store = new_store(migrated)
    await store.open()
    assert await store.commit([changing(task("a", labels={"a": "b"}), events=1)]) == [COMMITTED]


async def test_a_database_of_the_first_version_gets_the_tables_it_lacks_and_keeps_what_it_has(
    admin: Connection, new_store: NewStore
) -> None:
    store = new_store()
    await store.open()
    await store.commit([changing(task("a"), events=1)])
    await store.close()
    await admin.execute("DROP TABLE state, change; UPDATE alembic_version SET version_num = '0001'")
    store = new_store()
    await store.open()
    kept = StateRecord(namespace="plugin", id="key", revision=1, value=b"value")
    assert await store.commit([changing(kept)]) == [COMMITTED]
    assert await store.get(Kind.STATE, [kept.key]) == [kept]
    assert await store.get(Kind.TASK, [("default", "a")]) == [task("a")]
    assert (await store.bounds()).head == 1


@pytest.mark.parametrize("old", [False, True])
async def test_of_many_who_come_at_once_one_makes_or_migrates_and_all_go_on(
    url: str, admin: Connection, old: bool
) -> None:
    if old:
        await database(url).prepare()
        await admin.execute("DROP TABLE state, change; UPDATE alembic_version SET version_num = '0001'")
    await asyncio.gather(*(database(url).prepare() for _ in range(6)))
    row = await admin.fetchrow(
        "SELECT (SELECT count(*) FROM meta), array(SELECT version_num::text FROM alembic_version)"
    )
    assert row is not None
    assert tuple(row) == (1, [REVISION])


@pytest.mark.parametrize(("ahead", "works"), [(1, True), (2, False)])
async def test_the_next_version_may_have_been_here_but_not_one_after_that(
    url: str, admin: Connection, new_store: NewStore, ahead: int, works: bool
) -> None:
    await database(url).prepare()
    newer = f"{int(REVISION) + ahead:04d}"
    # As a migration would: it only adds.
    await admin.execute(f"ALTER TABLE task ADD COLUMN flavour text; UPDATE alembic_version SET version_num = '{newer}'")
    if not works:
        assert f"was used by a newer version of Agent Hive (its tables are at {newer})" in await refusal(url)
        return
    store = new_store()
    await store.open()
    assert await store.commit([changing(task("a")), changing(task("a", revision=2))]) == [COMMITTED, COMMITTED]
    assert await store.get(Kind.TASK, [("default", "a")]) == [task("a", revision=2)]


async def test_the_schema_a_url_names_is_made(url: str, schema: str, elsewhere: Connection) -> None:
    await database(url).prepare()
    row = await elsewhere.fetchrow("SELECT count(*) FROM pg_tables WHERE schemaname = $1", schema)
    assert row is not None
    assert row[0] == len(metadata.tables) + 1


async def test_tables_of_another_program_are_left_alone(
    postgres: PostgresServer, schema: str, elsewhere: Connection
) -> None:
    await elsewhere.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.task (text text)")
    assert "has tables of another program in schema" in await refusal(postgres.url(schema))
    await elsewhere.execute(f"CREATE SCHEMA {schema}x; CREATE TABLE {schema}x.recipes (text text)")
    await database(postgres.url(f"{schema}x")).prepare()


async def test_what_stands_in_the_way_is_a_sentence(postgres: PostgresServer, elsewhere: Connection) -> None:
    url = postgres.url()
    place = f"127.0.0.1:{postgres.port}"
    assert 'database "nowhere" does not exist' in await refusal(url.replace("/postgres", "/nowhere"))
    assert "password authentication failed" in await refusal(url.replace("hive:", "hive:wrong"))
    assert "Connect call failed" in await refusal(url.replace(place, f"127.0.0.1:{free_port()}"))
    assert "cannot be opened" in await refusal(url.replace(place, "no.such.host.invalid"))
    assert "expected postgresql://USER@HOST:PORT/DATABASE" in await refusal(url.replace(place, "127.0.0.1:se/cret"))
    await elsewhere.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    assert "keeps texts as LATIN1" in await refusal(url.replace("/postgres", "/latin"))


async def test_who_may_not_make_tables_is_told(postgres: PostgresServer, schema: str, elsewhere: Connection) -> None:
    await elsewhere.execute(f"CREATE SCHEMA {schema}; CREATE ROLE {schema} LOGIN PASSWORD 'x'")
    await elsewhere.execute(f"GRANT USAGE ON SCHEMA {schema} TO {schema}")
    url = f"postgresql://{schema}:x@127.0.0.1:{postgres.port}/postgres?search_path={schema}"
    assert "permission denied" in await refusal(url)


async def test_commits_are_durable_where_the_server_would_not_have_them_so(
    postgres: PostgresServer, url: str, schema: str, elsewhere: Connection, new_store: NewStore
) -> None:
    await elsewhere.execute(f"CREATE ROLE {schema} LOGIN SUPERUSER PASSWORD 'x'")
    await elsewhere.execute(f"ALTER ROLE {schema} SET synchronous_commit = off")
    lazy = url.partition("@")[2]
    store = new_store(f"postgresql://{schema}:x@{lazy}")
    await store.open()
    connection = await store._writing.connection()
    row = await connection.fetchrow("SHOW synchronous_commit")
    assert row is not None
    assert row[0] == "on"


@pytest.mark.parametrize(("limit", "comes"), [(STARTING_LIMIT - 1, True), (STARTING_LIMIT + 1, False)])
async def test_a_database_that_is_starting_up_is_waited_for_a_while(url: str, limit: float, comes: bool) -> None:
    clock = ManualClock()
    there = clock.monotonic() + limit

    async def connect() -> Connection:
        if clock.monotonic() < there:
            # A real one is in this state for too short a time to be caught in it.
            raise CannotConnectNowError("the database system is starting up")
        return await Dialer(url, SystemClock()).connect()

    opening = asyncio.create_task(Database(url, connect, clock).prepare())
    while not opening.done():
        await eventually(lambda: opening.done() or clock.next_wake is not None)
        clock.move(1.0)
    if comes:
        assert await opening == {}
        return
    with pytest.raises(StoreUnusable, match="starting up"):
        await opening
