"""Class OUTPUT: by offset, with marked gaps, within bounds, and never in the way of the log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from agenthive_server.events.filter import EventFilter
from agenthive_server.events.output import OVERHEAD, OutputHub
from agenthive_server.events.output_reader import OutputPosition, OutputReader
from agenthive_server.events.subscription import EventClass, Start
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.tasks import Task, TaskSpec, TaskState
from hypothesis import given
from hypothesis import strategies as st

ALL = EventFilter()
TASK = Task(namespace="default", id="t", spec=TaskSpec(type="work", role="coder"), state=TaskState.RUNNING)
OTHER = replace(TASK, id="u")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def hub(clock: ManualClock) -> OutputHub:
    return OutputHub(clock, attempt_bytes=100, total_bytes=20 * (OVERHEAD + 10))


def drain(reader: OutputReader, most: int = 64) -> list[tuple[Any, ...]]:
    """Return what a reader gets: chunks as (task, attempt, offset, bytes), gaps as (task, attempt, from, to)."""
    found: list[tuple[Any, ...]] = []
    while reader.behind:
        found += [told(event) for event in reader.read(most, 10_000)]
    return found


def told(event: Event) -> tuple[Any, ...]:
    data = event.data
    if event.type is EventType.TASK_OUTPUT:
        return (event.task_id, data["attempt"], data["offset"], data["data"])
    if event.type is EventType.OUTPUT_GAP:
        return (event.task_id, data["attempt"], data["from_offset"], data["to_offset"])
    return (event.task_id, data["attempt"], data["fraction"])


async def test_chunks_arrive_in_order_and_once(hub: OutputHub) -> None:
    reader = OutputReader(hub, ALL, hub.next)
    assert hub.append(TASK, 1, 0, b"hello")
    assert not hub.append(TASK, 1, 0, b"hello")
    assert hub.append(TASK, 1, 3, b"lo world")
    assert drain(reader) == [("t", 1, 0, b"hello"), ("t", 1, 5, b" world")]
    assert hub.tail("default", "t", 1) == b"hello world"


async def test_a_jump_is_a_gap(hub: OutputHub) -> None:
    reader = OutputReader(hub, ALL, hub.next)
    hub.append(TASK, 1, 0, b"ab")
    hub.append(TASK, 1, 5, b"fg")
    assert drain(reader) == [("t", 1, 0, b"ab"), ("t", 1, 2, 5), ("t", 1, 5, b"fg")]


async def test_who_comes_now_hears_what_comes_next_and_of_no_gap(hub: OutputHub) -> None:
    hub.append(TASK, 1, 0, b"old")
    reader = OutputReader(hub, ALL, hub.next)
    hub.append(TASK, 1, 3, b"new")
    assert drain(reader) == [("t", 1, 3, b"new")]


async def test_an_attempt_is_resumed_at_an_offset(hub: OutputHub) -> None:
    for n in range(4):
        hub.append(TASK, 1, 3 * n, b"abc")
        hub.append(OTHER, 1, 3 * n, b"xyz")
    wish = OutputPosition(namespace="default", task_id="t", attempt=1, offset=5)
    reader = OutputReader(hub, ALL, hub.next, (wish,))
    assert drain(reader) == [("t", 1, 5, b"c"), ("t", 1, 6, b"abc"), ("t", 1, 9, b"abc")]
    hub.append(OTHER, 1, 12, b"!")
    assert drain(reader) == [("u", 1, 12, b"!")]


async def test_resuming_where_the_output_is_gone_is_told(hub: OutputHub) -> None:
    for n in range(10):
        hub.append(TASK, 1, 50 * n, b"x" * 50)
    wish = OutputPosition(namespace="default", task_id="t", attempt=1, offset=120)
    reader = OutputReader(hub, ALL, hub.next, (wish,))
    assert [entry[:3] for entry in drain(reader)] == [("t", 1, 120), ("t", 1, 400), ("t", 1, 450)]


async def test_beginning_in_the_past_where_output_is_gone_is_told(hub: OutputHub) -> None:
    for n in range(10):
        hub.append(TASK, 1, 50 * n, b"x" * 50)
    assert drain(OutputReader(hub, ALL, 1))[0] == ("t", 1, 0, 400)
    assert [found[2] for found in drain(OutputReader(hub, ALL, 9))] == [450]


async def test_a_slow_reader_loses_the_oldest_and_is_told(hub: OutputHub) -> None:
    reader = OutputReader(hub, ALL, hub.next)
    hub.append(TASK, 1, 0, b"a" * 50)
    assert drain(reader) == [("t", 1, 0, b"a" * 50)]
    for n in range(1, 10):
        hub.append(TASK, 1, 50 * n, b"a" * 50)
    assert drain(reader) == [("t", 1, 50, 400), ("t", 1, 400, b"a" * 50), ("t", 1, 450, b"a" * 50)]
    assert reader.gaps == 1


async def test_an_attempt_that_came_and_went_unread_is_a_gap(hub: OutputHub) -> None:
    reader = OutputReader(hub, ALL, hub.next)
    hub.append(TASK, 1, 0, b"abc")
    for n in range(40):
        hub.append(replace(TASK, id=f"other-{n}"), 1, 0, b"x" * 10)
    found = drain(reader)
    assert ("t", 1, 0, 3) in found
    assert found[-1] == ("other-39", 1, 0, b"x" * 10)


async def test_what_is_forgotten_is_a_gap_to_who_had_not_read_it(hub: OutputHub) -> None:
    late = OutputReader(hub, ALL, hub.next)
    hub.append(TASK, 1, 0, b"abc")
    punctual = OutputReader(hub, ALL, 0)
    drain(punctual)
    hub.forget("default", "t", 1)
    hub.append(OTHER, 1, 0, b"x")
    assert drain(late) == [("t", 1, 0, 3), ("u", 1, 0, b"x")]
    assert drain(punctual) == [("u", 1, 0, b"x")]
    assert hub.tail("default", "t", 1) == b""


async def test_a_new_attempt_supersedes(hub: OutputHub) -> None:
    reader = OutputReader(hub, ALL, hub.next)
    hub.append(TASK, 1, 0, b"one")
    hub.append(TASK, 2, 0, b"two")
    assert not hub.append(TASK, 1, 3, b"late")
    assert not hub.progress(TASK, 1, 0.5)
    assert drain(reader) == [("t", 1, 0, b"one"), ("t", 2, 0, b"two")]


async def test_only_the_newest_progress_is_kept(hub: OutputHub) -> None:
    reader = OutputReader(hub, ALL, hub.next)
    for n in range(5):
        hub.progress(TASK, 1, n / 10)
    assert drain(reader) == [("t", 1, 0.4)]
    assert not drain(OutputReader(hub, ALL, hub.next))


async def test_filters_apply_and_gaps_follow_them(hub: OutputHub) -> None:
    reader = OutputReader(hub, EventFilter(task_ids=frozenset({"t"})), hub.next)
    hub.append(TASK, 1, 0, b"abc")
    hub.append(OTHER, 1, 5, b"xyz")
    assert drain(reader) == [("t", 1, 0, b"abc")]


async def test_output_is_kept_for_the_retention(hub: OutputHub, clock: ManualClock) -> None:
    hub.append(TASK, 1, 0, b"abc")
    clock.move(3_601)
    hub.expire()
    assert (hub.bytes_kept, len(hub.attempts)) == (0, 0)
    assert hub.append(TASK, 1, 0, b"abc")


async def test_memory_is_bounded(hub: OutputHub) -> None:
    for n in range(10_000):
        hub.append(replace(TASK, id=f"t-{n % 7}"), 1, 10 * (n // 7), b"x" * 10)
    assert hub.bytes_kept <= 20 * (OVERHEAD + 10)
    assert len(hub._entries) <= 2_100


@given(
    chunks=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 15), st.integers(1, 60)), max_size=80),
    pauses=st.lists(st.integers(1, 12), max_size=20),
    most=st.integers(1, 5),
)
def test_what_is_read_and_what_is_told_missing_make_up_all(
    chunks: list[tuple[int, int, int]], pauses: list[int], most: int
) -> None:
    """Every reader's chunks and gaps are, for each attempt, all bytes from 0 to the end, in order, without overlap."""
    hub = OutputHub(ManualClock(), attempt_bytes=100, total_bytes=10 * (OVERHEAD + 30))
    hub.notifier.ring = lambda head: None  # type: ignore[method-assign]  # there is no event loop
    readers = [OutputReader(hub, ALL, 0), OutputReader(hub, ALL, 0)]
    ends, got = {"t": 0, "u": 0}, [{"t": 0, "u": 0}, {"t": 0, "u": 0}]
    waits = iter(pauses)
    pause = next(waits, 1_000)
    for which, jump, size in chunks:
        task = (TASK, OTHER)[which]
        offset = max(0, ends[task.id] + (jump - 5 if jump > 3 else 0))
        hub.append(task, 1, offset, bytes(size))
        ends[task.id] = max(ends[task.id], offset + size)
        pause -= 1
        if not pause:
            follow(readers[0], got[0], most)
            pause = next(waits, 1_000)
    for reader, ends_read in zip(readers, got, strict=True):
        follow(reader, ends_read, most)
        assert ends_read == ends


def follow(reader: OutputReader, ends: dict[str, int], most: int) -> None:
    for task_id, _, start, what in drain(reader, most):
        assert start == ends[task_id]
        ends[task_id] = what if isinstance(what, int) else start + len(what)


async def test_a_stream_of_all_carries_both_and_the_log_first(rig: Any) -> None:
    reader = await rig.reader(event_class=EventClass.ALL)
    await reader.take()
    rig.output.append(TASK, 1, 0, b"output")
    await rig.commit(1)
    first, second = await reader.take()
    assert first.events[0].sequence == 1
    assert second.events[0].task_output.data == b"output"
    assert second.cursor == first.cursor
    rig.output.append(TASK, 1, 6, b"more")
    (third,) = await reader.take()
    assert third.events[0].task_output.offset == 6
    await rig.commit(1)
    assert (await reader.take())[0].events[0].sequence == 2


async def test_a_stream_of_output_resumes_by_offset_and_by_cursor(rig: Any) -> None:
    rig.output.append(TASK, 1, 0, b"abcdef")
    await rig.commit(1)
    rig.output.append(OTHER, 1, 0, b"xyz")
    wish = OutputPosition(namespace="default", task_id="t", attempt=1, offset=4)
    reader = await rig.reader(
        event_class=EventClass.ALL, start=Start.AFTER, cursor=rig.log.cursor(1), offsets=(wish,), follow=False
    )
    await reader.take()
    assert reader.ended
    found = [event.task_output.data for frame in reader.frames for event in frame.events]
    assert found == [b"ef", b"xyz"]


async def test_output_is_encoded_once_for_all_readers(rig: Any) -> None:
    readers = [await rig.reader(event_class=EventClass.OUTPUT) for _ in range(5)]
    for reader in readers:
        await reader.take()
    rig.output.append(TASK, 1, 0, b"abc")
    for reader in readers:
        (frame,) = await reader.take()
        assert frame.events[0].task_output.data == b"abc"
    assert rig.encoded == 1
