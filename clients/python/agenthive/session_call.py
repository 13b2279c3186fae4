"""One stream of a session: frames out, frames in, and why it ended."""

from __future__ import annotations

import asyncio

import grpc

from agenthive.errors import error_from_rpc
from agenthive.v1 import worker_service_pb2 as pb
from agenthive.v1 import worker_service_pb2_grpc


class SessionCall:
    """A call of `WorkerService.Connect`. Read in one task and write in another."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        """Begin the call."""
        self._call = worker_service_pb2_grpc.WorkerServiceStub(channel).Connect(metadata=metadata)

    async def write(self, frame: pb.ConnectRequest) -> bool:
        """Send a frame, as fast as the server takes it; False when the call is over, which `read` explains.

        Cancelled, it ends the call.
        """
        try:
            await self._call.write(frame)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return False
        return True

    async def read(self) -> pb.ConnectResponse | None:
        """Return the next frame, or None when the server has ended the stream; raises the HiveError if it broke.

        Cancelled, it ends the call.
        """
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        return response if isinstance(response, pb.ConnectResponse) else None

    def cancel(self) -> None:
        """End the call; harmless when it is over."""
        self._call.cancel()
