"""Payloads too big for a message: up, down, from the middle, and through a task."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import grpc
import pytest
from agenthive import Worker
from agenthive.client import Client
from agenthive.errors import InvalidArgument, NotFound, ResourceExhausted
from agenthive.task_context import TaskContext
from agenthive.v1 import blob_service_pb2 as pb
from agenthive.v1 import payload_pb2, task_pb2
from agenthive_server.testing.bad_input import failure
from agenthive_server.testing.harness import open_process, open_sdk_workers, open_served

MIB = 2**20


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 9 * MIB + 17])
async def test_what_goes_up_comes_down_and_outlives_the_server(tmp_path: Path, size: int) -> None:
    data = content(size)
    async with open_process(tmp_path / "data") as server, Client(server.target) as client:
        blob = await client.upload_blob(data, content_type="application/x-test")
        assert (blob.blob_id, blob.size) == (f"sha256:{hashlib.sha256(data).hexdigest()}", size)
        assert (await client.upload_blob(data)).blob_id == blob.blob_id  # again: harmless
        await server.kill()
        await server.start()
        assert await client.download_blob(blob.blob_id) == data
        for offset in {0, size // 3, size - 1, size} - {-1}:
            assert b"".join([chunk async for chunk in client.blob_chunks(blob.blob_id, offset=offset)]) == data[offset:]


async def test_content_that_is_not_what_was_announced_is_not_kept(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (_, client):
        announced = f"sha256:{hashlib.sha256(b'this').hexdigest()}"
        requests = [pb.UploadBlobRequest(blob_id=announced, chunk=b"that")]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client._blobs.UploadBlob(iter(requests))
        assert failure(caught.value).reason == "DIGEST_MISMATCH"
        assert caught.value.code() == grpc.StatusCode.DATA_LOSS
        with pytest.raises(NotFound):
            await client.download_blob(announced)
        await client.upload_blob(b"this")
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # the promise to check stands when it is there already
            await client._blobs.UploadBlob(iter(requests))
        assert failure(caught.value).reason == "DIGEST_MISMATCH"


async def test_a_blob_that_is_too_large_is_refused_with_its_reason(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data", server__maximum_blob_bytes=2 * MIB) as (_, client):
        large = content(20 * MIB)
        for _ in range(5):  # also when the refusal arrives while more is being sent
            with pytest.raises(ResourceExhausted) as caught:
                await client.upload_blob(large)
            assert caught.value.reason == "MESSAGE_TOO_LARGE"
            assert caught.value.metadata["limit"] == str(2 * MIB)
        assert (await client.upload_blob(content(2 * MIB))).size == 2 * MIB


async def test_an_offset_beyond_the_end_is_refused(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (_, client):
        blob = await client.upload_blob(b"12345")
        for offset in (-1, 6):
            with pytest.raises(InvalidArgument):
                _ = [chunk async for chunk in client.blob_chunks(blob.blob_id, offset=offset)]


async def test_a_task_takes_and_returns_payloads_larger_than_any_message(tmp_path: Path) -> None:
    data = content(6 * MIB)
    async with open_served(tmp_path / "data") as (app, client):
        target = f"127.0.0.1:{app.port}"
        async with Client(target) as own:
            worker = Worker(target, agent_id="worker")

            @worker.task("reverse")
            async def reverse(task: TaskContext) -> Any:
                given = await own.download_blob(task.payload.blob_id)
                return payload_pb2.Payload(blob_id=(await own.upload_blob(given[::-1])).blob_id)

            async with open_sdk_workers(client, worker):
                blob = await client.upload_blob(data)
                given = payload_pb2.Payload(blob_id=blob.blob_id)
                done = await client.delegate("reverse", given, wait=True, timeout=20)
        assert done.state == task_pb2.TASK_STATE_SUCCEEDED
        assert await client.download_blob(done.result.blob_id) == data[::-1]
