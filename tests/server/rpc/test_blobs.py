"""Blobs over a real port."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from agenthive.v1 import blob_service_pb2 as pb

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Edge

Failure = Callable[[Any], Any]
MIB = 1024 * 1024


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


async def requests(*chunks: bytes, **first: str) -> AsyncIterator[pb.UploadBlobRequest]:
    for number, chunk in enumerate(chunks):
        yield pb.UploadBlobRequest(chunk=chunk, **(first if number == 0 else {}))


async def download(edge: Edge, blob_id: str, offset: int = 0) -> tuple[pb.Blob, bytes]:
    call = edge.blobs.DownloadBlob(pb.DownloadBlobRequest(blob_id=blob_id, offset=offset))
    blob, content = (await call.read()).blob, b""
    while (response := await call.read()) is not grpc.aio.EOF:
        assert not response.HasField("blob")
        content += response.chunk
    return blob, content


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("size", [0, 10, 3 * MIB + 1])
async def test_what_is_uploaded_can_be_downloaded(edge: Edge, announced: bool, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    chunks = [content[start : start + MIB] for start in range(0, size, MIB)] or [b""]
    first = {"content_type": "text/plain"} | ({"blob_id": digest(content)} if announced else {})
    blob = (await edge.blobs.UploadBlob(requests(*chunks, **first))).blob
    assert (blob.blob_id, blob.size, blob.content_type) == (digest(content), size, "text/plain")
    assert await download(edge, blob.blob_id) == (blob, content)
    assert await download(edge, blob.blob_id, size // 2) == (blob, content[size // 2 :])


async def test_content_that_is_not_what_was_announced_is_not_stored(edge: Edge, failure: Failure) -> None:
    failed = await failure(edge.blobs.UploadBlob(requests(b"a", b"b", blob_id=digest(b"other"))))
    assert (failed.code, failed.reason) == (grpc.StatusCode.DATA_LOSS, "DIGEST_MISMATCH")
    failed = await failure(edge.blobs.DownloadBlob(pb.DownloadBlobRequest(blob_id=digest(b"other"))))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "BLOB_NOT_FOUND")


async def test_content_is_checked_also_when_it_is_there_already(edge: Edge, failure: Failure) -> None:
    await edge.blobs.UploadBlob(requests(b"a"))
    assert (await failure(edge.blobs.UploadBlob(requests(b"b", blob_id=digest(b"a"))))).reason == "DIGEST_MISMATCH"
    assert (await edge.blobs.UploadBlob(requests(b"a", blob_id=digest(b"a")))).blob.blob_id == digest(b"a")


async def test_uploads_are_bounded(edge: Edge, failure: Failure) -> None:
    failed = await failure(edge.blobs.UploadBlob(requests(*[bytes(MIB)] * 9)))
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
    assert failed.metadata == {"limit": str(8 * MIB), "size": str(9 * MIB)}
    for refused in (requests(bytes(MIB + 1)), requests(), requests(b"", blob_id="nonsense")):
        failed = await failure(edge.blobs.UploadBlob(refused))
        assert failed.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_only_the_first_request_names_the_blob(edge: Edge, failure: Failure) -> None:
    async def twice() -> AsyncIterator[pb.UploadBlobRequest]:
        yield pb.UploadBlobRequest(content_type="a")
        yield pb.UploadBlobRequest(content_type="b")

    failed = await failure(edge.blobs.UploadBlob(twice()))
    assert failed.details["BadRequest"].field_violations[0].field == "content_type"


async def test_an_offset_lies_within_the_blob(edge: Edge, failure: Failure) -> None:
    blob = (await edge.blobs.UploadBlob(requests(b"abc"))).blob
    assert (await download(edge, blob.blob_id, 3))[1] == b""
    for offset in (4, -1):
        request = pb.DownloadBlobRequest(blob_id=blob.blob_id, offset=offset)
        assert (await failure(edge.blobs.DownloadBlob(request))).reason == "INVALID_FIELD"
