"""The log: tail and store are one, whatever is appended, trimmed or compacted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from agenthive_server.events.chunks import weigh
from agenthive_server.events.cursor import parse_cursor
from agenthive_server.kernel.errors import CursorCompacted, StoreUnavailable
from agenthive_server.kernel.events import Event

NewRig = Callable[..., Any]


async def read_all(rig: Any, after: int, limit: int = 10) -> list[int]:
    found: list[int] = []
    while events := await rig.log.read(after, limit):
        assert events[0].sequence == after + 1
        assert events[-1].sequence == events[-1].last
        found += [event.sequence for event in events]
        after = found[-1]
    return found


async def test_the_tail_is_read_without_the_store(rig: Any) -> None:
    await rig.commit(1, 5, 3)
    assert await read_all(rig, 0) == list(range(1, 10))
    assert await read_all(rig, 6) == [7, 8, 9]
    assert await rig.log.read(9, 10) == []
    assert rig.store.reads == 0


async def test_a_change_set_is_never_split(rig: Any) -> None:
    await rig.commit(3, 4)
    assert [event.sequence for event in await rig.log.read(0, 1)] == [1, 2, 3]
    assert [event.sequence for event in await rig.log.read(0, 4)] == [1, 2, 3, 4, 5, 6, 7]


async def test_what_is_behind_the_tail_comes_from_the_store(new_rig: NewRig) -> None:
    async with new_rig(tail_bytes=10 * 640, chunk_events=7) as rig:
        for _ in range(20):
            await rig.commit(2, 3)
        assert await read_all(rig, 0) == list(range(1, 101))
        assert rig.store.reads > 5
        reads = rig.store.reads
        assert await read_all(rig, 92) == list(range(93, 101))
        assert rig.store.reads == reads


async def test_many_readers_cause_one_read(new_rig: NewRig) -> None:
    async with new_rig(tail_bytes=640) as rig:
        await rig.commit(*[5] * 20)
        await rig.commit(1)
        found = await asyncio.gather(*[rig.log.read(0, 50) for _ in range(100)])
        assert all(len(events) == 50 for events in found)
        assert rig.store.reads == 1


async def test_a_cancelled_reader_leaves_the_read_to_the_next(new_rig: NewRig) -> None:
    async with new_rig(tail_bytes=640) as rig:
        await rig.commit(*[1] * 20)
        first = asyncio.ensure_future(rig.log.read(0, 5))
        second = asyncio.ensure_future(rig.log.read(0, 5))
        await asyncio.sleep(0)
        first.cancel()
        assert len(await second) == 5
        assert rig.store.reads == 2


async def test_a_reader_that_waits_for_the_read_of_another_may_be_cancelled(new_rig: NewRig) -> None:
    async with new_rig(tail_bytes=640) as rig:
        await rig.commit(*[1] * 20)
        first, second, third = [asyncio.ensure_future(rig.log.read(0, 5)) for _ in range(3)]
        await asyncio.sleep(0)
        second.cancel()
        assert len(await first) == len(await third) == 5
        assert second.cancelled()
        assert rig.store.reads == 1


async def test_an_error_of_the_store_reaches_all_who_wait_for_the_read(new_rig: NewRig) -> None:
    async with new_rig(tail_bytes=640) as rig:
        await rig.commit(*[1] * 20)
        rig.store.away = True
        found = await asyncio.gather(*[rig.log.read(0, 5) for _ in range(3)], return_exceptions=True)
        assert [type(error) for error in found] == [StoreUnavailable] * 3
        assert rig.store.reads == 1
        rig.store.away = False
        assert len(await rig.log.read(0, 5)) == 5


async def test_a_hole_before_what_is_appended_is_read_from_the_store(rig: Any) -> None:
    await rig.commit(2)
    await rig.commit(3, elsewhere=True)
    assert rig.log.head == 5
    await rig.commit(1)
    assert await read_all(rig, 0) == [1, 2, 3, 4, 5, 6]


async def test_events_appended_late_and_twice_change_nothing(rig: Any) -> None:
    first = await rig.commit(2, elsewhere=True)
    rig.log.append(first)
    second = await rig.commit(2)
    rig.log.append(second)
    assert rig.log.head == 4
    assert await read_all(rig, 0) == [1, 2, 3, 4]


async def test_a_hole_inside_what_is_appended_is_read_from_the_store(rig: Any) -> None:
    advance, rig.log.advance = rig.log.advance, lambda head: None
    events = await rig.commit(1, 1, 1, 1, elsewhere=True)
    rig.log.advance = advance
    rig.log.append([events[0], events[-1]])
    assert rig.log.head == 4
    await rig.commit(1)
    assert await read_all(rig, 0) == [1, 2, 3, 4, 5]


async def test_what_is_compacted_is_refused_even_while_it_is_still_in_memory(new_rig: NewRig) -> None:
    async with new_rig(tail_bytes=640) as rig:
        await rig.commit(*[1] * 20)
        await rig.log.read(0, 5)
        await rig.log.compact(11)
        with pytest.raises(CursorCompacted):
            await rig.log.read(0, 5)


async def test_too_late_is_said_with_the_oldest_cursor(rig: Any) -> None:
    await rig.commit(*[2] * 10)
    assert await rig.log.compact(9) == 9
    with pytest.raises(CursorCompacted) as caught:
        await rig.log.read(7, 10)
    oldest = parse_cursor(caught.value.metadata["oldest_cursor"])
    assert (oldest.log_id, oldest.sequence) == ("log-1", 8)
    assert (await rig.log.read(8, 2))[0].sequence == 9


async def test_compaction_by_another_replica_is_noticed_when_reading(new_rig: NewRig) -> None:
    async with new_rig(tail_bytes=640) as rig:
        await rig.commit(*[1] * 20)
        await rig.store.compact(11)
        with pytest.raises(CursorCompacted) as caught:
            await rig.log.read(3, 10)
        assert parse_cursor(caught.value.metadata["oldest_cursor"]).sequence == 10
        assert rig.log.oldest == 11


async def test_a_store_that_goes_on_later_than_asked_is_never_believed(new_rig: NewRig) -> None:
    async with new_rig(tail_bytes=640) as rig:
        await rig.commit(*[1] * 20)
        whole = list(rig.store._events)

        async def late(after: int, limit: int) -> list[Event]:
            del rig.store._events[:10]
            return whole[10:15]

        rig.store.read_events = late
        with pytest.raises(CursorCompacted):
            await rig.log.read(3, 10)


async def test_the_tail_stays_within_its_bound(new_rig: NewRig) -> None:
    async with new_rig(tail_bytes=100 * 640) as rig:
        for _ in range(50):
            await rig.commit(7, 4)
            assert weigh(rig.log._tail) == rig.log._tail_weight <= 100 * 640
            assert (
                rig.log._tail[0].sequence == 1
                or rig.log._tail[0].sequence - 1 == rig.model[rig.log._tail[0].sequence - 2].last
            )


async def test_a_time_before_what_is_kept_is_too_old(rig: Any) -> None:
    await rig.commit(1)
    rig.clock.move(10)
    await rig.commit(1)
    rig.clock.move(10)
    third = await rig.commit(1)
    assert await rig.log.sequence_at(rig.clock.now() - 15) == 1
    assert await rig.log.sequence_at(0) == 0
    await rig.log.compact(2)
    with pytest.raises(CursorCompacted):
        await rig.log.sequence_at(rig.clock.now() - 15)
    assert await rig.log.sequence_at(third[0].time) == 2
    assert await rig.log.sequence_at(third[0].time + 1) == 3


async def test_each_event_is_encoded_once(rig: Any) -> None:
    (event,) = await rig.commit(1)
    assert rig.encoded == 0
    assert rig.log.wire(event) is rig.log.wire(event)
    assert rig.encoded == 1
