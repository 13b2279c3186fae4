"""Pieces of any size are stored as chunks of one."""

from __future__ import annotations

from collections.abc import AsyncIterator

from agenthive_server.storage.chunks import in_chunks
from agenthive_server.storage.memory import BLOB_CHUNK


async def test_pieces_of_any_size_become_chunks_of_one() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for size in (1, 0, BLOB_CHUNK, 3 * BLOB_CHUNK - 1, 5):
            yield bytes(size)

    assert [len(chunk) async for chunk in in_chunks(pieces())] == [BLOB_CHUNK] * 4 + [5]


async def test_nothing_becomes_no_chunk() -> None:
    async def nothing() -> AsyncIterator[bytes]:
        for size in (0, 0):
            yield bytes(size)

    assert [chunk async for chunk in in_chunks(nothing())] == []
