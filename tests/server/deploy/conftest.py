"""The shipped configurations on ports of our own, and real replicas behind them."""

from __future__ import annotations

import asyncio
import csv
import re
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from agenthive import Client
from agenthive_server.testing.harness import ServerProcess, end_process, free_port
from agenthive_server.testing.waiting import eventually

DEPLOY = Path(__file__).parents[3] / "server" / "deploy"
PLACES = ("10.0.0.11:50051", "10.0.0.12:50051", "10.0.0.13:50051")
"""The replicas in the shipped files."""

DRAIN_DELAY = 3.0
"""Seconds; 5 is advised, for machines that are further apart."""


def rendered(name: str, *swaps: tuple[str, str], tls: bool = False) -> str:
    """Return a shipped file with some words for others, each of which it has to have; with `tls`, its TLS lines."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    if tls:
        text, count = re.subn(r"^( *)\S[^\n]*\n\1# TLS: ([^\n]*)$", r"\1\2", text, flags=re.MULTILINE)
        assert count >= 2
    for old, new in swaps:
        assert old in text, f"{name} says nothing of {old!r} any more"
        text = text.replace(old, new)
    return text


class Balancer:
    """A process that stands in front of replicas, in a folder with a short name."""

    def __init__(self, folder: Path, port: int, *command: str) -> None:
        self.folder = folder
        self.port = port
        self.command = command
        self.process: asyncio.subprocess.Process | None = None
        self._log = folder / "log"

    @property
    def target(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def log(self) -> str:
        """Return what it said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    async def start(self) -> None:
        """Start it and wait until it listens."""
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*self.command, stdout=log, stderr=log)
        await eventually(self._listens, what=f"{self.command[0]} listens: {self.log()}")

    async def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, self.log()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    async def stop(self) -> None:
        """End it."""
        await end_process(self.process, signal.SIGTERM)


class HAProxy(Balancer):
    """HAProxy, and what it says of the replicas."""

    async def _listens(self) -> bool:
        # It gives its socket a name last.
        return await super()._listens() and (self.folder / "admin").exists()

    async def stats(self, backend: str = "replicas") -> dict[str, dict[str, str]]:
        """Return the row of each replica, by its name."""
        reader, writer = await asyncio.open_unix_connection(str(self.folder / "admin"))
        writer.write(b"show stat\n")
        lines = (await reader.read()).decode().lstrip("# ").splitlines()
        writer.close()
        await writer.wait_closed()
        rows = csv.DictReader(line for line in lines if line)
        return {row["svname"]: row for row in rows if row["pxname"] == backend and row["svname"] != "BACKEND"}

    async def states(self) -> list[str]:
        """Return the states of the replicas, in order; one on its way to another (`UP 1/2`) is still what it was."""
        return [row["status"].split()[0] for row in (await self.stats()).values()]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for a socket in it."""
    made = Path(tempfile.mkdtemp(prefix="hive-"))
    # nginx gives up root for its workers.
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


Opens = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def open_haproxy(haproxy_binary: Path, folder: Path) -> Opens:
    """Run HAProxy with the shipped file in front of replicas; `swaps` are further words to change."""

    @asynccontextmanager
    async def opens(
        *targets: str, swaps: tuple[tuple[str, str], ...] = (), tls: bool = False
    ) -> AsyncIterator[HAProxy]:
        port = free_port()
        config = folder / "haproxy.cfg"
        places = zip(PLACES, (*targets, *(f"127.0.0.1:{free_port()}" for _ in PLACES)), strict=False)
        ours = ("bind :50051", f"bind 127.0.0.1:{port}"), ("127.0.0.1:8404", f"127.0.0.1:{free_port()}")
        socket_path = ("/run/haproxy/admin.sock", str(folder / "admin"))
        config.write_text(rendered("haproxy.cfg", *swaps, *places, *ours, socket_path, tls=tls), encoding="utf-8")
        haproxy = HAProxy(folder, port, str(haproxy_binary), "-f", str(config))
        await haproxy.start()
        try:
            expected = ["UP"] * len(targets) + ["DOWN"] * (len(PLACES) - len(targets))
            while (states := await haproxy.states()) != expected:
                await asyncio.sleep(0.05)
                assert "DOWN" not in states[: len(targets)], haproxy.log()
            yield haproxy
        finally:
            await haproxy.stop()

    return opens


@pytest.fixture
def open_nginx(nginx_binary: Path, folder: Path) -> Opens:
    """Run nginx with the shipped file in front of replicas."""

    @asynccontextmanager
    async def opens(
        *targets: str, swaps: tuple[tuple[str, str], ...] = (), tls: bool = False
    ) -> AsyncIterator[Balancer]:
        port = free_port()
        config = folder / "nginx.conf"
        places = zip(PLACES, (*targets, *(f"127.0.0.1:{free_port()}" for _ in PLACES)), strict=False)
        ours = ("listen 50051", f"listen 127.0.0.1:{port}"), ("/run/nginx.pid", str(folder / "pid"))
        # Folders that only root may write to are built in.
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        scratch = "".join(f"\n    {kind}_temp_path {folder}/{kind};" for kind in kinds)
        # As many files as a process may have open here.
        few = ("worker_rlimit_nofile 65536;\n", ""), ("worker_connections 30000", "worker_connections 500")
        text = rendered("nginx.conf", *swaps, *places, *ours, *few, ("http {", f"http {{{scratch}"), tls=tls)
        config.write_text(text, encoding="utf-8")
        words = ("-c", str(config), "-p", str(folder), "-e", "stderr", "-g", "daemon off;")
        nginx = Balancer(folder, port, str(nginx_binary), *words)
        await nginx.start()
        try:
            yield nginx
        finally:
            await nginx.stop()

    return opens


@pytest.fixture(params=["haproxy", "nginx"])
def open_balancer(request: pytest.FixtureRequest) -> Opens:
    """Each of the two in turn."""
    found: Opens = request.getfixturevalue(f"open_{request.param}")
    return found


@pytest.fixture
def open_replicas(tmp_path: Path) -> Opens:
    """Run servers, each with a store of its own: nothing here depends on what they share."""

    @asynccontextmanager
    async def opens(count: int, *arguments: str, **settings: object) -> AsyncIterator[list[ServerProcess]]:
        given = {"server.drain_delay_seconds": DRAIN_DELAY, **{k.replace("__", "."): v for k, v in settings.items()}}
        servers = [ServerProcess(tmp_path / f"r{n}", *arguments, settings=given) for n in range(count)]
        try:
            # One after the other: together they take longer than one may, where the machine has much else to do.
            for server in servers:
                await server.start()
            yield servers
        finally:
            # Graceful stops are what some tests are about; here it would only take its time.
            await asyncio.gather(*(server.kill() for server in servers))

    return opens


class Callers:
    """Clients that never rest: a call that fails is kept."""

    def __init__(self, target: str, count: int = 2) -> None:
        self.calls = 0
        self.failures: list[str] = []
        self.slowest = 0.0
        self._target = target
        self._count = count
        self._stopped = False

    async def __aenter__(self) -> Callers:
        self._tasks = [asyncio.create_task(self._call()) for _ in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def _call(self) -> None:
        now = asyncio.get_running_loop().time
        async with Client(self._target) as client:
            while not self._stopped:
                began = now()
                try:
                    # One that changes something, and so has a request id, for an agent there is not; one that looks.
                    await client.delegate("nothing", required_capabilities=["nobody-has-it"])
                    await client.health()
                except Exception as error:  # noqa: BLE001 - whatever a caller would see
                    self.failures.append(repr(error))
                self.calls += 1
                self.slowest = max(self.slowest, now() - began)

    async def more(self, count: int) -> None:
        """Wait for so many calls more."""
        wanted = self.calls + count
        await eventually(lambda: self.calls >= wanted, limit=40)


@pytest.fixture
def make_callers() -> type[Callers]:
    """Callers of a target."""
    return Callers


@pytest.fixture(scope="session")
def health_check() -> ModuleType:
    """The shipped script, as a module."""
    spec = spec_from_file_location("health_check", DEPLOY / "health_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def render() -> Callable[..., str]:
    """Return a shipped file with some words for others."""
    return rendered


@pytest.fixture(scope="session")
def deploy() -> Path:
    """The folder of the shipped files."""
    return DEPLOY
