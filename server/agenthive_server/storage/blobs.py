"""Blobs in SQLite: chunks under an upload's id, which become a blob when its row is written.

What a crash leaves of an upload are chunks without a row; they are removed when the database is opened.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from uuid import uuid4

from agenthive_server.kernel.ports import BlobInfo

from . import statements
from .beside import Recorder
from .chunks import in_chunks
from .lane import Lane
from .memory import BLOB_CHUNK, blob_not_found
from .transaction import transaction

_CHUNKS_AT_ONCE = 16


class Blobs:
    """The blobs of a store: written in the writer's lane, in small transactions between commits, read in another."""

    def __init__(self, writer: Lane, reader: Lane, recorder: Callable[[], Recorder | None]) -> None:
        self._writer = writer
        self._reader = reader
        self._recorder = recorder

    async def put(self, info: BlobInfo, pieces: AsyncIterator[bytes]) -> BlobInfo:
        """As `Store.put_blob`."""
        known = await self._writer.call(partial(renew, info=info))
        if known is not None:
            self._tell(known, "")
            return known
        upload_id = uuid4().hex
        number = size = 0
        try:
            async for content in in_chunks(pieces):
                await self._writer.call(partial(add_chunk, upload_id=upload_id, number=number, content=content))
                if (recorder := self._recorder()) is not None:
                    recorder.chunk(upload_id, number, content)
                number, size = number + 1, size + len(content)
            stored, mine = await self._writer.call(
                partial(complete, info=replace(info, size=size), upload_id=upload_id)
            )
        except BaseException:
            # One more than was counted: a cancelled write happens all the same.
            self._drop_later(upload_id, number + 1)
            raise
        self._tell(stored, upload_id if mine else "")
        if not mine:
            self._drop_later(upload_id, number)
        return stored

    def _tell(self, info: BlobInfo, upload_id: str) -> None:
        if (recorder := self._recorder()) is not None:
            recorder.blob(info, upload_id)

    def _drop_later(self, upload_id: str, chunks: int) -> None:
        for below in _steps(chunks):
            self._writer.post(partial(drop_chunks, upload_id=upload_id, below=below))

    async def find(self, namespace: str, blob_id: str) -> BlobInfo | None:
        """As `Store.find_blob`."""
        found = await self._reader.call(partial(find, namespace=namespace, blob_id=blob_id))
        return found[0] if found else None

    async def read(self, namespace: str, blob_id: str, offset: int) -> AsyncIterator[bytes]:
        """As `Store.read_blob`."""
        found = await self._reader.call(partial(find, namespace=namespace, blob_id=blob_id))
        if found is None:
            raise blob_not_found(blob_id)
        info, upload_id = found
        while offset < info.size:
            number, start = divmod(offset, BLOB_CHUNK)
            content = await self._reader.call(partial(read_chunk, upload_id=upload_id, number=number))
            if content is None:
                raise blob_not_found(blob_id)
            yield content[start:]
            offset += len(content) - start

    async def expire(self, before: float, limit: int) -> int:
        """As `Store.expire_blobs`."""
        for count in range(limit):
            removed = await self._writer.call(partial(expire_oldest, before=before))
            if removed is None:
                return count
            upload_id, size = removed
            for below in _steps(-(-size // BLOB_CHUNK)):
                await self._writer.call(partial(drop_chunks, upload_id=upload_id, below=below))
        return limit


def _steps(chunks: int) -> list[int]:
    """Return the bounds in which so many chunks are removed, some at a time, for commits wait meanwhile."""
    return [*range(_CHUNKS_AT_ONCE, chunks, _CHUNKS_AT_ONCE), chunks]


def find(db: sqlite3.Connection, namespace: str, blob_id: str) -> tuple[BlobInfo, str] | None:
    """Return a blob and the id of its upload, or None."""
    row = db.execute(statements.SELECT_BLOB, (namespace, blob_id)).fetchone()
    if row is None:
        return None
    info = BlobInfo(namespace=row[0], id=row[1], size=row[2], content_type=row[3], create_time=row[4])
    return info, row[5]


def renew(db: sqlite3.Connection, info: BlobInfo) -> BlobInfo | None:
    """Return the blob that is there already, its time renewed; None when there is none."""
    found = find(db, info.namespace, info.id)
    if found is None:
        return None
    known = found[0]
    if known.create_time >= info.create_time:
        return known
    with transaction(db):
        db.execute(statements.RENEW_BLOB, (info.create_time, info.namespace, info.id))
    return replace(known, create_time=info.create_time)


def add_chunk(db: sqlite3.Connection, upload_id: str, number: int, content: bytes) -> None:
    """Store one chunk of an upload."""
    with transaction(db):
        db.execute(statements.INSERT_CHUNK, (upload_id, number, content))


def complete(db: sqlite3.Connection, info: BlobInfo, upload_id: str) -> tuple[BlobInfo, bool]:
    """Make an upload a blob; when another upload of it was faster, return that one and False."""
    known = renew(db, info)
    if known is not None:
        return known, False
    row = (info.namespace, info.id, info.size, info.content_type, info.create_time, upload_id)
    with transaction(db):
        db.execute(statements.INSERT_BLOB, row)
    return info, True


def drop_chunks(db: sqlite3.Connection, upload_id: str, below: int) -> None:
    """Remove the chunks of an upload whose number is below one."""
    with transaction(db):
        db.execute(statements.DELETE_CHUNKS, (upload_id, below))


def read_chunk(db: sqlite3.Connection, upload_id: str, number: int) -> bytes | None:
    """Return one chunk, or None when it is not there."""
    row = db.execute(statements.SELECT_CHUNK, (upload_id, number)).fetchone()
    return row[0] if row else None


def expire_oldest(db: sqlite3.Connection, before: float) -> tuple[str, int] | None:
    """Remove the oldest blob last stored before a time, but not its chunks; returns its upload's id and its size."""
    row = db.execute(statements.OLD_BLOB, (before,)).fetchone()
    if row is None:
        return None
    with transaction(db):
        db.execute(statements.DELETE_BLOB, row[:2])
    return row[5], row[2]
