"""The runner that a server starts for itself: one process, started again when it dies, stopped with the server."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

JoinToken: TypeAlias = Callable[[], Awaitable[str]]
"""Makes a secret with which one runner may join, once. What it raises delays the start of the runner."""

_log = logging.getLogger(__name__)

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds between two starts of a runner that keeps dying."""

STOP_LIMIT = 60.0
"""Seconds a runner may take to stop its agents before it is killed; its guard then kills what is left."""


class LocalRunner:
    """Keeps one runner alive beside the server. One of this data directory that still lives is left to reconnect."""

    def __init__(
        self,
        arguments: Sequence[str],
        data_dir: Path,
        *,
        keep: bool,
        environment: Mapping[str, str] | None = None,
        join_token: JoinToken | None = None,
    ) -> None:
        """`arguments` follow `agenthived runner`; `keep` starts it in a session of its own and never stops it.

        `join_token` makes a token for each start, with which the runner joins: it goes through a pipe, so that neither
        `ps` nor an environment shows it. `environment` is the runner's; by default it is ours.
        """
        self._command = [sys.executable, "-m", "agenthive_server", "runner", *arguments]
        if join_token is not None:
            self._command += ["--join-token-file", "-"]
        self._join_token = join_token
        self._environment = environment
        self._folder = data_dir / "runner"
        self._keep = keep
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Start it, and start it again whenever it ends by itself, until cancelled or stopped."""
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            if _locked(self._folder):
                await asyncio.sleep(1.0)
                continue
            began = asyncio.get_running_loop().time()
            code = await self._live()
            if self._stopping.is_set():
                return
            lived = asyncio.get_running_loop().time() - began
            pause = FIRST_PAUSE if lived > LONGEST_PAUSE else min(LONGEST_PAUSE, 2 * pause)
            _log.warning("the local runner ended with %s; it is started again in %.1f s", code, pause)
            await asyncio.sleep(pause)

    async def _live(self) -> int | str:
        """Start it, wait for its end, and return its exit code, or why it could not be started."""
        try:
            token = "" if self._join_token is None else await self._join_token()
        except Exception as error:  # noqa: BLE001 - a defect in what makes it must not be the end of all agents
            _log.exception("no join token for the local runner")
            return f"no join token ({type(error).__name__})"
        if self._stopping.is_set():
            return "no start"
        # Not our standard output: a runner that outlives us would hold it open for whoever reads it to its end.
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE if token else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=self._keep,
            env=self._environment,
        )
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._process.stdin.write(token.encode())
                await self._process.stdin.drain()
            self._process.stdin.close()
        return await self._process.wait()

    async def stop(self) -> None:
        """Stop it, wait until it has stopped its agents, kill it if it does not end. Does nothing with `keep`."""
        self._stopping.set()
        if self._keep:
            return
        # Ours may be about to find that one of an earlier server was faster: both have to go.
        ours = self._process.pid if self._process and self._process.returncode is None else 0
        pids = {ours, _living(self._folder)} - {0}
        if not pids:
            return
        _send(pids, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_LIMIT):
                await self._gone()
        except TimeoutError:
            _log.error("the local runner did not stop within %.0f s and is killed", STOP_LIMIT)
            _send(pids, signal.SIGKILL)

    async def _gone(self) -> None:
        if self._process is not None and self._process.returncode is None:
            await self._process.wait()
        while _locked(self._folder):  # noqa: ASYNC110 - it may be another server's child, which nobody tells us of
            await asyncio.sleep(0.05)


def _send(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _locked(folder: Path) -> bool:
    """Whether a runner of this data directory lives."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _living(folder: Path) -> int:
    """Return the process id of the runner that lives here, as it has written itself; 0 when none does."""
    if not _locked(folder):
        return 0
    try:
        return int((folder / "lock").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
