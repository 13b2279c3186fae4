"""Blobs in a table of chunks, under the id of their upload; they become a blob when its row is written.

What a crash leaves of an upload are chunks without a row. Nobody can tell them from those of an upload under way, so
they go when they are a day old: an upload's id begins with the time it began.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final
from uuid import uuid4

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.ports import BlobInfo
from agenthive_server.storage.chunks import in_chunks
from agenthive_server.storage.memory import BLOB_CHUNK, blob_not_found

from . import statements
from .dial import Row
from .link import Link
from .reader import storable

DEAD_AFTER: Final = 86_400.0
"""Seconds after which an upload that has not become a blob never will."""


class Blobs:
    """The blobs of a store, on a connection on which nothing waits that is in a hurry."""

    def __init__(self, link: Link, clock: Clock) -> None:
        self._link = link
        self._clock = clock

    async def put(self, info: BlobInfo, pieces: AsyncIterator[bytes]) -> BlobInfo:
        """As `Store.put_blob`."""
        key = (info.namespace, info.id)
        if not storable(*key, info.content_type):
            raise BadRequest("the store cannot hold this text", field="content_type")
        if (row := await self._row(statements.RENEW_BLOB, info.create_time, *key)) is not None:
            return _info(row)
        upload_id = f"{_stamp(self._clock.now())}{uuid4().hex}"
        number = size = 0
        try:
            async for content in in_chunks(pieces):
                await self._execute(statements.INSERT_CHUNK, upload_id, number, content)
                number, size = number + 1, size + len(content)
        except BaseException:
            self._drop_later(upload_id)
            raise
        # What this leaves when it fails is not removed: the blob may be there, and only the answer was lost.
        values = (*key, size, info.content_type, info.create_time, upload_id)
        row = await self._row(statements.INSERT_BLOB, *values)
        assert row is not None
        if row[5] != upload_id:
            self._drop_later(upload_id)
        return _info(row)

    async def find(self, namespace: str, blob_id: str) -> BlobInfo | None:
        """As `Store.find_blob`."""
        row = await self._find(namespace, blob_id)
        return None if row is None else _info(row)

    async def read(self, namespace: str, blob_id: str, offset: int) -> AsyncIterator[bytes]:
        """As `Store.read_blob`."""
        found = await self._find(namespace, blob_id)
        if found is None:
            raise blob_not_found(blob_id)
        size, upload_id = found[2], found[5]
        while offset < size:
            number, start = divmod(offset, BLOB_CHUNK)
            row = await self._row(statements.SELECT_CHUNK, upload_id, number)
            if row is None:
                raise blob_not_found(blob_id)
            content: bytes = row[0]
            yield content[start:]
            offset += len(content) - start

    async def expire(self, before: float, limit: int) -> int:
        """As `Store.expire_blobs`."""
        for count in range(limit):
            if await self._row(statements.EXPIRE_BLOB, before) is None:
                return count
        return limit

    def forget_dead_uploads(self) -> None:
        """Remove what is left of uploads that began long ago and never became a blob; nobody waits for that."""
        before = _stamp(self._clock.now() - DEAD_AFTER)
        self._link.post(lambda db: db.execute(statements.DELETE_DEAD_UPLOADS, before))

    async def _find(self, namespace: str, blob_id: str) -> Row | None:
        return await self._row(statements.SELECT_BLOB, namespace, blob_id) if storable(namespace, blob_id) else None

    async def _row(self, text: str, *values: object) -> Row | None:
        return await self._link.call(lambda db: db.fetchrow(text, *values))

    async def _execute(self, text: str, *values: object) -> None:
        await self._link.call(lambda db: db.execute(text, *values))

    def _drop_later(self, upload_id: str) -> None:
        self._link.post(lambda db: db.execute(statements.DELETE_UPLOAD, upload_id))


def _info(row: Row) -> BlobInfo:
    return BlobInfo(namespace=row[0], id=row[1], size=row[2], content_type=row[3], create_time=row[4])


def _stamp(time: float) -> str:
    """Return a time as a text that sorts as times do."""
    return f"{max(0, int(time)):011d}-"
