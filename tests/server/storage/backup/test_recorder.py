"""What was committed is handed to another thread; its disk delays nobody, and its failures make no hole unseen."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from agenthive_server.kernel.changes import COMMITTED, Conflicted
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.storage.backup.journal import Begin, Group, Segment, read_segment, segments
from agenthive_server.storage.backup.recorder import Recorder
from agenthive_server.testing.store_model import changing, task
from agenthive_server.testing.waiting import eventually


def begin(number: int, group_count: int = 0) -> Begin:
    return Begin(1, "1", "0001", "log", number, group_count, 0.0)


def committed(recorder: Recorder, number: int) -> None:
    changes = changing(task(f"t{number}"), events=1)
    changes.events[0].sequence = number
    recorder.group([changes], [COMMITTED], number)


def groups(folder: Path) -> list[int]:
    return [each.group_count for path in segments(folder) for each in read_segment(path) if isinstance(each, Group)]


class Gate:
    """A disk that can be held up, or fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.open.set()
        self.failing = False
        self.syncs = 0
        gate, write, sync = self, Segment.write, Segment.sync

        def held_write(segment: Segment, frames: Iterable[bytes]) -> None:
            gate.open.wait(20)
            if gate.failing:
                raise OSError(28, "No space left on device")
            write(segment, frames)

        def counted_sync(segment: Segment) -> None:
            gate.syncs += 1
            sync(segment)

        monkeypatch.setattr(Segment, "write", held_write)
        monkeypatch.setattr(Segment, "sync", counted_sync)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def test_it_records_from_the_first_segment_on_until_it_is_stopped(tmp_path: Path, clock: ManualClock) -> None:
    recorder = Recorder(tmp_path, clock)
    recorder.start(4)
    committed(recorder, 5)
    await recorder.turn(begin(1, 5))
    for number in range(6, 200):
        committed(recorder, number)
    await recorder.stop()
    committed(recorder, 200)
    assert groups(tmp_path) == list(range(6, 200))
    assert recorder.sequence == 199
    assert recorder.lag == 0.0


async def test_what_was_refused_or_changed_nothing_is_left_out(tmp_path: Path, clock: ManualClock) -> None:
    recorder = Recorder(tmp_path, clock)
    recorder.start(0)
    await recorder.turn(begin(1))
    recorder.group([changing()], [Conflicted(())], 0)
    recorder.group([changing(task("a")), changing(task("b"))], [Conflicted(()), COMMITTED], 1)
    await recorder.stop()
    (entry,) = (each for each in read_segment(segments(tmp_path)[0]) if isinstance(each, Group))
    assert [[put.id for put in member.puts] for member in entry.members] == [["b"]]


async def test_a_new_segment_goes_on_where_the_old_one_ended(tmp_path: Path, clock: ManualClock, gate: Gate) -> None:
    recorder = Recorder(tmp_path, clock)
    recorder.start(0)
    await recorder.turn(begin(1))
    committed(recorder, 1)
    gate.open.clear()
    turning = asyncio.ensure_future(recorder.turn(begin(2, 1)))
    await asyncio.sleep(0)
    committed(recorder, 2)
    gate.open.set()
    await turning
    await recorder.stop()
    entries = [[type(each).__name__ for each in read_segment(path)] for path in segments(tmp_path)]
    assert entries == [["Begin", "Group"], ["Begin", "Group", "End"]]


async def test_a_disk_that_is_slower_than_the_commits_ends_the_recording_and_delays_nobody(
    tmp_path: Path, clock: ManualClock, gate: Gate
) -> None:
    recorder = Recorder(tmp_path, clock, most_waiting=50)
    recorder.start(0)
    await recorder.turn(begin(1))
    gate.open.clear()
    number = 0
    while recorder.on:
        number += 1
        committed(recorder, number)
    assert "slower" in recorder.failure
    assert 10 < number < 60
    gate.open.set()
    await recorder.turn(begin(2, number))
    assert (recorder.on, recorder.failure) == (True, "")
    committed(recorder, number + 1)
    await recorder.stop()
    # A hole, and none before it.
    assert groups(tmp_path) == [*range(1, number), number + 1]


async def test_a_full_disk_ends_the_recording(tmp_path: Path, clock: ManualClock, gate: Gate) -> None:
    recorder = Recorder(tmp_path, clock)
    recorder.start(0)
    await recorder.turn(begin(1))
    gate.failing = True
    committed(recorder, 1)
    await eventually(lambda: not recorder.on)
    assert "No space left" in recorder.failure
    with pytest.raises(OSError, match="No space left"):
        await recorder.turn(begin(2, 1))
    assert not recorder.on
    gate.failing = False
    await recorder.turn(begin(3, 1))
    committed(recorder, 2)
    await recorder.stop()
    assert groups(tmp_path) == [2]


async def test_a_group_that_was_not_handed_over_is_a_hole(tmp_path: Path, clock: ManualClock) -> None:
    recorder = Recorder(tmp_path, clock)
    recorder.start(0)
    await recorder.turn(begin(1))
    committed(recorder, 2)
    assert not recorder.on
    assert "not handed over" in recorder.failure
    await recorder.stop()


async def test_what_is_written_is_synced_within_a_second(tmp_path: Path, clock: ManualClock, gate: Gate) -> None:
    recorder = Recorder(tmp_path, clock)
    recorder.start(0)
    await recorder.turn(begin(1))
    before = gate.syncs
    committed(recorder, 1)
    await eventually(lambda: recorder.sequence == 1)
    clock.move(0.5)
    assert (recorder.lag, gate.syncs) == (0.5, before)
    clock.move(0.6)
    committed(recorder, 2)
    await eventually(lambda: gate.syncs == before + 1)
    await recorder.stop()
    assert recorder.lag == 0.0


async def test_a_disk_that_hangs_does_not_hold_up_the_end(tmp_path: Path, clock: ManualClock, gate: Gate) -> None:
    recorder = Recorder(tmp_path, clock)
    recorder.start(0)
    await recorder.turn(begin(1))
    gate.open.clear()
    committed(recorder, 1)
    await recorder.stop(limit=0.05)
    gate.open.set()
    await eventually(lambda: not recorder._thread.is_alive())
