"""Starts processes that cannot outlive the runner, and ends them with everything they started."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agenthive_server.runner import confine
from agenthive_server.runner.driver import Exit
from agenthive_server.runner.pipes import ReadPipe, WritePipe
from agenthive_server.runner.tree import PATIENCE, ProcessId, find_process, kill_tree

_SET_DUMPABLE = 4
_SET_CHILD_SUBREAPER = 36
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits of a process; zero means what the runner itself has."""

    memory_bytes: int = 0
    cpu_seconds: int = 0
    open_files: int = 0
    file_bytes: int = 0

    def as_rlimits(self) -> dict[str, tuple[int, int]]:
        """Soft and hard limits by name, never above the hard limits of this process; no core files."""
        wanted = {"AS": self.memory_bytes, "NOFILE": self.open_files, "FSIZE": self.file_bytes}
        limits = {name: (value, value) for name, value in wanted.items() if value > 0}
        if self.cpu_seconds > 0:
            limits["CPU"] = (self.cpu_seconds, self.cpu_seconds + 5)  # SIGXCPU first: it says why
        return {"CORE": (0, 0)} | {name: _below_hard(name, *pair) for name, pair in limits.items()}


def _below_hard(name: str, soft: int, hard: int) -> tuple[int, int]:
    ceiling = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]
    return (soft, hard) if ceiling == resource.RLIM_INFINITY else (min(soft, ceiling), min(hard, ceiling))


@dataclass(frozen=True, slots=True)
class Command:
    """What to start: an absolute program with arguments, its whole environment, its folder, its limits."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    limits: Limits
    marker: str


class Launcher:
    """Starts the processes of one runner and knows which children of the runner are whose."""

    def __init__(self, search_path: str = SEARCH_PATH, patience: float = PATIENCE) -> None:
        """`search_path` is the PATH agents get; `patience` the seconds between SIGTERM and SIGKILL."""
        self.search_path = search_path
        self.patience = patience
        self.leaders: set[int] = set()
        """Processes started here whose tree was not verified to be empty yet."""
        self.guard = 0
        """The guard of the runner, which is no stray either."""
        self._adopts = False
        self._open_files = 0
        programs = [shutil.which(name, path=SEARCH_PATH) for name in ("setpriv", "prlimit")]
        self._programs = [program for program in programs if program]

    def own_process(self) -> None:
        """Make this process a runner's, and nothing else.

        It becomes the parent of every orphan below it and waits for each; its environment cannot be read by its
        agents, unless they are root; it may open as many files as it is allowed to, its agents as many as before.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        self._adopts = libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._open_files = soft

    def spawn(self, command: Command) -> Child:
        """Start a process as leader of a session and group of its own.

        Raises OSError when that fails and ValueError for a null byte. Must be called in the main thread: the
        process dies with the thread that started it.
        """
        popen = subprocess.Popen(
            [*self._confinement(command.limits), *command.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=command.folder,
            env=dict(command.environment),
            start_new_session=True,
            umask=0o077,
        )
        try:
            child = Child(popen, command.marker, self)
        except OSError:  # no descriptor left
            popen.kill()
            popen.communicate()
            raise
        self.leaders.add(popen.pid)
        return child

    def _confinement(self, limits: Limits) -> list[str]:
        rlimits = replace(limits, open_files=limits.open_files or self._open_files).as_rlimits()
        if len(self._programs) < 2:
            script = [sys.executable, "-I", "-S", confine.__file__]
            return [*script, str(os.getpid()), json.dumps(rlimits)]
        options = [f"--{name.lower()}={soft}:{hard}" for name, (soft, hard) in rlimits.items()]
        setpriv, prlimit = self._programs
        return [setpriv, "--pdeathsig", "KILL", "--no-new-privs", "--", prlimit, *options, "--"]

    def strays(self) -> set[int] | None:
        """Living orphans this process has adopted; None when it does not adopt. Waits for the dead ones."""
        if not self._adopts:
            return None
        try:
            lists = [Path(f"/proc/self/task/{thread}/children").read_text() for thread in os.listdir("/proc/self/task")]
        except OSError:
            return None
        found = {int(pid) for children in lists for pid in children.split()} - self.leaders - {self.guard}
        for pid in list(found):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    found.discard(pid)
        return found

    async def kill_strays(self) -> None:
        """Kill every orphan that is adopted by now, with its tree, whoever it belonged to."""
        for pid in self.strays() or ():
            if process := find_process(pid):
                await kill_tree([ProcessId(pid, process.start_time)], "", self.patience)
        self.strays()


class Child:
    """One process that was started, with its pipes. It is waited for only when its tree is gone.

    Until then its ids cannot be given to another process, so a signal cannot hit a stranger.
    """

    def __init__(self, popen: subprocess.Popen[bytes], marker: str, launcher: Launcher) -> None:
        assert popen.stdin
        assert popen.stdout
        assert popen.stderr
        self._popen = popen
        self._launcher = launcher
        self._finish: asyncio.Task[Exit] | None = None
        self._stop: asyncio.Task[None] | None = None
        self._stop_before = 0.0
        self.marker = marker
        self.stdin = WritePipe(popen.stdin)
        self.stdout = ReadPipe(popen.stdout)
        self.stderr = ReadPipe(popen.stderr)
        self.exited = asyncio.Event()
        process = find_process(popen.pid)
        self.id = ProcessId(popen.pid, process.start_time if process else 0)
        self._descriptor = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._leave)

    def _leave(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self.exited.set()

    def signal_group(self, number: int) -> None:
        """Send a signal to the group, and wake it should it be stopped. Harmless when it is gone."""
        if self._popen.returncode is not None:
            return
        for each in (number, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.id.pid, each)

    def kill(self) -> None:
        """Kill the leader and its group at once; `finish` then ends the rest of the tree."""
        self.signal_group(signal.SIGKILL)

    def begin_stop(self, grace: float) -> None:
        """Begin the ladder in the background, once; again only if that makes it shorter."""
        before = asyncio.get_running_loop().time() + grace
        if self._stop is not None:
            if self._stop_before <= before:
                return
            self._stop.cancel()
        self._stop_before = before
        self._stop = asyncio.create_task(self.stop(grace))

    async def stop(self, grace: float) -> None:
        """The ladder: SIGINT, `grace`, SIGTERM, patience, SIGKILL. Returns when the leader has exited.

        Without grace it begins with SIGTERM. Cancelled, it stays where it is.
        """
        steps = [(signal.SIGINT, grace)] if grace > 0 else []
        for number, seconds in [*steps, (signal.SIGTERM, self._launcher.patience)]:
            self.signal_group(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.exited.wait(), seconds)
                return
        self.kill()
        await self.exited.wait()

    async def finish(self) -> Exit:
        """Kill whatever is left of the tree, verify that it is empty, and return how the leader ended.

        May be called again. Cancelled, it goes on in the background.
        """
        if self._finish is None:
            self._finish = asyncio.create_task(self._end_tree())
        return await asyncio.shield(self._finish)

    async def _end_tree(self) -> Exit:
        clear = self.exited.is_set() and self._launcher.strays() == set()
        survivors = [] if clear else await kill_tree([self.id], self.marker, self._launcher.patience)
        if survivors:
            _logger.error("processes survived SIGKILL", extra={"pids": [each.pid for each in survivors]})
        await self.exited.wait()
        code = self._popen.wait()
        self._launcher.leaders.discard(self.id.pid)
        if not self._launcher.leaders:  # strays can only be of this tree, even those without a mark
            await self._launcher.kill_strays()
        return Exit(code=code, reason=f"exit code {code}") if code >= 0 else Exit(signal=-code, reason=_signal(-code))

    def close(self) -> None:
        """Let go of the pipes; nobody may be reading or writing."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()


def _signal(number: int) -> str:
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"
