"""Segments are read as they were written, to the end of the last whole entry."""

from __future__ import annotations

from pathlib import Path

import pytest
from agenthive_server.kernel.errors import DataLoss
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.storage.backup.journal import (
    Begin,
    Blob,
    Chunk,
    End,
    Group,
    Segment,
    ended_with,
    entry_of,
    first_segment,
    framed,
    number_of,
    read_begin,
    read_segment,
    segments,
)
from agenthive_server.testing.store_model import changing, task


def begin(number: int = 1, group_count: int = 0, time: float = 0.0, form: int = 1) -> Begin:
    return Begin(form, "1", "0001", "log", number, group_count, time)


def write(folder: Path, first: Begin, *entries: Group | Chunk | Blob | End) -> Path:
    segment = Segment(folder, first)
    segment.write([framed(entry) for entry in entries])
    segment.sync()
    segment.close()
    return segment.path


def group(number: int) -> Group:
    event = Event(type=EventType.TASK_DELEGATED, namespace="n", sequence=number, last=number)
    changes = changing(task("new"), task("old", revision=2), deletes=(task("gone", revision=4),))
    changes.events.append(event)
    return Group(number, 1.5, [entry_of(changes), entry_of(changing())])


def test_entries_come_back_as_they_were_written(tmp_path: Path) -> None:
    entries = (group(1), Chunk("u", 0, b"\x00" * 5_000), Blob("n", "sha256:1", 5_000, "text/plain", 2.0, "u"), group(2))
    path = write(tmp_path, begin(7), *entries)
    assert list(read_segment(path)) == [begin(7), *entries]
    assert (path.name, number_of(path)) == ("00000007.journal", 7)


def test_what_never_changes_of_a_task_is_written_once() -> None:
    new, old = group(1).members[0].puts
    assert (new.revision, bool(new.spec)) == (1, True)
    assert (old.revision, old.spec) == (2, None)


def test_a_segment_is_never_written_over(tmp_path: Path) -> None:
    write(tmp_path, begin(1), group(1))
    with pytest.raises(FileExistsError):
        Segment(tmp_path, begin(1))


def test_zeros_at_the_end_are_what_a_loss_of_power_leaves(tmp_path: Path) -> None:
    path = write(tmp_path, begin(), group(1))
    whole = path.read_bytes()
    for zeros in (1, 12, 5_000):
        path.write_bytes(whole + bytes(zeros))
        assert len(list(read_segment(path))) == 2
    path.write_bytes(whole + bytes(5_000) + b"x")
    with pytest.raises(DataLoss, match="is damaged at byte"):
        list(read_segment(path))


@pytest.mark.parametrize("place", range(12))
def test_a_flipped_byte_in_the_head_of_an_entry_is_damage(tmp_path: Path, place: int) -> None:
    path = write(tmp_path, begin(), group(1), group(2))
    content = bytearray(path.read_bytes())
    content[place] ^= 0x80
    path.write_bytes(content)
    with pytest.raises(DataLoss, match="is damaged at byte 0"):
        list(read_segment(path))


def test_entries_of_a_newer_version_are_not_guessed_at(tmp_path: Path) -> None:
    with pytest.raises(DataLoss, match="newer version"):
        list(read_segment(write(tmp_path, begin(1, form=2))))
    with pytest.raises(DataLoss, match="cannot be understood"):
        list(read_segment(write(tmp_path, begin(2), Chunk("u", "x", b""))))  # type: ignore[arg-type]  # as if another


def test_the_segment_after_a_backup_is_the_last_that_begins_before_its_end(tmp_path: Path) -> None:
    assert first_segment(tmp_path, 0, 9.0) == 0
    for number, (group_count, time) in enumerate([(0, 1.0), (10, 2.0), (20, 3.0), (15, 4.0)], 1):
        write(tmp_path, begin(number, group_count, time))
    assert first_segment(tmp_path, 5, 9.0) == 1
    assert first_segment(tmp_path, 10, 9.0) == 2
    # Group 16 was there twice: what began after the backup was made is of the second.
    assert first_segment(tmp_path, 16, 9.0) == 4
    assert first_segment(tmp_path, 16, 2.5) == 2
    (tmp_path / "00000005.journal").write_bytes(b"")
    assert read_begin(segments(tmp_path)[-1]) is None
    assert first_segment(tmp_path, 30, 9.0) == 4


def test_a_segment_that_was_ended_in_order_says_so(tmp_path: Path) -> None:
    entries = (group(11), Chunk("u", 0, b"x" * 9_000), group(12), Blob("n", "b", 1, "t", 1.0))
    path = write(tmp_path, begin(1, 10), *entries, End(12))
    assert ended_with(path) == 12
    whole = path.read_bytes()
    for length in range(len(whole) - 1, -1, -7):
        path.write_bytes(whole[:length])
        assert ended_with(path) is None, length
    for flipped in (0, len(whole) // 2, len(whole) - 1):
        content = bytearray(whole)
        content[flipped] ^= 1
        path.write_bytes(content)
        assert ended_with(path) is None or flipped == len(whole) // 2
    path.write_bytes(whole + b"\0")
    assert ended_with(path) is None
    assert ended_with(write(tmp_path, begin(2, 7), End(7))) == 7
    assert ended_with(write(tmp_path, begin(3, 7))) is None
