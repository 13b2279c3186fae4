# ruff: noqa: ASYNC109 - `timeout` is sent as the deadline of the call, it is not a wait of ours
"""The calls about blobs: payloads too big for a message."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Final

import grpc

from agenthive.connection import Connection
from agenthive.errors import DataLoss, error_from_rpc
from agenthive.v1 import blob_service_pb2 as blobs
from agenthive.waiting import Backoff, passing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agenthive.v1.blob_service_pb2 import Blob

CHUNK_BYTES: Final = 1024 * 1024
_TRIES: Final = 5
_PACE: Final = 0.02  # seconds between two chunks, once more for each try that broke


class BlobCalls(Connection):
    """Blobs: up and down. Content-addressed, so uploading again is harmless. Every call raises a HiveError."""

    async def upload_blob(self, data: bytes, *, content_type: str = "", timeout: float | None = None) -> Blob:
        """Store bytes durably and return their blob; its digest is checked by the server.

        `timeout` is the deadline in seconds of one try (None: one second for each 100 KiB, and at least the client's).
        Raises ResourceExhausted when it is larger than the server allows.
        """
        deadline = timeout if timeout is not None else max(self.timeout, len(data) / (100 * 1024))
        backoff = Backoff()
        for tries in range(1, _TRIES + 1):
            # A refusal that arrives while a chunk is being sent is lost in gRPC's client, which then says INTERNAL and
            # no reason. The next try leaves it time to arrive between two chunks.
            chunks = _upload(data, content_type, _PACE * (tries - 1))
            try:
                call = self._blobs.UploadBlob(chunks, timeout=deadline, metadata=self._metadata, wait_for_ready=True)
                return (await call).blob
            except grpc.aio.AioRpcError as error:
                failure = error_from_rpc(error)
                if not passing(failure) or tries == _TRIES:
                    raise failure from error
            await asyncio.sleep(backoff.next())
        raise AssertionError("not reached")

    async def blob_chunks(self, blob_id: str, *, offset: int = 0) -> AsyncIterator[bytes]:
        """Yield the bytes of a blob from `offset` on; a broken stream is taken up where it broke. Raises NotFound."""
        backoff, tries = Backoff(), 0
        while True:
            request = blobs.DownloadBlobRequest(blob_id=blob_id, offset=offset)
            call = self._blobs.DownloadBlob(request, metadata=self._metadata)
            try:
                async for response in call:
                    tries = 0
                    offset += len(response.chunk)
                    yield response.chunk
                return
            except grpc.aio.AioRpcError as error:
                tries += 1
                if not passing(failure := error_from_rpc(error)) or tries == _TRIES:
                    raise failure from error
            finally:
                call.cancel()
            await asyncio.sleep(backoff.next())

    async def download_blob(self, blob_id: str) -> bytes:
        """Return all bytes of a blob. Raises NotFound, and DataLoss when they do not have the digest they should."""
        data = b"".join([chunk async for chunk in self.blob_chunks(blob_id)])
        if blob_id.startswith("sha256:") and blob_id != blob_id_of(data):
            raise DataLoss(f"the content of blob {blob_id} has another digest")
        return data


def blob_id_of(data: bytes) -> str:
    """Return the id of a blob with this content."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def _upload(data: bytes, content_type: str, pause: float) -> AsyncIterator[blobs.UploadBlobRequest]:
    yield blobs.UploadBlobRequest(blob_id=blob_id_of(data), content_type=content_type, chunk=data[:CHUNK_BYTES])
    for start in range(CHUNK_BYTES, len(data), CHUNK_BYTES):
        await asyncio.sleep(pause)
        yield blobs.UploadBlobRequest(chunk=data[start : start + CHUNK_BYTES])
