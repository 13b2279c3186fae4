"""The guard of a runner: waits for the end of the runner, however it comes, and ends what it left running.

The parent-death signal reaches the processes a runner started, not what these started; the guard reaches both.

Run as `python -m agenthive_server.runner.guard LEDGER MARKER` with a pipe from the runner as its input. It touches
nothing but what carries the marker of that one runner, so a successor on the same data directory is safe from it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from agenthive_server.runner.ledger import Ledger, read_entries
from agenthive_server.runner.tree import kill_tree_now


def main(arguments: list[str]) -> None:
    """Wait for the end of the input, then sweep."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    ledger, marker = Path(arguments[0]), arguments[1]
    entries = [entry for entry in read_entries(ledger) if entry.marker.startswith(marker + ".")]
    kill_tree_now({process for entry in entries for process in entry.processes}, marker)


class Guard:
    """The guard process, as its runner sees it."""

    def __init__(self, ledger: Ledger) -> None:
        """Start it. It ends when this process ends or `close` is called."""
        self._popen = subprocess.Popen(
            [sys.executable, "-m", __name__, str(ledger.folder / "ledger.jsonl"), ledger.marker],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONSAFEPATH": "1"},
            start_new_session=True,
        )
        self.pid = self._popen.pid

    def alive(self) -> bool:
        """Whether it still watches."""
        return self._popen.poll() is None

    def close(self, timeout: float = 10.0) -> None:
        """Let it sweep a last time and end; blocks."""
        assert self._popen.stdin
        self._popen.stdin.close()
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
