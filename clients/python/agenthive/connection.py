# ruff: noqa: ASYNC109 - `timeout` is sent as the deadline of the call, it is not a wait of ours
"""One channel to the control plane, with what goes with every call on it: namespace, token, deadline, errors."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import grpc

from agenthive.access import DEFAULT_TARGET, Access
from agenthive.errors import DeadlineExceeded, error_from_rpc
from agenthive.transport_errors import why_unreachable
from agenthive.v1 import (
    blob_service_pb2_grpc,
    messaging_service_pb2_grpc,
    orchestrator_service_pb2_grpc,
    plugin_service_pb2_grpc,
)

if TYPE_CHECKING:
    from typing import Unpack

    from agenthive.access import AccessOptions, Metadata

    Request = TypeVar("Request")
    Response = TypeVar("Response")


class Connection:
    """A channel, opened by the first call, and its stubs. What clients of single nouns are mixed into."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        namespace: str = "default",
        timeout: float = 30.0,
        **access: Unpack[AccessOptions],
    ) -> None:
        """Keep the settings; nothing is connected. `timeout` is the deadline in seconds of calls that name no other.

        `access`: token, authority, certificate and key, see AccessOptions; the environment counts where they say
        nothing. Raises AccessError, a ValueError, when they make no sense or a file cannot be read.
        """
        self.target = target
        self.namespace = namespace
        self.timeout = timeout
        self._access = Access(target, namespace, **access)

    @property
    def _metadata(self) -> Metadata:
        return self._access.metadata()

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return self._access.open_channel()

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
            failure = error_from_rpc(error)
            if isinstance(failure, DeadlineExceeded):
                failure.message = await self._no_connection() or failure.message
            raise failure from error

    async def _no_connection(self) -> str:
        """Return that there is no connection, and why; empty when there is one: the server did not answer then."""
        if self._channel.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            return ""
        why = await why_unreachable(self._channel, tls=self._access.tls)
        return f"no connection to {self.target}{f': {why}' if why else ''}"


def new_request_id(given: str | None = None) -> str:
    """Return `given`, or a new id: made once for a call, so that the transport's retries repeat it."""
    return given or uuid4().hex
