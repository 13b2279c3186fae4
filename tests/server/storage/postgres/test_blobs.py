"""Uploads leave nothing behind but blobs; what any store does with blobs is in the suite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import BadRequest, NotFound, StoreUnavailable
from agenthive_server.kernel.ports import BlobInfo
from agenthive_server.storage.memory import BLOB_CHUNK
from agenthive_server.storage.postgres.blobs import DEAD_AFTER
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.waiting import eventually

BLOB = BlobInfo(namespace="n", id="sha256:1", size=0, content_type="", create_time=1.0)


async def content(chunks: int) -> AsyncIterator[bytes]:
    for _ in range(chunks):
        yield bytes(BLOB_CHUNK)


async def chunks_kept(store: PostgresStore) -> int:
    row = await store._keeper.call(lambda db: db.fetchrow("SELECT count(*) FROM blob_chunk"))
    assert row is not None
    return int(row[0])


async def test_an_upload_that_came_second_leaves_nothing(store: PostgresStore) -> None:
    await asyncio.gather(*(store.put_blob(BLOB, content(2)) for _ in range(3)))
    assert await chunks_kept(store) == 2


async def test_a_cancelled_upload_leaves_nothing(store: PostgresStore) -> None:
    stuck = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield bytes(BLOB_CHUNK)
        stuck.set()
        await asyncio.Event().wait()

    upload = asyncio.ensure_future(store.put_blob(BLOB, endless()))
    await stuck.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert await chunks_kept(store) == 0


async def test_an_expired_blob_goes_with_all_its_chunks(store: PostgresStore) -> None:
    await store.put_blob(BLOB, content(5))
    reading = store.read_blob("n", "sha256:1")
    assert len(await anext(reading)) == BLOB_CHUNK
    assert await store.expire_blobs(2.0) == 1
    assert await chunks_kept(store) == 0
    with pytest.raises(NotFound):
        await anext(reading)


async def test_what_dead_uploads_left_goes_when_it_is_old(new_store: Callable[..., PostgresStore]) -> None:
    clock = ManualClock()
    store = new_store(clock=clock)
    await store.open()
    await store.put_blob(BLOB, content(1))
    upload = asyncio.ensure_future(store.put_blob(BlobInfo(**{**vars(BLOB), "id": "sha256:2"}), _stuck()))
    await eventually(lambda: _arrived(store, 2))
    # As a server that is killed: nobody tidies up.
    store._blobs._drop_later = lambda upload_id: None  # type: ignore[method-assign] # the dead do nothing
    upload.cancel()
    await asyncio.wait([upload])
    await store.close()
    for later, kept in ((DEAD_AFTER - 10, 2), (20, 1)):
        clock.move(later)
        store = new_store(clock=clock)
        await store.open()
        assert await chunks_kept(store) == kept
        await store.close()
    store = new_store(clock=clock)
    await store.open()
    assert len([piece async for piece in store.read_blob("n", "sha256:1")]) == 1


async def _arrived(store: PostgresStore, chunks: int) -> bool:
    return await chunks_kept(store) == chunks


async def _stuck() -> AsyncIterator[bytes]:
    yield bytes(BLOB_CHUNK)
    await asyncio.Event().wait()


async def test_an_upload_survives_connections_that_are_lost(distant: PostgresStore, network: object) -> None:
    async def rough() -> AsyncIterator[bytes]:
        for number in range(4):
            network.cut()  # type: ignore[attr-defined] # the network of this folder's conftest
            yield bytes([number]) * BLOB_CHUNK

    stored = await distant.put_blob(BLOB, rough())
    assert stored.size == 4 * BLOB_CHUNK
    pieces = [piece async for piece in distant.read_blob("n", "sha256:1")]
    assert [piece[0] for piece in pieces] == [0, 1, 2, 3]


async def test_an_upload_that_fails_for_the_database_may_be_repeated(distant: PostgresStore, network: object) -> None:
    async def until_the_end() -> AsyncIterator[bytes]:
        yield b"x"
        network.down = True  # type: ignore[attr-defined] # the network of this folder's conftest
        network.cut()  # type: ignore[attr-defined] # the network of this folder's conftest
        yield b"y"

    with pytest.raises(StoreUnavailable):
        await distant.put_blob(BLOB, until_the_end())
    network.down = False  # type: ignore[attr-defined] # the network of this folder's conftest
    await eventually(lambda: _stored(distant))


async def _stored(store: PostgresStore) -> bool:
    try:
        return (await store.put_blob(BLOB, content(1))).size == BLOB_CHUNK
    except StoreUnavailable:
        return False


async def test_a_text_that_cannot_be_stored_is_refused_by_its_name(store: PostgresStore) -> None:
    with pytest.raises(BadRequest):
        await store.put_blob(BlobInfo(**{**vars(BLOB), "content_type": "a\x00"}), content(1))
    assert await chunks_kept(store) == 0
