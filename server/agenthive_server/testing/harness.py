"""A whole server in this process on a free port, and one in a process of its own that tests can kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from agenthive.client import Client

from agenthive_server.app import App
from agenthive_server.settings import load

START_LIMIT = 20.0
"""Seconds a server process may take to say SERVING."""


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def open_app(data_dir: Path | None = None, **settings: object) -> AsyncIterator[App]:
    """Run a server in this process, without a runner; keys are settings by dotted name with `__` for the dot.

    Without a data directory everything is kept in memory.
    """
    flags: dict[str, object] = {"server.listen": "127.0.0.1:0", "server.runner": False}
    flags["server.store"] = "memory:" if data_dir is None else None
    flags["server.data_dir"] = str(data_dir) if data_dir else None
    flags.update({name.replace("__", "."): value for name, value in settings.items()})
    app = App(load(flags=flags, environ={}))
    await app.open()
    try:
        yield app
    finally:
        await app.close()


@asynccontextmanager
async def open_served(data_dir: Path | None = None, **settings: object) -> AsyncIterator[tuple[App, Client]]:
    """Run a server in this process and a client of it."""
    async with open_app(data_dir, **settings) as app, Client(f"127.0.0.1:{app.port}") as client:
        yield app, client


class ServerProcess:
    """`agenthived serve` in a process of its own, on a port that stays the same over restarts."""

    def __init__(
        self,
        data_dir: Path,
        *arguments: str,
        port: int | None = None,
        runner: bool = False,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """`settings` by dotted name, for example `{"limits.reconnect_grace_seconds": 2}`."""
        self.data_dir = data_dir
        self.settings = {f"AGENTHIVE_{k.upper().replace('.', '__')}": str(v) for k, v in (settings or {}).items()}
        self.port = port or free_port()
        self.arguments = [*arguments, *([] if runner else ["--no-runner"])]
        self.process: asyncio.subprocess.Process | None = None
        self.errors = data_dir / "server.log"

    @property
    def target(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it and wait until it says SERVING; raises `RuntimeError` with its log when it does not."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "agenthive_server", "serve", "--listen", self.target]
        command += ["--data-dir", str(self.data_dir), *self.arguments]
        with self.errors.open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **self.settings},  # noqa: TID251 - a child needs the PATH of this test
            )
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(START_LIMIT):
                line = await self.process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line.startswith(b"SERVING"):
            await self.kill()
            raise RuntimeError(f"the server did not start: {line!r}\n{self.errors.read_text()[-4000:]}")

    async def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM, and wait until it has ended; returns the exit code."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await self.process.wait()


@asynccontextmanager
async def open_process(
    data_dir: Path, *arguments: str, runner: bool = False, settings: Mapping[str, object] | None = None
) -> AsyncIterator[ServerProcess]:
    """Run a server process; it is killed at the end if it still runs."""
    server = ServerProcess(data_dir, *arguments, runner=runner, settings=settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
