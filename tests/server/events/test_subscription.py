"""One reader: where it begins, what it hears when nothing happens, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from agenthive_server.events.filter import EventFilter
from agenthive_server.events.subscription import EventClass, Start
from agenthive_server.kernel.errors import BadRequest, CursorCompacted, StoreUnavailable
from agenthive_server.kernel.events import Event, EventType

NewRig = Callable[..., Any]

NOTHING = EventFilter(namespace="other")


def cursor(sequence: int | None) -> str:
    return "c1.log-1.-" if sequence is None else f"c1.log-1.{sequence}"


async def test_it_opens_with_its_cursor_at_once(rig: Any) -> None:
    await rig.commit(3)
    reader = await rig.reader()
    (frame,) = await reader.take()
    assert not frame.events
    assert frame.cursor == cursor(3)


async def test_now_begins_with_the_next_event(rig: Any) -> None:
    await rig.commit(2)
    reader = await rig.reader(start=Start.NOW)
    await rig.commit(1)
    await reader.take()
    assert reader.sequences == [3]
    await rig.commit(2)
    await reader.take()
    assert reader.sequences == [3, 4, 5]


async def test_earliest_begins_with_the_oldest_kept(rig: Any) -> None:
    await rig.commit(2, 2)
    await rig.store.compact(3)
    reader = await rig.reader(start=Start.EARLIEST)
    await reader.take()
    assert reader.frames[0].cursor == cursor(2)
    assert reader.sequences == [3, 4]


async def test_after_is_exclusive(rig: Any) -> None:
    await rig.commit(1, 1, 1)
    reader = await rig.reader(start=Start.AFTER, cursor=cursor(2))
    await reader.take()
    assert reader.sequences == [3]


async def test_at_time_begins_with_the_first_event_of_that_time(rig: Any) -> None:
    await rig.commit(1)
    rig.clock.move(5)
    second = await rig.commit(1)
    reader = await rig.reader(start=Start.AT_TIME, time=second[0].time)
    await reader.take()
    assert reader.sequences == [2]


@pytest.mark.parametrize("text", ["nonsense", cursor(3), "c1.log-1.zzzzzz"])
async def test_a_cursor_that_cannot_be_is_refused(rig: Any, text: str) -> None:
    await rig.commit(2)
    with pytest.raises(BadRequest) as caught:
        await rig.reader(start=Start.AFTER, cursor=text)
    assert caught.value.reason == "INVALID_CURSOR"
    assert len(rig.hub) == 0


async def test_a_cursor_of_another_log_is_too_old(rig: Any) -> None:
    await rig.commit(2)
    with pytest.raises(CursorCompacted) as caught:
        await rig.reader(start=Start.AFTER, cursor="c1.log-0.1")
    assert caught.value.metadata["oldest_cursor"] == cursor(0)
    assert rig.hub.too_old == 1


async def test_a_cursor_told_by_another_replica_is_looked_up(rig: Any) -> None:
    await rig.commit(1)
    rig.log.advance = lambda head: None
    await rig.commit(2, elsewhere=True)
    del rig.log.advance
    reader = await rig.reader(start=Start.AFTER, cursor=cursor(3))
    await reader.take()
    assert reader.frames[0].cursor == cursor(3)


async def test_too_late_at_the_start_and_later(new_rig: NewRig) -> None:
    async with new_rig(tail_bytes=640) as rig:
        await rig.commit(*[1] * 3_000)
        reader = await rig.reader(start=Start.EARLIEST)
        await reader.take(2)
        assert reader.sequences
        await rig.log.compact(2_000)
        await reader.take()
        assert isinstance(reader.error, CursorCompacted)
        assert reader.error.metadata["oldest_cursor"] == reader.subscription._log.cursor(1_999)
        with pytest.raises(CursorCompacted):
            await rig.reader(start=Start.AFTER, cursor=reader.cursor)


async def test_an_idle_stream_sends_its_cursor_in_time(rig: Any) -> None:
    reader = await rig.reader(bookmark_interval=15)
    await reader.take()
    for _ in range(3):
        await rig.clock.advance(15)
        assert [frame.cursor for frame in await reader.take()] == [cursor(0)]


async def test_the_interval_is_bounded(rig: Any) -> None:
    short = await rig.reader(bookmark_interval=0.01)
    long = await rig.reader(bookmark_interval=3_600)
    await short.take()
    await long.take()
    await rig.clock.advance(0.5)
    assert not await short.take()
    await rig.clock.advance(0.5)
    assert len(await short.take()) == 1
    await rig.clock.advance(14)
    assert len(await long.take()) == 1


async def test_a_filter_that_matches_nothing_still_moves_the_cursor(rig: Any) -> None:
    reader = await rig.reader(filter=NOTHING)
    await reader.take()
    for _ in range(30):
        await rig.commit(1)
        await reader.take()
        await rig.clock.advance(0.5)
    await reader.take()
    assert not reader.sequences
    assert reader.position >= 29


async def test_without_following_it_ends_at_the_head_with_its_cursor(rig: Any) -> None:
    await rig.commit(2, 2)
    everything = await rig.reader(start=Start.EARLIEST, follow=False)
    nothing = await rig.reader(start=Start.EARLIEST, follow=False, filter=NOTHING)
    for reader in (everything, nothing):
        await reader.take()
        assert reader.ended
        assert reader.error is None
        assert reader.cursor == cursor(4)
    assert everything.sequences == [1, 2, 3, 4]
    assert len(everything.frames) == 2


async def test_draining_ends_every_stream_with_a_last_cursor(rig: Any) -> None:
    readers = [await rig.reader(), await rig.reader(start=Start.EARLIEST, filter=NOTHING)]
    for reader in readers:
        await reader.take()
    await rig.commit(2)
    for reader in readers:
        await reader.take()
    rig.hub.drain()
    for reader in readers:
        (last,) = await reader.take()
        assert (list(last.events), last.cursor) == ([], cursor(2))
        assert reader.ended
        assert reader.error is None
    with pytest.raises(Exception, match="stopping"):
        await rig.reader()


async def test_one_stream_can_be_ended(rig: Any) -> None:
    one, other = await rig.reader(), await rig.reader()
    await one.take()
    await other.take()
    one.subscription.end()
    assert len(await one.take()) == 1
    assert one.ended
    assert not await other.take()
    assert not other.ended


async def test_a_store_that_is_away_delays_a_reader_and_bookmarks_go_on(new_rig: NewRig) -> None:
    async with new_rig(tail_bytes=640) as rig:
        await rig.commit(*[1] * 50)
        reader = await rig.reader(start=Start.EARLIEST)
        rig.store.away = True
        await reader.take()
        for _ in range(4):
            await rig.clock.advance(15)
            assert [frame.cursor for frame in await reader.take()] == [cursor(0)]
        assert rig.store.reads < 40
        rig.store.away = False
        await rig.clock.advance(5.5)
        await reader.take()
        assert reader.sequences == list(range(1, 51))
        assert rig.hub.store_errors > 5


async def test_a_store_that_is_away_does_not_disturb_readers_of_the_tail(rig: Any) -> None:
    reader = await rig.reader()
    rig.store.away = True
    await rig.commit(5)
    await reader.take()
    assert reader.sequences == [1, 2, 3, 4, 5]


async def test_a_store_that_is_away_refuses_a_start_that_needs_it(rig: Any) -> None:
    async def away() -> None:
        raise StoreUnavailable("away")

    rig.store.bounds = away
    with pytest.raises(StoreUnavailable):
        await rig.reader(start=Start.EARLIEST)


def snapshot_of(sequence: int, agents: int, tasks: int) -> Callable[[], tuple[int, list[Event]]]:
    def take() -> tuple[int, list[Event]]:
        found = [Event(type=EventType.AGENT_SNAPSHOT, namespace="default", agent_id=f"a{n}") for n in range(agents)]
        found += [Event(type=EventType.TASK_SNAPSHOT, namespace="default", task_id=f"t{n}") for n in range(tasks)]
        return sequence, found

    return take


async def test_a_snapshot_is_followed_by_its_end_and_by_the_tail(rig: Any) -> None:
    await rig.commit(2)
    snapshot = snapshot_of(2, 3, 2_000)
    reader = await rig.reader(snapshot, start=Start.SNAPSHOT_THEN_TAIL)
    await reader.take(2)
    await rig.commit(1)
    await reader.take()
    events = [event for frame in reader.frames for event in frame.events]
    end = next(n for n, event in enumerate(events) if event.HasField("snapshot_end"))
    assert end == 2_003
    assert (events[end].snapshot_end.agent_count, events[end].snapshot_end.task_count) == (3, 2_000)
    assert [event.sequence for event in events[end + 1 :]] == [3]


async def test_the_cursor_before_the_end_of_a_snapshot_leads_to_a_new_snapshot(rig: Any) -> None:
    await rig.commit(2)
    first = await rig.reader(snapshot_of(2, 0, 3_000), start=Start.SNAPSHOT_THEN_TAIL)
    await first.take(2)
    assert first.cursor == first.frames[0].cursor == cursor(None)
    second = await rig.reader(snapshot_of(2, 0, 5), start=Start.AFTER, cursor=first.cursor)
    await second.take()
    assert len(second.sequences) == 6
    assert second.cursor == cursor(2)


async def test_filters_apply_to_a_snapshot(rig: Any) -> None:
    wanted = EventFilter(task_ids=frozenset({"t1"}))
    reader = await rig.reader(snapshot_of(0, 4, 4), start=Start.SNAPSHOT_THEN_TAIL, filter=wanted)
    await reader.take()
    events = [event for frame in reader.frames for event in frame.events]
    assert [event.task_id for event in events] == ["t1", ""]
    assert events[-1].snapshot_end.task_count == 1


async def test_a_snapshot_may_be_awaited_and_may_be_ahead_of_the_log(rig: Any) -> None:
    async def take() -> tuple[int, list[Event]]:
        await asyncio.sleep(0)
        return 2, []

    reader = await rig.reader(take, start=Start.SNAPSHOT_THEN_TAIL)
    await reader.take()
    assert reader.cursor == cursor(2)
    await rig.commit(1, 1, 1)
    await reader.take()
    assert reader.sequences == [0, 3]


async def test_a_snapshot_nobody_can_take_is_refused(rig: Any) -> None:
    for spec in ({"start": Start.SNAPSHOT_THEN_TAIL}, {"start": Start.AFTER, "cursor": cursor(None)}):
        with pytest.raises(BadRequest):
            await rig.reader(**spec)


async def test_readers_of_one_filter_share_frames_and_encodings(rig: Any) -> None:
    readers = [await rig.reader(filter=EventFilter(namespace="default")) for _ in range(20)]
    await rig.commit(*[2] * 10)
    for reader in readers:
        await reader.take()
        assert reader.sequences == list(range(1, 21))
    assert rig.encoded == 20
    assert rig.hub.framer.made == 1


async def test_readers_from_the_beginning_share_what_the_store_gives(new_rig: NewRig) -> None:
    async with new_rig(tail_bytes=640, chunk_events=100) as rig:
        await rig.commit(*[1] * 1_000)
        readers = [await rig.reader(start=Start.EARLIEST) for _ in range(20)]
        for _ in range(12):
            for reader in readers:
                await reader.take(1)
        assert all(reader.sequences == list(range(1, 1_001)) for reader in readers)
        assert rig.store.reads <= 12
        assert rig.encoded == 1_000


async def test_closing_is_counted(rig: Any) -> None:
    reader = await rig.reader()
    assert rig.hub.metrics()["agenthive_event_subscriptions"] == 1
    await reader.close()
    await rig.close()
    assert len(rig.hub) == 0


async def test_output_alone_does_not_carry_the_log(rig: Any) -> None:
    reader = await rig.reader(event_class=EventClass.OUTPUT)
    await rig.commit(2)
    await reader.take()
    assert not reader.sequences
    await rig.clock.advance(15)
    assert (await reader.take())[0].cursor == cursor(2)
