"""The processes of the demo: a server with its runner and fleet, and a worker, in a data directory of their own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

EXAMPLES = Path(__file__).resolve().parents[1]
START_SECONDS = 30.0
STOP_SECONDS = 60.0


class HiveFailed(Exception):
    """A process of the hive did not do what it should: a sentence."""


class Hive:
    """A server and a worker. Leaving the context stops both, and removes their data."""

    def __init__(self) -> None:
        self.address = ""
        self.folder = Path()
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def __aenter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="agenthive-demo-"))
        try:
            data, fleet = str(self.folder / "data"), str(EXAMPLES / "fleet.toml")
            listen = ("--listen", "127.0.0.1:0")
            server = await self._start(
                "server", "-m", "agenthive_server", "serve", "--config", fleet, "--data-dir", data, *listen
            )
            self.address = await self._serving(server)
            await self._start("summarist", str(EXAMPLES / "agents" / "summarist.py"), self.address)
        except BaseException as failure:
            await self.__aexit__(type(failure), failure, failure.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What went wrong first is what is told.
        with contextlib.suppress(*[HiveFailed] if error else []):
            try:
                await self.stop()
            finally:
                self.remove()

    async def _start(self, name: str, *arguments: str) -> asyncio.subprocess.Process:
        """Start a Python process in a session of its own: Ctrl-C reaches the demo alone, which stops the rest."""
        with self._log(name).open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if name == "server" else log,
                stderr=log,
                start_new_session=True,
            )
        self._processes[name] = process
        return process

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    async def _serving(self, server: asyncio.subprocess.Process) -> str:
        assert server.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                line = (await server.stdout.readline()).decode()
        except TimeoutError:
            line = ""
        if found := re.match(r"SERVING (\S+)", line):
            return found[1]
        raise HiveFailed(f"the server did not start: {self.last_words('server') or 'it said nothing'}")

    def last_words(self, name: str) -> str:
        """Return the end of a process's log."""
        return self._log(name).read_text("utf-8", "replace").strip()[-2000:]

    async def stop(self) -> None:
        """Stop the worker, then the server with its runner and agents. Raises `HiveFailed` for one that ends badly."""
        complaints = []
        for name in ("summarist", "server"):
            if (process := self._processes.pop(name, None)) is not None:
                complaints += await self._stop(name, process)
        if complaints:
            raise HiveFailed("; ".join(complaints))

    async def _stop(self, name: str, process: asyncio.subprocess.Process) -> list[str]:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                code = await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            return [f"the {name} did not stop within {STOP_SECONDS:.0f} s and was killed"]
        return [f"the {name} ended with {code}: {self.last_words(name)}"] if code else []

    def remaining(self) -> list[str]:
        """Return the command lines of this hive's processes: its folder is in their words or environment."""
        mark, found = str(self.folder).encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
            except OSError:
                continue
            if mark in words or mark in environment:
                found.append(process.name + " " + words.replace(b"\0", b" ").decode("utf-8", "replace").strip())
        return found

    def remove(self) -> None:
        """Remove its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
