"""Stores on schemas of their own, and a network that fails when it matters."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from agenthive_server.kernel.clock import Clock, SystemClock
from agenthive_server.storage.postgres.dial import Connection, Dialer
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.postgres import PostgresServer

_SCHEMAS = itertools.count()
_COMMIT = b"COMMIT\x00"


class _End(asyncio.Protocol):
    """One end of what is passed on; `send` takes what arrives here."""

    def __init__(self, send: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._send = send
        self._lost = lost

    def data_received(self, data: bytes) -> None:
        self._send(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost()


class _Line:
    """One connection: a client's end here, the server's end there, and whether anything is passed on either way."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._waiting: list[bytes] = []
        self._here: asyncio.Transport | None = None
        self._there: asyncio.Transport | None = None
        self._to_client = self._to_server = True

    def accept(self) -> asyncio.Protocol:
        end = _End(self._from_client, self._client_lost)
        end.connection_made = self._accepted  # type: ignore[method-assign] # it is told of here
        return end

    def _accepted(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._here = transport
        if self._network.down:
            transport.abort()
            return
        self._network.lines.add(self)
        self._network.connecting(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        end = _End(self._from_server, self._server_lost)
        self._there, _ = await loop.create_connection(lambda: end, "127.0.0.1", self._network.target)
        for block in self._waiting:
            self._there.write(block)

    def _from_client(self, block: bytes) -> None:
        commits = self._network.commits
        if _COMMIT in block and commits:
            self._spoil(commits.pop(0), block)
        elif self._there is None:
            self._waiting.append(block)
        elif self._to_server:
            self._there.write(block)

    def _spoil(self, how: str, block: bytes) -> None:
        assert self._here is not None
        assert self._there is not None
        self._to_client = self._to_server = False
        if how == "unanswered":
            self._there.write(block)
        elif how == "lost":
            self._there.abort()
        if how != "unanswered":
            self._here.abort()

    def _from_server(self, block: bytes) -> None:
        assert self._here is not None
        if self._to_client:
            self._here.write(block)
        else:
            # The answer to a COMMIT that is to be lost.
            self._here.abort()

    def _client_lost(self) -> None:
        if self._there is not None and self._to_server:
            self._there.abort()

    def _server_lost(self) -> None:
        if self._here is not None:
            self._here.abort()

    def cut(self) -> None:
        for transport in (self._here, self._there):
            if transport is not None:
                transport.abort()

    def mute(self) -> None:
        for transport in (self._here, self._there):
            if transport is not None and not transport.is_closing():
                transport.pause_reading()


class Network:
    """What lies between a store and its database: passes everything on, but for the COMMITs it is told to spoil.

    `commits` holds what happens to the next ones: `lost` on the way there; `unanswered`, lost on the way back;
    `stuck`, so that the session lives on at the other end and knows nothing.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.lines: set[_Line] = set()
        self.commits: list[str] = []
        self.down = False
        self.port = 0
        self._connecting: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Line(self).accept(), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*self._connecting)
        self.cut()
        await asyncio.sleep(0)

    def connecting(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def mute(self) -> None:
        """Pass nothing on any more that belongs to a connection there is, and let nobody know."""
        for line in self.lines:
            line.mute()

    def cut(self) -> None:
        """Reset every connection."""
        for line in self.lines:
            line.cut()


@pytest.fixture
async def network(postgres: PostgresServer) -> AsyncIterator[Network]:
    network = Network(postgres.port)
    await network.start()
    yield network
    await network.close()


@pytest.fixture
def schema() -> str:
    return f"test{next(_SCHEMAS)}"


@pytest.fixture
def url(postgres: PostgresServer, schema: str) -> str:
    return postgres.url(schema)


@pytest.fixture
async def admin(url: str) -> AsyncIterator[Connection]:
    """A connection beside the store, in its schema."""
    connection = await Dialer(url, SystemClock()).connect(idle_in_transaction_session_timeout="0")
    yield connection
    await connection.close(timeout=5)


@pytest.fixture
async def new_store(url: str) -> AsyncIterator[Callable[..., PostgresStore]]:
    """Makes stores on one place, closed at the end."""
    made: list[PostgresStore] = []

    def make(at: str = url, clock: Clock | None = None, now: Callable[[], float] | None = None) -> PostgresStore:
        made.append(PostgresStore(at, clock=clock or SystemClock(), now=now))
        return made[-1]

    yield make
    for store in made:
        await store.close()


@pytest.fixture
async def store(new_store: Callable[..., PostgresStore]) -> PostgresStore:
    store = new_store()
    await store.open()
    return store


@pytest.fixture
async def distant(
    network: Network, new_store: Callable[..., PostgresStore], postgres: PostgresServer, schema: str
) -> PostgresStore:
    """A store that reaches its database through the network."""
    store = new_store(postgres.url(schema, port=network.port))
    await store.open()
    return store
