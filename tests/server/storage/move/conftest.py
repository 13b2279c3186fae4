"""Hives in files, and places in PostgreSQL to move them to."""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from agenthive_server.kernel.clock import ManualClock, SystemClock
from agenthive_server.kernel.ports import BlobInfo, Store
from agenthive_server.kernel.records import Kind
from agenthive_server.storage.move.moving import Move
from agenthive_server.storage.postgres.dial import Connection, Dialer
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.storage.schema import TABLES
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.testing.postgres import PostgresServer, open_postgres
from agenthive_server.testing.store_model import changing, sample

_SCHEMAS = itertools.count()

Contents = dict[str, Any]


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.url(f"move{next(_SCHEMAS)}")


@pytest.fixture
async def admin(url: str) -> AsyncIterator[Connection]:
    """A connection to the target, beside the mover."""
    connection = await Dialer(url, SystemClock()).connect(idle_in_transaction_session_timeout="0")
    yield connection
    connection.terminate()


@pytest.fixture
def own_postgres(postgres_binaries: Path) -> Any:
    """A database server that may be harmed."""
    with open_postgres(postgres_binaries) as server:
        yield server


@pytest.fixture
def said() -> list[str]:
    """What was told of progress."""
    return []


@pytest.fixture
def move(path: Path, url: str, said: list[str]) -> Callable[..., Move]:
    """Makes a move of the hive at `path`."""
    return lambda to=url: Move(path, to, SystemClock(), said.append)


async def put_blob(store: Store, content: bytes, time: float = 1.0, namespace: str = "default") -> BlobInfo:
    async def pieces() -> AsyncIterator[bytes]:
        yield content

    blob_id = f"sha256:{hashlib.sha256(content).hexdigest()}"
    info = BlobInfo(namespace=namespace, id=blob_id, size=0, content_type="text/plain", create_time=time)
    return await store.put_blob(info, pieces())


@pytest.fixture
def upload() -> Callable[..., Awaitable[BlobInfo]]:
    """Stores a blob."""
    return put_blob


@pytest.fixture
async def filled(path: Path, clock: ManualClock) -> Path:
    """A hive of a server that has stopped: records of every kind, events of which some are compacted, blobs."""
    store = SqliteStore(path, clock=clock)
    await store.open()
    for number, kind in enumerate(Kind):
        for name in ("a", "b", "ü"):
            clock.move(1)
            await store.commit([changing(sample(kind, ("default", f"{kind}-{name}"), 1, number), events=2)])
            await store.commit([changing(sample(kind, (f"{name}2", f"{kind}-{name}"), 1, number + 1))])
    await store.compact(7)
    await put_blob(store, b"content" * 400_000)
    await put_blob(store, b"content" * 400_000, namespace="other", time=7.0)
    await put_blob(store, b"")
    await store.close()
    return path


async def read_all(store: Store) -> Contents:
    """Return everything a store tells, for comparing; the leases of servers on PostgreSQL are their own."""
    await store.open()
    try:
        bounds = await store.bounds()
        records = {kind: {record.key: record for record in await store.scan(kind)} for kind in Kind}
        records[Kind.ROLE] = {key: role for key, role in records[Kind.ROLE].items() if key[0] != ""}
        blobs = {}
        for namespace, blob_id in _blobs.get(id(store), ()):
            info = await store.find_blob(namespace, blob_id)
            content = b"".join([piece async for piece in store.read_blob(namespace, blob_id)])
            blobs[namespace, blob_id] = (info, content)
        return {
            "bounds": bounds,
            "records": records,
            "events": await store.read_events(bounds.oldest - 1, 1_000_000),
            "blobs": blobs,
        }
    finally:
        await store.close()


_blobs: dict[int, list[tuple[str, str]]] = {}


@pytest.fixture
def told_by_file(path: Path, clock: ManualClock) -> Callable[[], Awaitable[Contents]]:
    """Reads the hive at `path`, which must not be marked as moved."""

    async def read() -> Contents:
        store = SqliteStore(path, clock=clock)
        with closing(sqlite3.connect(path)) as db:
            _blobs[id(store)] = db.execute("SELECT namespace, id FROM blob").fetchall()
        return await read_all(store)

    return read


@pytest.fixture
def told_by_postgres(url: str, path: Path, clock: ManualClock) -> Callable[..., Awaitable[Contents]]:
    """Reads the hive at `url`; of blobs those that the file names."""

    async def read(at: str = url) -> Contents:
        store = PostgresStore(at, clock=clock, now=clock.now)
        with closing(sqlite3.connect(path)) as db:
            _blobs[id(store)] = db.execute("SELECT namespace, id FROM blob").fetchall()
        return await read_all(store)

    return read


@pytest.fixture
def rows_there(admin: Connection) -> Callable[[], Awaitable[dict[str, int]]]:
    """Counts the rows of every kind in the target."""

    async def count() -> dict[str, int]:
        counts = {}
        for table in (*(table.name for table in TABLES.values()), "event", "blob", "blob_chunk"):
            row = await admin.fetchrow(f"SELECT count(*) FROM {table}")
            assert row is not None
            counts[table] = row[0]
        return counts

    return count
