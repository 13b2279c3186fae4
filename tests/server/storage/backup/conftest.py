"""A small hive in a database, and backups of it."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.ports import BlobInfo
from agenthive_server.kernel.records import Kind
from agenthive_server.storage.backup.create import Making, create_backup
from agenthive_server.storage.backup.manifest import DATABASE, MANIFEST, Manifest
from agenthive_server.storage.backup.work import Token
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.testing.store_model import changing, sample

Upload = Callable[..., Awaitable[BlobInfo]]

CONTENT = b"content" * 200_000
"""More than one chunk."""


@pytest.fixture
def making(clock: ManualClock) -> Making:
    return Making(clock=clock, software="1.2.3", minimum_free=0)


async def put_blob(store: SqliteStore, content: bytes, time: float = 1.0) -> BlobInfo:
    async def pieces() -> AsyncIterator[bytes]:
        yield content

    blob_id = f"sha256:{hashlib.sha256(content).hexdigest()}"
    info = BlobInfo(namespace="default", id=blob_id, size=0, content_type="text/plain", create_time=time)
    return await store.put_blob(info, pieces())


@pytest.fixture
def upload() -> Upload:
    """Stores a blob."""
    return put_blob


@pytest.fixture
async def filled(store: SqliteStore) -> SqliteStore:
    """Records of every kind, ten events, a blob."""
    for number, kind in enumerate(Kind):
        await store.commit([changing(sample(kind, ("default", f"{kind}-1"), 1, number), events=1)])
    await put_blob(store, CONTENT)
    return store


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "backups"


@pytest.fixture
def back_up(path: Path, place: Path, making: Making) -> Callable[[str], Path]:
    """Makes a backup of that name and returns its folder."""

    def make(name: str = "one") -> Path:
        create_backup(path, place / name, making, Token())
        return place / name

    return make


@pytest.fixture
def tampered() -> Callable[..., None]:
    """Changes the database of a backup and makes its manifest fit again, so that only reading it finds out."""

    def tamper(backup: Path, *statements: str, **manifest: object) -> None:
        database = backup / DATABASE
        with closing(sqlite3.connect(database, isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        known = msgspec.json.decode((backup / MANIFEST).read_bytes(), type=Manifest)
        content = database.read_bytes()
        file = msgspec.structs.replace(known.files[0], size=len(content), sha256=hashlib.sha256(content).hexdigest())
        sealed = msgspec.structs.replace(known, files=(file,), **manifest).sealed()
        (backup / MANIFEST).write_bytes(msgspec.json.encode(sealed))

    return tamper
