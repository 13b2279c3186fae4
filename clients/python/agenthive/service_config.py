"""How channels to the control plane are set up: retries, keepalive and size limits, as constants."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import grpc

from agenthive.v1 import blob_service_pb2, messaging_service_pb2, orchestrator_service_pb2, plugin_service_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.descriptor import ServiceDescriptor

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""Largest message a client takes. What a server takes is the server's limit (4 MiB by default)."""

RETRY_POLICY: Final = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    # CANCELLED is what a stopping gRPC server gives a call that arrives at that moment.
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}

_SERVICES: Final[tuple[ServiceDescriptor, ...]] = (
    orchestrator_service_pb2.DESCRIPTOR.services_by_name["OrchestratorService"],
    messaging_service_pb2.DESCRIPTOR.services_by_name["MessagingService"],
    blob_service_pb2.DESCRIPTOR.services_by_name["BlobService"],
    plugin_service_pb2.DESCRIPTOR.services_by_name["PluginService"],
)

# Streams are left out: they resume by their cursor, and waiting for ready without a deadline would be for ever.
UNARY_METHODS: Final = [
    {"service": service.full_name, "method": method.name}
    for service in _SERVICES
    for method in service.methods
    if not (method.client_streaming or method.server_streaming)
]
"""The methods the transport repeats by itself; the clients give each mutating one a `request_id`."""

SERVICE_CONFIG: Final = json.dumps(
    {"methodConfig": [{"name": UNARY_METHODS, "waitForReady": True, "retryPolicy": RETRY_POLICY}]}
)
"""The gRPC service config every client ships, as JSON."""

CHANNEL_OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.enable_retries", 1),
    # A request larger than this is not repeated by the transport; the default is 256 KiB.
    ("grpc.per_rpc_retry_buffer_size", 8 * 1024 * 1024),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Channels share connections by default; then a new channel would go back to the replica that sends us away.
    ("grpc.use_local_subchannel_pool", 1),
)
"""Options of every channel."""


def open_channel(
    target: str,
    credentials: grpc.ChannelCredentials | None = None,
    options: Sequence[tuple[str, str | int]] = CHANNEL_OPTIONS,
) -> grpc.aio.Channel:
    """Return a channel with a connection of its own, not connected yet; without credentials it is plain text.

    Call it inside the event loop that uses the channel, and close the channel when done.
    """
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=list(options))
    return grpc.aio.secure_channel(target, credentials, options=list(options))


def call_metadata(namespace: str, token: str | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata of every call: the namespace, and the bearer token if there is one."""
    metadata = (("agenthive-namespace", namespace),)
    return metadata if token is None else (*metadata, ("authorization", f"Bearer {token}"))
