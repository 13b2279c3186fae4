"""BlobService: payloads too big for a message."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from typing import IO

from agenthive.v1 import blob_service_pb2 as pb

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import BadRequest, DataLoss, NotFound, Overloaded
from agenthive_server.kernel.ports import BlobInfo, Store
from agenthive_server.plugin.api import Call

from . import validate
from .convert.values import set_time

CHUNK = 1024 * 1024
IN_MEMORY = 2 * CHUNK
"""Bytes of an upload kept in memory while its digest is not known; the rest goes to a temporary file."""


class BlobMethods:
    """Stores and reads blobs; the digest of what arrives is always checked."""

    def __init__(self, store: Store, clock: Clock, *, most_bytes: int = 1024 * CHUNK) -> None:
        self._store = store
        self._clock = clock
        self._most_bytes = most_bytes

    async def UploadBlob(self, requests: AsyncIterator[pb.UploadBlobRequest], call: Call) -> pb.UploadBlobResponse:
        """Store a blob; answers when it is durable."""
        first = await anext(requests, None)
        if first is None:
            raise BadRequest("an upload has at least one request", field="chunk")
        content_type = validate.text(first.content_type, "content_type")
        announced = validate.blob_id(first.blob_id, "blob_id") if first.blob_id else ""
        chunks = self._chunks(first, requests)
        if announced:
            blob = await self._put(call.namespace, announced, content_type, chunks)
        else:
            blob = await self._spool(call.namespace, content_type, chunks)
        response = pb.UploadBlobResponse()
        _fill(response.blob, blob)
        return response

    async def _chunks(
        self, first: pb.UploadBlobRequest, requests: AsyncIterator[pb.UploadBlobRequest]
    ) -> AsyncIterator[bytes]:
        """Yield the chunks within their bounds; cancelling the upload ends it."""
        yield self._checked(first.chunk, 0)
        total = len(first.chunk)
        async for request in requests:
            if request.blob_id or request.content_type:
                raise BadRequest(
                    "only the first request has it", field="blob_id" if request.blob_id else "content_type"
                )
            yield self._checked(request.chunk, total)
            total += len(request.chunk)

    def _checked(self, chunk: bytes, before: int) -> bytes:
        if len(chunk) > CHUNK:
            raise BadRequest(f"a chunk has more than {CHUNK} bytes", field="chunk")
        if before + len(chunk) > self._most_bytes:
            raise Overloaded(
                f"a blob has at most {self._most_bytes} bytes",
                reason="MESSAGE_TOO_LARGE",
                metadata={"limit": str(self._most_bytes), "size": str(before + len(chunk))},
            )
        return chunk

    async def _put(self, namespace: str, blob_id: str, content_type: str, chunks: AsyncIterator[bytes]) -> BlobInfo:
        """Store content whose id was announced; nothing is stored when it has another."""

        async def verified() -> AsyncIterator[bytes]:
            digest = hashlib.sha256()
            async for chunk in chunks:
                digest.update(chunk)
                yield chunk
            found = f"sha256:{digest.hexdigest()}"
            if found != blob_id:
                raise DataLoss(f"the content is {found}, not what was announced", metadata={"blob_id": blob_id})

        content = verified()
        blob = await self._store.put_blob(self._info(namespace, blob_id, content_type), content)
        # A store that has it already need not read it; the promise to check it stands.
        async for _ in content:
            pass
        return blob

    async def _spool(self, namespace: str, content_type: str, chunks: AsyncIterator[bytes]) -> BlobInfo:
        """Store content whose id is known only at its end."""
        digest = hashlib.sha256()
        with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as spool:
            async for chunk in chunks:
                digest.update(chunk)
                await asyncio.to_thread(spool.write, chunk)
            spool.seek(0)
            info = self._info(namespace, f"sha256:{digest.hexdigest()}", content_type)
            return await self._store.put_blob(info, _read(spool))

    def _info(self, namespace: str, blob_id: str, content_type: str) -> BlobInfo:
        return BlobInfo(
            namespace=namespace, id=blob_id, size=0, content_type=content_type, create_time=self._clock.now()
        )

    async def DownloadBlob(self, request: pb.DownloadBlobRequest, call: Call) -> AsyncIterator[pb.DownloadBlobResponse]:
        """Stream a blob from an offset."""
        blob_id = validate.blob_id(request.blob_id, "blob_id")
        blob = await self._store.find_blob(call.namespace, blob_id)
        if blob is None:
            raise NotFound(
                f"no blob {blob_id} in this namespace", reason="BLOB_NOT_FOUND", metadata={"blob_id": blob_id}
            )
        offset = validate.between(request.offset, 0, blob.size, "offset")
        head = pb.DownloadBlobResponse()
        _fill(head.blob, blob)
        yield head
        async for chunk in self._store.read_blob(call.namespace, blob_id, offset):
            yield pb.DownloadBlobResponse(chunk=chunk)


async def _read(spool: IO[bytes]) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(spool.read, CHUNK):
        yield chunk


def _fill(message: pb.Blob, blob: BlobInfo) -> None:
    message.blob_id = blob.id
    message.size = blob.size
    message.content_type = blob.content_type
    set_time(message.create_time, blob.create_time)
