"""The gRPC server: built, bound, stopped in the right order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import grpc

from agenthive_server.kernel.clock import Clock

from .adapter import MESSAGE_LIMIT, Adapter
from .health import Board
from .tls import ServerTls

HARD_LIMIT: Final = 4
"""gRPC itself refuses messages this many times larger than our limit, with an error that names neither."""


class CannotListen(Exception):
    """An address cannot be listened on: a sentence for the operator."""


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where and how the server listens. Times in seconds; None switches off."""

    addresses: tuple[str, ...] = ("127.0.0.1:50051",)
    tls: ServerTls | None = None
    """Without it everything is plain text."""
    client_certificates: bool = False
    """Whether `addresses` are for clients with a certificate only. gRPC cannot ask for one and go on without."""
    mutual_addresses: tuple[str, ...] = ()
    """Further addresses that are for those only."""
    message_limit: int = MESSAGE_LIMIT
    keepalive: float | None = 60.0
    keepalive_timeout: float = 20.0
    max_connection_age: float | None = None
    """When a client is told to take another connection. What is open on this one goes on: streams end by themselves."""


def _options(listening: Listening) -> list[tuple[str, int]]:
    options = [
        # A port in use is an error, not shared.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", HARD_LIMIT * listening.message_limit),
        ("grpc.max_send_message_length", -1),
        # Pings every 10 s are permitted, also without calls; a little less, for clocks differ.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 9_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    if listening.keepalive is not None:
        options.append(("grpc.keepalive_time_ms", int(listening.keepalive * 1e3)))
        options.append(("grpc.keepalive_timeout_ms", int(listening.keepalive_timeout * 1e3)))
        options.append(("grpc.http2.max_pings_without_data", 0))
    if listening.max_connection_age is not None:
        # gRPC adds its own jitter of 10 %, and waits for the streams of the connection for as long as they take.
        options.append(("grpc.max_connection_age_ms", int(listening.max_connection_age * 1e3)))
    return options


def _check_free(address: str) -> None:
    """Raise `CannotListen` with the system's reason unless all of what an address stands for can be listened on.

    gRPC is content with one of several (`localhost` in use on IPv4 but not on IPv6), and does not say why.
    """
    if address.startswith("unix"):
        return
    host, _, port = address.rpartition(":")
    try:
        if not 0 <= int(port) <= 65_535:
            raise CannotListen(f"cannot listen on {address}: a port is between 0 and 65535")
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, target in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(target)
                probe.listen(1)
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "not an address"
        raise CannotListen(f"cannot listen on {address}: {reason}") from error


class Server:
    """A bound server; `ports` are those of the addresses, in their order."""

    def __init__(self, adapter: Adapter, listening: Listening) -> None:
        """Bind all addresses, the mutual ones last; raises `CannotListen`."""
        self._server = grpc.aio.server(options=_options(listening))
        self._server.add_generic_rpc_handlers((adapter,))
        bound = [(address, listening.client_certificates) for address in listening.addresses]
        bound += [(address, True) for address in listening.mutual_addresses]
        self.ports = tuple(self._bind(address, listening.tls, mutual) for address, mutual in bound)

    def _bind(self, address: str, tls: ServerTls | None, mutual: bool) -> int:
        _check_free(address)
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, tls.credentials(require_client_certificate=mutual))
        except (RuntimeError, ValueError) as error:
            raise CannotListen(f"cannot listen on {address}") from error
        if not port and not address.startswith("unix"):
            raise CannotListen(f"cannot listen on {address}")
        return port

    async def start(self) -> None:
        """Begin to answer."""
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Take no new calls; let those in flight finish within `grace` seconds, then end them."""
        await self._server.stop(grace)


async def drain(
    server: Server,
    board: Board,
    clock: Clock,
    *,
    delay: float,
    grace: float,
    end_streams: Iterable[Callable[[], None]],
    give_up: Callable[[], None],
    hurry: asyncio.Event,
) -> None:
    """Stop serving, in the order that loses nothing.

    NOT_SERVING on the board → all calls are served on for `delay` seconds, while balancers notice → `end_streams`, one
    after the other (waits answer, event streams get a last cursor, sessions are told to reconnect) → no new calls,
    those in flight finish within `grace` seconds; then `give_up`, for those that wait for a database which may never
    come back. `hurry` skips the waiting. The caller flushes the committer then.
    """
    board.drain()
    if delay > 0 and not hurry.is_set():
        await _either(clock.sleep(delay), hurry)
    for end in end_streams:
        end()
    stopping = asyncio.ensure_future(server.stop(grace))
    await _either(asyncio.wait((stopping,), timeout=grace), hurry)
    give_up()
    # At the end of the grace gRPC hangs up by itself; to be told so at that moment once more, it does not survive.
    if hurry.is_set() and not stopping.done():
        await server.stop(0)
    await stopping


async def _either(first: object, hurry: asyncio.Event) -> None:
    """Wait for the first, or until it has to go fast."""
    tasks = [asyncio.ensure_future(first), asyncio.create_task(hurry.wait())]  # type: ignore[call-overload]  # awaitable
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
