"""Folders of backups: names, room, and errors in sentences."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from agenthive_server.kernel.errors import DataLoss, KernelError, Overloaded, Refused, StoreUnavailable
from agenthive_server.storage.backup.manifest import MANIFEST
from agenthive_server.storage.backup.place import Room, backup_name, failures, list_backups, new_folder
from agenthive_server.storage.sqlite import SqliteStore


def test_names_sort_by_time() -> None:
    names = [backup_name(time) for time in (0.0, 1_700_000_000.0, 1_700_000_000.5, 1_700_000_001.0)]
    assert names == sorted(set(names))
    assert names[1] == "20231114T221320.000000Z"


async def test_backups_are_listed_oldest_first_and_damaged_ones_with_what_is_wrong(
    filled: SqliteStore, place: Path, back_up: Callable[[str], Path], tampered: Callable[..., None]
) -> None:
    assert list_backups(place) == []
    for name, time in (("b", 3.0), ("a", 5.0), ("c", 4.0)):
        tampered(back_up(name), create_time=time)
    (back_up("d") / MANIFEST).write_text("{")
    (place / "notes").mkdir()
    (place / "readme.txt").write_text("not a backup")
    found = list_backups(place)
    assert [each.path.name for each in found] == ["d", "b", "c", "a"]
    assert "is damaged" in found[0].problem


def test_a_folder_gets_its_name_at_the_end_or_never(tmp_path: Path) -> None:
    with new_folder(tmp_path / "x") as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x" / "file").read_text() == "content"
    with pytest.raises(Refused), new_folder(tmp_path / "x"):
        pass
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "y") as folder:
        (folder / "file").write_text(str(1 // 0))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_somebody_is_just_making_is_left_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path / "slow") as slow:
        with new_folder(tmp_path / "fast"):
            pass
        assert slow.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast", "slow"]


def test_room_counts_what_is_to_be_written(tmp_path: Path) -> None:
    Room([tmp_path], 0).check()
    with pytest.raises(Overloaded, match="not enough room"):
        Room([tmp_path], 0).require(tmp_path, 2**60)
    with pytest.raises(Overloaded, match="not enough room"):
        Room([tmp_path], 2**60).check()


def _sqlite(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("as arranged")
    error.sqlite_errorcode, error.sqlite_errorname = code, "SQLITE_X"
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Overloaded),
        (OSError(errno.EIO, "Input/output error", "/disk"), StoreUnavailable),
        (_sqlite(sqlite3.SQLITE_FULL), Overloaded),
        (_sqlite(sqlite3.SQLITE_CORRUPT), DataLoss),
        (_sqlite(sqlite3.SQLITE_IOERR), StoreUnavailable),
    ],
)
def test_failures_of_disks_and_databases_are_sentences(error: Exception, kind: type[KernelError]) -> None:
    with pytest.raises(kind, match="the task: "), failures("the task"):
        raise error
