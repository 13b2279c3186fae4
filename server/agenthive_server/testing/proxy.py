"""A small TCP proxy: a test cuts the connection of one client while the server and all others know nothing of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


def _address(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    return host, int(port)


class Proxy:
    """Passes bytes on between its own port and a target, until it is told to cut or to hold its tongue."""

    def __init__(self, *targets: str) -> None:
        """`targets` are HOST:PORT; connections go to them in turn, and past those that do not take one."""
        self._targets = deque(_address(target) for target in targets)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        # What is not passed on any more, and all is cut instead; empty: nothing of the kind.
        self.cut_at = b""
        self.connections = 0
        self.port = 0

    @property
    def target(self) -> str:
        """HOST:PORT of the proxy itself."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Cut everything and stop listening."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    def cut(self, *, refuse: bool = True) -> None:
        """Reset every connection; with `refuse` new ones end at once too, until `mend`."""
        self._refusing = refuse
        for writer in list(self._writers):
            writer.transport.abort()

    def freeze(self) -> None:
        """Pass nothing on, and keep the connections open: a network that swallows."""
        self._open.clear()

    def mend(self) -> None:
        """Pass on again, what was held back included, and take new connections."""
        self._refusing = False
        self._open.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            there_reader, there_writer = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        self.connections += 1
        self._writers |= {writer, there_writer}
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(self._pass_on(source, sink))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the next target that takes it; raises `OSError` when none does."""
        for _ in range(len(self._targets) - 1):
            self._targets.rotate(-1)
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(*self._targets[-1])
        self._targets.rotate(-1)
        return await asyncio.open_connection(*self._targets[-1])

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, OSError):
                while block := await source.read(65_536):
                    await self._open.wait()
                    if self.cut_at and self.cut_at in block:
                        self.cut()
                        return
                    sink.write(block)
                    await sink.drain()
        finally:
            self._writers.discard(sink)
            sink.transport.abort()


@asynccontextmanager
async def open_proxy(*targets: str) -> AsyncIterator[Proxy]:
    """Run a proxy before one target, or several in turn."""
    proxy = Proxy(*targets)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
