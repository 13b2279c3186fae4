"""Frames: their bytes, their limits, and that they are made once for all who stand at the same place."""

from __future__ import annotations

from typing import Any

import pytest
from agenthive.v1 import event_pb2
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive_server.events.filter import EventFilter
from agenthive_server.events.frames import BEHIND, EVENTS, SCAN, join_frame
from hypothesis import given
from hypothesis import strategies as st

ALL = EventFilter()


def count(data: bytes) -> int:
    return len(pb.StreamEventsResponse.FromString(data).events)


@given(st.lists(st.sampled_from([0, 1, 100, 127, 128, 1_023, 1_024, 20_000]), max_size=20), st.text(max_size=200))
def test_a_frame_is_the_wire_form_of_a_response(sizes: list[int], cursor: str) -> None:
    events = [event_pb2.Event(sequence=n, task_id="x" * size) for n, size in enumerate(sizes)]
    data = join_frame([event.SerializeToString() for event in events], cursor)
    assert pb.StreamEventsResponse.FromString(data) == pb.StreamEventsResponse(events=events, cursor=cursor)


async def test_a_frame_is_shared(rig: Any) -> None:
    await rig.commit(1, 2, 3)
    first = await rig.hub.framer.frame(ALL, 0)
    assert await rig.hub.framer.frame(EventFilter(), 0) is first
    assert (first.end, first.count, count(first.data)) == (6, 6, 6)
    assert rig.encoded == 6
    assert await rig.hub.framer.frame(ALL, 6) is None


async def test_a_frame_that_ended_at_the_head_is_made_anew_when_the_log_has_grown(rig: Any) -> None:
    await rig.commit(1)
    await rig.hub.framer.frame(ALL, 0)
    await rig.commit(1)
    frame = await rig.hub.framer.frame(ALL, 0)
    assert (frame.end, frame.count) == (2, 2)
    assert rig.encoded == 2


async def test_a_frame_near_the_head_is_small_and_ends_with_a_change_set(rig: Any) -> None:
    await rig.commit(*[3] * 40)
    frame = await rig.hub.framer.frame(ALL, 0)
    assert frame.count == EVENTS + 2
    assert frame.full


async def test_a_reader_behind_gets_large_frames(rig: Any) -> None:
    await rig.commit(*[1] * (BEHIND + 100))
    frame = await rig.hub.framer.frame(ALL, 0)
    assert frame.count == BEHIND + 100


async def test_bytes_bound_a_frame_too(rig: Any) -> None:
    await rig.commit(*[1] * 60, task_id="x" * 8_192)
    frame = await rig.hub.framer.frame(ALL, 0)
    assert frame.count == 8


async def test_the_largest_change_set_comes_whole(rig: Any) -> None:
    await rig.commit(1, 1_024, 1)
    frame = await rig.hub.framer.frame(ALL, 1)
    assert (frame.end, frame.count) == (1_025, 1_024)


async def test_a_filter_that_matches_nothing_moves_the_position(rig: Any) -> None:
    await rig.commit(*[1] * (SCAN + 10))
    wanted = EventFilter(namespace="other")
    frame = await rig.hub.framer.frame(wanted, 0)
    assert (frame.end, frame.count, frame.data) == (SCAN, 0, b"")
    assert (await rig.hub.framer.frame(wanted, frame.end)).end == SCAN + 10
    assert rig.encoded == 0


async def test_a_frame_of_a_filter_holds_whole_change_sets(rig: Any) -> None:
    await rig.commit(*[3] * 10)
    frame = await rig.hub.framer.frame(EventFilter(task_ids=frozenset({"task-1"})), 0)
    found = [event.sequence for event in pb.StreamEventsResponse.FromString(frame.data).events]
    assert found == list(range(2, 30, 3))
    assert frame.end == 30


@pytest.mark.parametrize("readers", [1, 20])
async def test_frames_kept_are_bounded(rig: Any, readers: int) -> None:
    framer = rig.hub.framer
    framer._cache_bytes = 4_096
    for n in range(readers * 10):
        await rig.commit(1)
        await framer.frame(EventFilter(task_ids=frozenset({f"{n % readers}"})), rig.log.head - 1)
    assert framer._bytes <= 4_096
    assert len(framer._cache) <= 8


async def test_readers_of_other_tasks_cost_neither_encoding_nor_memory(rig: Any) -> None:
    await rig.commit(*[3] * 10)
    for n in range(100):
        frame = await rig.hub.framer.frame(EventFilter(task_ids=frozenset({f"nobody-{n}"})), 0)
        assert (frame.end, frame.count, frame.full) == (30, 0, False)
    assert rig.encoded == 0
    assert not rig.hub.framer._cache
