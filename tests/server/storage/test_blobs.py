"""Uploads leave nothing behind but blobs; what any store does with blobs is in the suite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from agenthive_server.kernel.ports import BlobInfo
from agenthive_server.storage.memory import BLOB_CHUNK
from agenthive_server.storage.sqlite import SqliteStore

BLOB = BlobInfo(namespace="n", id="sha256:1", size=0, content_type="", create_time=1.0)


async def content(chunks: int) -> AsyncIterator[bytes]:
    for _ in range(chunks):
        yield bytes(BLOB_CHUNK)


async def chunks_kept(store: SqliteStore) -> int:
    rows = await store._writer.call(lambda db: db.execute("SELECT count(*) FROM blob_chunk").fetchone())
    return int(rows[0])


async def test_an_upload_that_came_second_leaves_nothing(store: SqliteStore) -> None:
    await asyncio.gather(*(store.put_blob(BLOB, content(2)) for _ in range(3)))
    assert await chunks_kept(store) == 2


async def test_a_cancelled_upload_leaves_nothing(store: SqliteStore) -> None:
    stuck = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield bytes(BLOB_CHUNK)
        stuck.set()
        await asyncio.Event().wait()

    upload = asyncio.ensure_future(store.put_blob(BLOB, endless()))
    await stuck.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert await chunks_kept(store) == 0


async def test_an_expired_blob_goes_with_all_its_chunks(store: SqliteStore) -> None:
    await store.put_blob(BLOB, content(35))
    assert await store.expire_blobs(2.0) == 1
    assert await chunks_kept(store) == 0
