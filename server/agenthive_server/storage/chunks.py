"""How the content of a blob is cut into the pieces that are stored."""

from __future__ import annotations

from collections.abc import AsyncIterator

from .memory import BLOB_CHUNK


async def in_chunks(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the same bytes in chunks of just `BLOB_CHUNK`, the last one aside."""
    gathered = bytearray()
    async for piece in pieces:
        gathered += piece
        while len(gathered) >= BLOB_CHUNK:
            yield bytes(gathered[:BLOB_CHUNK])
            del gathered[:BLOB_CHUNK]
    if gathered:
        yield bytes(gathered)
