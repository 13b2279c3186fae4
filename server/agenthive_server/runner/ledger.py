"""What a runner started, on disk: so that whoever comes after it finds and ends what it left behind.

The folder holds `lock` (one runner at a time, with its process id), `session` (the one it has with the server), `id`
(the name of this data directory in the environment of every process started from it), `ledger.jsonl` and `work/`, the
private folders of the agents.

A handle is written and synced before its agent starts, a process right after it started. The latter is not synced:
it has to survive the end of the runner, not of the machine, with which the process ends as well. Markers hold the
name of the data directory, the runner and the handle, in this order, so a sweep does not depend on the last line.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from agenthive_server.runner.driver import Handle
from agenthive_server.runner.tree import ProcessId, kill_tree_now

_COMPACT_LINES = 10_000
_LOCK_TRIES = 10
_LOCK_PAUSE = 0.05
_logger = logging.getLogger(__name__)


class LedgerLocked(Exception):
    """Another runner works on this data directory; the text says so to people."""


@dataclass(slots=True)
class Entry:
    """One start of one agent."""

    marker: str
    agent_id: str
    folder: Path
    processes: set[ProcessId]
    handle: Handle | None = None


class Ledger:
    """The ledger of one runner. All methods block, and only for as long as a small write takes."""

    def __init__(self, folder: Path) -> None:
        """Take the ledger over. Raises LedgerLocked when another runner has it, OSError when it cannot be written."""
        (folder / "work").mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        self._lock = (folder / "lock").open("ab")
        if not _take_lock(self._lock):
            self._lock.close()
            raise LedgerLocked(
                f"Another runner uses {folder}; give this one a data directory of its own, or stop the other first."
            )
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()).encode())
        self._lock.flush()
        self.folder = folder
        self.home = _read_home(folder / "id")
        self.marker = f"{self.home}.{uuid.uuid4().hex[:12]}"
        # The session of the runner before, and this one's once it has one.
        self._session = folder / "session"
        self.former_session = _read_session(self._session)
        self._path = folder / "ledger.jsonl"
        self._open: dict[str, Entry] = {}
        self._lines = 0
        self._number = 0
        self._torn = False
        self._file = self._path.open("ab", buffering=0)

    def lost(self) -> bool:
        """Whether the folder was taken away, or another has its name now."""
        try:
            return not os.path.samestat(os.fstat(self._lock.fileno()), (self.folder / "lock").stat())
        except FileNotFoundError:
            return True
        except OSError:
            # A disk in trouble may get well again.
            return False

    def note_session(self, session_id: str) -> None:
        """Write down the session of this runner, which the next one replaces if this one is killed.

        Where that cannot be written, the next one only waits for the grace.
        """
        with contextlib.suppress(OSError):
            self._session.write_text(session_id, encoding="ascii")

    def sweep(self) -> None:
        """End everything earlier runners left behind and remove its folders; call it before the first `begin`.

        Blocks while something has to be killed, at most some seconds.
        """
        left = {process for entry in read_entries(self._path) for process in entry.processes}
        kill_tree_now(left, self.home)
        for folder in (self.folder / "work").iterdir():
            remove_folder(folder)
        self._rewrite()

    def begin(self, agent_id: str, folder: Path | None = None) -> Entry:
        """Record that an agent is about to start; returns its marker and its private folder, made unless given.

        Raises OSError when that cannot be written. The other records can be done without, thanks to the marker: when
        they cannot be written, that is logged.
        """
        self._number += 1
        marker = f"{self.marker}.{self._number}"
        entry = Entry(marker, agent_id, folder or self.folder / "work" / marker, set())
        entry.folder.mkdir(mode=0o700, exist_ok=True)
        self._append(_begin_record(entry), sync=True)
        self._open[marker] = entry
        return entry

    def started(self, entry: Entry, handle: Handle) -> None:
        """Record the handle of an agent that has started."""
        entry.handle = handle
        self._note(_handle_record(entry), sync=True)

    def spawned(self, entry: Entry, process: ProcessId) -> None:
        """Record a process of the agent."""
        entry.processes.add(process)
        self._note(_process_record(entry, process))

    def departed(self, entry: Entry, process: ProcessId) -> None:
        """Forget a process whose tree is empty."""
        entry.processes.discard(process)
        self._note({"marker": entry.marker, "pid": process.pid, "gone": process.start_time})

    def end(self, entry: Entry) -> None:
        """Record that nothing of the agent is left but its folder."""
        self._open.pop(entry.marker, None)
        self._note({"marker": entry.marker, "ended": True})

    def close(self) -> None:
        """Give the ledger to the next runner."""
        self._file.close()
        self._lock.close()

    def _note(self, record: dict[str, Any], *, sync: bool = False) -> None:
        try:
            self._append(record, sync=sync)
        except OSError as error:
            _logger.error("the ledger cannot be written", exc_info=error)

    def _append(self, record: dict[str, Any], *, sync: bool = False) -> None:
        self._lines += 1
        if self._lines > _COMPACT_LINES + 4 * len(self._open):
            self._rewrite()
        line = (b"\n" if self._torn else b"") + json.dumps(record).encode() + b"\n"
        self._torn = True  # until the whole line is there
        self._torn = self._file.write(line) != len(line)
        if sync:
            os.fsync(self._file.fileno())

    def _rewrite(self) -> None:
        if self.lost():
            return
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            for record in _records(self._open.values()):
                file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        self._file.close()
        self._file = self._path.open("ab", buffering=0)
        self._torn = False
        self._lines = sum(1 for _ in _records(self._open.values()))


def _read_session(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
    return text if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", text) else ""


def _take_lock(file: IO[bytes]) -> bool:
    """Take the lock; somebody who only looks whether it is free has it for a moment."""
    for _ in range(_LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_LOCK_PAUSE)
    return False


def _begin_record(entry: Entry) -> dict[str, Any]:
    return {"marker": entry.marker, "agent_id": entry.agent_id, "folder": str(entry.folder), "boot": _boot_id()}


def _handle_record(entry: Entry) -> dict[str, Any]:
    assert entry.handle is not None
    handle = {"driver": entry.handle.driver, "version": entry.handle.version, "data": entry.handle.data.hex()}
    return {"marker": entry.marker, "handle": handle}


def _process_record(entry: Entry, process: ProcessId) -> dict[str, Any]:
    return {"marker": entry.marker, "pid": process.pid, "start_time": process.start_time}


def _records(entries: Iterable[Entry]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        yield _begin_record(entry)
        if entry.handle:
            yield _handle_record(entry)
        for process in entry.processes:
            yield _process_record(entry, process)


def read_entries(path: Path) -> list[Entry]:
    """Read what was started and has not ended. Lines that make no sense are skipped: the last may be cut short.

    Processes of an earlier boot of the machine are left out.
    """
    entries: dict[str, Entry] = {}
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            _apply(entries, json.loads(line))
    return list(entries.values())


def _apply(entries: dict[str, Entry], record: dict[str, Any]) -> None:
    marker = record["marker"]
    if "folder" in record:
        same_boot = record["boot"] == _boot_id()
        if same_boot:
            entries[marker] = Entry(marker, record["agent_id"], Path(record["folder"]), set())
    elif "handle" in record:
        handle = record["handle"]
        entries[marker].handle = Handle(handle["driver"], int(handle["version"]), bytes.fromhex(handle["data"]))
    elif "gone" in record:
        entries[marker].processes.discard(ProcessId(int(record["pid"]), int(record["gone"])))
    elif "pid" in record:
        entries[marker].processes.add(ProcessId(int(record["pid"]), int(record["start_time"])))
    elif record.get("ended"):
        entries.pop(marker, None)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all its content, also what its owner has made unwritable; never follows a link out of it."""

    def open_up(function: Callable[..., Any], path: str, error: Any) -> None:
        with contextlib.suppress(OSError):
            for each in (Path(path).parent, Path(path)):
                if stat.S_ISDIR(each.lstat().st_mode):
                    each.chmod(0o700)
            Path(path).unlink() if not Path(path).is_dir() else shutil.rmtree(path, ignore_errors=True)

    shutil.rmtree(folder, onerror=open_up)


def _read_home(path: Path) -> str:
    with contextlib.suppress(OSError):
        if text := path.read_text().strip():
            return text
    home = uuid.uuid4().hex[:12]
    path.write_text(home + "\n")
    return home


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
