"""The ledger on disk: one runner at a time, nothing forgotten, nothing taken for something else."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from agenthive_server.runner import ledger as ledger_module
from agenthive_server.runner.driver import Handle
from agenthive_server.runner.ledger import Ledger, LedgerLocked, read_entries, remove_folder
from agenthive_server.runner.tree import MARKER, ProcessId, find_process

HANDLE = Handle("process", 1, b"\x00\xff")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runner"


def abandon(ledger: Ledger) -> None:
    """What the end of its process does."""
    ledger.close()


def test_two_runners_on_one_folder_are_one_too_many(folder: Path) -> None:
    first = Ledger(folder)
    with pytest.raises(LedgerLocked, match="Another runner uses"):
        Ledger(folder)
    first.close()
    Ledger(folder).close()


def test_the_folder_is_private(folder: Path) -> None:
    ledger = Ledger(folder)
    entry = ledger.begin("agent-1")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert entry.folder.stat().st_mode & 0o777 == 0o700
    ledger.close()


def test_what_was_started_and_has_not_ended_is_found_again(folder: Path) -> None:
    ledger = Ledger(folder)
    kept, ended = ledger.begin("agent-1"), ledger.begin("agent-2")
    ledger.started(kept, HANDLE)
    for pid in (11, 12):
        ledger.spawned(kept, ProcessId(pid, 5))
    ledger.departed(kept, ProcessId(11, 5))
    ledger.end(ended)
    [entry] = read_entries(folder / "ledger.jsonl")
    assert (entry.agent_id, entry.handle, entry.processes) == ("agent-1", HANDLE, {ProcessId(12, 5)})
    ledger.close()


def test_a_line_cut_short_and_lines_of_nonsense_are_skipped(folder: Path) -> None:
    ledger = Ledger(folder)
    entry = ledger.begin("agent-1")
    abandon(ledger)
    with (folder / "ledger.jsonl").open("ab") as file:
        file.write(b'[]\n{"marker": "unknown", "pid": 1, "start_time": 1}\nnull\n{"marker": "x", "pid": 5, "sta')
    assert [each.marker for each in read_entries(folder / "ledger.jsonl")] == [entry.marker]


def test_processes_of_an_earlier_boot_are_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_boot_id", lambda: "earlier")
    ledger = Ledger(folder)
    ledger.begin("agent-1")
    abandon(ledger)
    monkeypatch.setattr(ledger_module, "_boot_id", lambda: "now")
    assert read_entries(folder / "ledger.jsonl") == []


def test_it_does_not_grow_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_COMPACT_LINES", 50)
    ledger = Ledger(folder)
    entry = ledger.begin("agent-1")
    ledger.started(entry, HANDLE)
    for pid in range(1000):
        ledger.spawned(entry, ProcessId(pid, 1))
        ledger.departed(entry, ProcessId(pid, 1))
    ledger.spawned(entry, ProcessId(7, 7))
    path = folder / "ledger.jsonl"
    assert len(path.read_bytes().splitlines()) < 70
    [found] = read_entries(path)
    assert (found.handle, found.processes) == (HANDLE, {ProcessId(7, 7)})
    ledger.close()


class Full:
    """A file on a disk that takes half of a line and no more."""

    def __init__(self, file: io.FileIO) -> None:
        self.file = file

    def write(self, line: bytes) -> int:
        self.file.write(line[: len(line) // 2])
        raise OSError(28, "No space left on device")

    def fileno(self) -> int:
        return self.file.fileno()


def test_a_full_disk_refuses_starts_and_spoils_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(folder)
    before = ledger.begin("before")
    with monkeypatch.context() as full:
        full.setattr(ledger, "_file", Full(ledger._file))
        with pytest.raises(OSError, match="No space"):
            ledger.begin("refused")
        ledger.started(before, HANDLE)
        ledger.spawned(before, ProcessId(7, 7))
    ledger.begin("after")
    assert [entry.agent_id for entry in read_entries(folder / "ledger.jsonl")] == ["before", "after"]
    ledger.close()


@pytest.fixture
def spawn() -> Callable[..., subprocess.Popen[bytes]]:
    def spawn(marker: str) -> subprocess.Popen[bytes]:
        environment = {MARKER: marker} if marker else {}
        return subprocess.Popen(["/bin/sleep", "600"], env=environment, start_new_session=True)

    return spawn


def test_the_sweep_ends_what_is_marked_and_what_is_written_down(
    folder: Path, spawn: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    ledger = Ledger(folder)
    entry = ledger.begin("agent-1")
    (entry.folder / "file").touch()
    marked, written, stranger = spawn(f"{entry.marker}.t1"), spawn(""), spawn("")
    for popen, shift in ((written, 0), (stranger, -1)):
        process = find_process(popen.pid)
        assert process is not None
        ledger.spawned(entry, ProcessId(popen.pid, process.start_time + shift))
    abandon(ledger)
    successor = Ledger(folder)
    assert successor.home == ledger.home
    successor.sweep()
    assert (marked.wait(), written.wait()) == (-9, -9)
    assert stranger.poll() is None  # the number was given to another process since
    stranger.kill()
    stranger.wait()
    assert list((folder / "work").iterdir()) == []
    assert read_entries(folder / "ledger.jsonl") == []
    successor.close()


def test_the_sweep_works_without_the_ledger(folder: Path, spawn: Callable[[str], subprocess.Popen[bytes]]) -> None:
    ledger = Ledger(folder)
    popen = spawn(ledger.begin("agent-1").marker)
    abandon(ledger)
    (folder / "ledger.jsonl").write_bytes(b"\x00garbage")
    successor = Ledger(folder)
    successor.sweep()
    assert popen.wait() == -9
    successor.close()


def test_a_handle_is_written_before_its_agent_can_start(folder: Path) -> None:
    ledger = Ledger(folder)
    entry = ledger.begin("agent-1")
    [line] = (folder / "ledger.jsonl").read_bytes().splitlines()
    assert json.loads(line)["marker"] == entry.marker
    ledger.close()


def test_a_folder_is_removed_whatever_is_in_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    folder = tmp_path / "folder"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").touch()
    (folder / "link").symlink_to(outside)
    os.mkfifo(folder / "fifo")
    (folder / "a").chmod(0)
    remove_folder(folder)
    assert not folder.exists()
    assert (outside / "precious").exists()
