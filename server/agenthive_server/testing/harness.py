"""A whole server in this process on a free port, and one in a process of its own that tests can kill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from agenthive import Worker
from agenthive.client import Client
from agenthive.errors import NotFound

from agenthive_server.app import App
from agenthive_server.plugin.registry import Registry
from agenthive_server.settings import load
from agenthive_server.testing.waiting import eventually

START_LIMIT = 20.0
"""Seconds a server process may take to say SERVING."""

STOP_LIMIT = 40.0
"""Seconds a process may take to end after SIGTERM; then it is killed, and that is an error."""


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def open_app(
    data_dir: Path | None = None, *, registry: Registry | None = None, **settings: object
) -> AsyncIterator[App]:
    """Run a server in this process, without a runner; keys are settings by dotted name with `__` for the dot.

    Without a data directory everything is kept in memory; without a registry the plugins are those installed.
    """
    flags: dict[str, object] = {"server.listen": "127.0.0.1:0", "server.runner": False}
    flags["server.store"] = "memory:" if data_dir is None else None
    flags["server.data_dir"] = str(data_dir) if data_dir else None
    flags.update({name.replace("__", "."): value for name, value in settings.items()})
    app = App(load(flags=flags, environ={}), registry=registry)
    await app.open()
    try:
        yield app
    finally:
        await app.close()


@asynccontextmanager
async def open_served(
    data_dir: Path | None = None, *, registry: Registry | None = None, **settings: object
) -> AsyncIterator[tuple[App, Client]]:
    """Run a server in this process and a client of it."""
    async with open_app(data_dir, registry=registry, **settings) as app, Client(f"127.0.0.1:{app.port}") as client:
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
        """SIGTERM, and wait until it has ended; returns the exit code; TimeoutError when it had to be killed."""
        return await self._end(signal.SIGTERM)

    def log(self) -> str:
        """Return what its processes wrote to stderr so far."""
        return self.errors.read_text(encoding="utf-8", errors="replace") if self.errors.exists() else ""

    async def _end(self, number: signal.Signals) -> int:
        return await end_process(self.process, number)


async def end_process(process: asyncio.subprocess.Process | None, number: signal.Signals) -> int:
    """Send a signal and wait until the process has ended; returns the exit code, 0 where there is none.

    One that does not end within `STOP_LIMIT` is killed, and `TimeoutError` raised.
    """
    if process is None:
        return 0
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
    try:
        async with asyncio.timeout(STOP_LIMIT):
            return await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise


@asynccontextmanager
async def open_process(
    data_dir: Path, *arguments: str, runner: bool = False, settings: Mapping[str, object] | None = None
) -> AsyncIterator[ServerProcess]:
    """Run a server process, and stop it at the end if it still runs."""
    server = ServerProcess(data_dir, *arguments, runner=runner, settings=settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class WorkerProcess:
    """A worker (`worker_program`) in a process of its own, which tests kill, suspend and let go on."""

    def __init__(self, target: str, agent_id: str, *arguments: str, folder: Path) -> None:
        """`arguments` are those of the program; `folder` keeps its journal and its stderr."""
        self.agent_id = agent_id
        self.journal_path = folder / f"{agent_id}.journal"
        self._errors = folder / f"{agent_id}.log"
        self._command = [sys.executable, "-m", "agenthive_server.testing.worker_program", target, agent_id]
        self._command += ["--journal", str(self.journal_path), *arguments]
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process; the agent is there when the server says so."""
        with self._errors.open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(*self._command, stderr=errors)

    def send_signal(self, number: signal.Signals) -> None:
        """Send any signal, for example SIGSTOP and SIGCONT."""
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        await end_process(self.process, signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM, and wait until it has ended; returns the exit code."""
        return await end_process(self.process, signal.SIGTERM)

    def journal(self) -> list[dict[str, Any]]:
        """Return what it noted of its tasks, in order."""
        if not self.journal_path.exists():
            return []
        return [json.loads(line) for line in self.journal_path.read_text(encoding="utf-8").splitlines()]


@asynccontextmanager
async def open_worker(target: str, agent_id: str, *arguments: str, folder: Path) -> AsyncIterator[WorkerProcess]:
    """Run a worker process; it is killed at the end if it still runs."""
    worker = WorkerProcess(target, agent_id, *arguments, folder=folder)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.kill()


@asynccontextmanager
async def open_sdk_workers(client: Client, *workers: Worker) -> AsyncIterator[None]:
    """Run workers in this process, once the server knows all their agents; they leave at the end without a word."""
    running = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        for worker in workers:
            await eventually(partial(_in_contact, client, worker.agent_id), what=f"{worker.agent_id} is there")
        yield
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _in_contact(client: Client, agent_id: str) -> bool:
    try:
        return bool((await client.get_agent(agent_id)).session_id)
    except NotFound:
        return False
