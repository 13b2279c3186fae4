"""A small HTTP/1.1 endpoint for probes and scrapers: `/healthz`, `/readyz`, `/metrics`. Nothing can be changed by it.

One answer for each connection, which is then closed. A request has to be there within seconds and to be small, and an
answer has to be taken within seconds, so that nobody can occupy it by being slow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from agenthive_server.exposition import OPEN, PLAIN, exposed
from agenthive_server.rpc.exposure import is_loopback
from agenthive_server.rpc.health import Board
from agenthive_server.telemetry import Sample

MOST_CONNECTIONS: Final = 64
REQUEST_BYTES: Final = 8 * 1024
REQUEST_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 10.0

TEXT: Final = "text/plain; charset=utf-8"

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}

_log = logging.getLogger(__name__)


class CannotServe(Exception):
    """The endpoint cannot be opened: a sentence for the operator."""


class Answer(NamedTuple):
    """What is answered."""

    status: int
    body: bytes
    content_type: str = TEXT


Route = Callable[[Mapping[str, str]], Answer]
"""Makes an answer from the headers of a request (names in lower case), at once."""


def require_private(address: str, *, insecure: bool) -> tuple[str, int]:
    """Return host and port of an address. Raises `CannotServe` when it is none, or others could reach it."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise CannotServe(f"web {address!r}: expected HOST:PORT, or off")
    host = host.strip("[]")
    if not is_loopback(host):
        if not insecure:
            raise CannotServe(
                f"web {address!r} is reachable from other machines, and nothing protects it: choose 127.0.0.1 and let"
                " something on this machine pass it on, or say --insecure if something else protects it"
            )
        _log.warning("web: answering on %s without TLS or authentication, as told by --insecure", address)
    return host, int(port)


class Web:
    """The endpoint: `open`, then `close`. `port` is where it listens."""

    def __init__(self, board: Board, samples: Callable[[], Iterable[Sample]]) -> None:
        self.port = 0
        self._board = board
        self._samples = samples
        self._routes: dict[str, Route] = {
            "/healthz": lambda _: Answer(200, b"ok\n"),
            "/readyz": self._ready,
            "/metrics": self._metrics,
        }
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def open(self, host: str, port: int) -> None:
        """Listen; raises `CannotServe`."""
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=REQUEST_BYTES)
        except OSError as error:
            raise CannotServe(f"web {host}:{port}: {error.strerror or error}") from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Listen no more, and end what is being answered."""
        if self._server is not None:
            self._server.close()
            for task in tuple(self._serving):
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            await self._server.wait_closed()

    # Routes ---------------------------------------------------------------------------------------------------------

    def _ready(self, _headers: Mapping[str, str]) -> Answer:
        if self._board.serving:
            return Answer(200, b"ready\n")
        return Answer(503, b"draining\n" if self._board.draining else b"not ready: see HealthCheck\n")

    def _metrics(self, headers: Mapping[str, str]) -> Answer:
        openmetrics = "application/openmetrics-text" in headers.get("accept", "")
        return Answer(200, exposed(self._samples(), openmetrics=openmetrics), OPEN if openmetrics else PLAIN)

    # Connections ----------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._serving.add(task)
        try:
            # So that taking the answer is waited for to its end.
            writer.transport.set_write_buffer_limits(high=0)
            await self._serve(reader, writer, busy=len(self._serving) > MOST_CONNECTIONS)
        except (OSError, TimeoutError):
            writer.transport.abort()
        finally:
            self._serving.discard(task)
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, busy: bool) -> None:
        head = True
        if busy:
            answer = Answer(503, b"too many connections\n")
        else:
            answer, head = await self._answer(reader)
        async with asyncio.timeout(ANSWER_SECONDS):
            writer.write(_encoded(answer, body=head))
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        """Read a request and return the answer, and whether its body is wanted."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                request = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            return Answer(408, b"the request did not come in time\n"), True
        except asyncio.LimitOverrunError:
            return Answer(431, b"the request is too long\n"), True
        except asyncio.IncompleteReadError as cut:
            if not cut.partial:
                raise ConnectionResetError from None
            return Answer(400, b"the request is cut off\n"), True
        return self._dispatch(request)

    def _dispatch(self, request: bytes) -> tuple[Answer, bool]:
        line, *fields = request.decode("latin-1").split("\r\n")
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/"):
            return Answer(400, b"not an HTTP request\n"), True
        method, target, version = words
        if not version.startswith("HTTP/1."):
            return Answer(505, b"HTTP/1.1 is spoken here\n"), True
        if method not in ("GET", "HEAD"):
            return Answer(405, b"GET is all that is answered here\n"), True
        headers = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in fields)}
        route = self._routes.get(target.partition("?")[0])
        if route is None:
            return Answer(404, f"there are {', '.join(self._routes)}\n".encode()), method == "GET"
        try:
            return route(headers), method == "GET"
        except Exception:  # noqa: BLE001 - a source of metrics that fails must not look like a server that is gone
            _log.exception("web: %s failed", target.partition("?")[0])
            return Answer(503, b"this failed; the server's log says why\n"), True


def _encoded(answer: Answer, *, body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
        "Cache-Control: no-store\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        f"{'Allow: GET, HEAD' if answer.status == 405 else 'Vary: Accept'}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (answer.body if body else b"")
