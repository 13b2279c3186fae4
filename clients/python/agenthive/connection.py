# ruff: noqa: ASYNC109 - `timeout` is sent as the deadline of the call, it is not a wait of ours
"""One channel to the control plane, with what goes with every call on it: namespace, token, deadline, errors."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import grpc

from agenthive.errors import error_from_rpc
from agenthive.service_config import call_metadata, open_channel
from agenthive.v1 import (
    blob_service_pb2_grpc,
    messaging_service_pb2_grpc,
    orchestrator_service_pb2_grpc,
    plugin_service_pb2_grpc,
)

if TYPE_CHECKING:
    Request = TypeVar("Request")
    Response = TypeVar("Response")


class Connection:
    """A channel, opened by the first call, and its stubs. What clients of single nouns are mixed into."""

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        namespace: str = "default",
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float = 30.0,
    ) -> None:
        """Keep the settings; nothing is opened. `timeout` is the deadline in seconds of calls that name no other."""
        self.target = target
        self.namespace = namespace
        self.timeout = timeout
        self._credentials = credentials
        self._metadata = call_metadata(namespace, token)

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return open_channel(self.target, self._credentials)

    @cached_property
    def _orchestrator(self) -> orchestrator_service_pb2_grpc.OrchestratorServiceAsyncStub:
        return orchestrator_service_pb2_grpc.OrchestratorServiceStub(self._channel)

    @cached_property
    def _messaging(self) -> messaging_service_pb2_grpc.MessagingServiceAsyncStub:
        return messaging_service_pb2_grpc.MessagingServiceStub(self._channel)

    @cached_property
    def _blobs(self) -> blob_service_pb2_grpc.BlobServiceAsyncStub:
        return blob_service_pb2_grpc.BlobServiceStub(self._channel)

    @cached_property
    def _plugins(self) -> plugin_service_pb2_grpc.PluginServiceAsyncStub:
        return plugin_service_pb2_grpc.PluginServiceStub(self._channel)

    async def close(self) -> None:
        """Close the channel; calls and streams in flight end. Closing twice is harmless."""
        if "_channel" in self.__dict__:
            await self._channel.close()

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None = None,
    ) -> Response:
        """Make one unary call; raises the HiveError of what it fails with. Cancelling it takes nothing back."""
        try:
            return await method(request, timeout=self.timeout if timeout is None else timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error


def new_request_id(given: str | None = None) -> str:
    """Return `given`, or a new id: made once for a call, so that the transport's retries repeat it."""
    return given or uuid4().hex
