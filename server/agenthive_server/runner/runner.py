"""The runner: a process of its own that starts agents through drivers and speaks for them on one session."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from agenthive.access import Access
from agenthive.credential import Credential
from agenthive.errors import HiveError
from agenthive.session import Session

from agenthive_server.runner.attempts import Link
from agenthive_server.runner.guard import Guard
from agenthive_server.runner.host import RunnerConfig, RunnerHost
from agenthive_server.runner.launch import Launcher
from agenthive_server.runner.ledger import Ledger, LedgerLocked

__all__ = ["EXIT_ORPHANED", "EXIT_SESSION", "EXIT_STOPPED", "LedgerLocked", "Runner", "RunnerConfig", "run_runner"]

EXIT_STOPPED = 0
EXIT_SESSION = 1
EXIT_ORPHANED = 69
_TICK = 1.0
_GOODBYE_TIMEOUT = 10.0
_logger = logging.getLogger(__name__)


class Runner:
    """From the sweep of what earlier runners left to the goodbye."""

    def __init__(
        self, config: RunnerConfig, ledger: Ledger, launcher: Launcher, connect: Callable[[RunnerHost], Link]
    ) -> None:
        """`connect` makes the session of a host; it is not opened before `run`."""
        self._config = config
        self._ledger = ledger
        self._launcher = launcher
        self._host = RunnerHost(config, ledger, launcher)
        self._link = connect(self._host)
        self._host.attach(self._link)
        self._stop = asyncio.Event()
        self._asked: set[int] = set()
        self._exit_code = EXIT_STOPPED

    def stop(self, reason: int = 0) -> None:
        """Hand everything back, stop all agents and end; for the same reason again, kill what still runs.

        The reason is the number of a signal: Ctrl-C reaches a whole process group, and the SIGTERM that follows from
        a server in the same group is no second request. Returns at once.
        """
        if reason in self._asked:
            self._host.kill()
        self._asked.add(reason)
        self._stop.set()

    async def run(self) -> int:
        """Work until stopped, orphaned or thrown out, then leave nothing; returns the exit code.

        Cancelled, it ends without a word; its guard kills what it leaves.
        """
        self._ledger.sweep()
        self._guard = self._start_guard()
        session = asyncio.create_task(self._hold_session())
        watch = asyncio.create_task(self._watch())
        try:
            await self._stop.wait()
            await self._host.leave("the runner stops")
            await asyncio.wait({session}, timeout=_GOODBYE_TIMEOUT)
        finally:
            for task in (session, watch):
                task.cancel()
            await asyncio.gather(session, watch, return_exceptions=True)
            self._guard.close()
            self._ledger.close()
        return self._exit_code

    def _start_guard(self) -> Guard:
        guard = Guard(self._ledger)
        self._launcher.guard = guard.pid
        return guard

    async def _hold_session(self) -> None:
        try:
            await self._link.run()
        except HiveError as error:
            _logger.error("the session ended: %s", error)
            self._exit_code = EXIT_SESSION
        finally:
            self._stop.set()

    async def _watch(self) -> None:
        while not self._stop.is_set():
            await asyncio.sleep(_TICK)
            if self._link.lost_for > self._config.orphan_timeout:
                _logger.error("no server for %.0f s: the runner stops its agents and ends", self._link.lost_for)
                self._exit_code = EXIT_ORPHANED
                self._stop.set()
            if self._ledger.lost():
                # With the folder it has lost its claim to be the only one, and can start nothing.
                _logger.error("the folder %s is gone: the runner stops its agents and ends", self._ledger.folder)
                self._exit_code = EXIT_SESSION
                self._stop.set()
            if not self._guard.alive():
                self._guard = self._start_guard()


async def run_runner(target: str | Access, config: RunnerConfig) -> int:
    """Be a runner until SIGTERM or SIGINT, and return the exit code; the same signal again kills all agents.

    `target` is the server's HOST:PORT, or the way there. Raises LedgerLocked when another runner uses the data
    directory, OSError when it cannot be written, AccessError when a secret would travel in plain text. Must run in the
    main thread of a process of its own: it adopts orphans and takes the signals.
    """
    access = target if isinstance(target, Access) else Access(target)
    credential = Credential(config.credential_file)
    if config.join_token or credential.value:
        access.require_private("a join token or credential")
    ledger = Ledger(config.data_dir / "runner")
    launcher = Launcher(config.search_path, config.patience)
    launcher.own_process()

    def connect(host: RunnerHost) -> Link:
        return Session(access, host, credential=credential)

    runner = Runner(config, ledger, launcher, connect)
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, runner.stop, number)
    try:
        return await runner.run()
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
