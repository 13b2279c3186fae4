"""What every store must do with events and blobs; parts of `StoreSuite`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import CursorCompacted, NotFound
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.ports import BlobInfo, Store
from agenthive_server.kernel.tasks import ErrorClass, TaskError

from .store_model import changing, task

MIB = 1024 * 1024


async def pieces(*content: bytes) -> AsyncIterator[bytes]:
    """Yield bytes as an upload would."""
    for piece in content:
        yield piece


def blob(name: str = "sha256:1", *, time: float = 1.0, namespace: str = "default") -> BlobInfo:
    """Return what an upload says of its blob before its size is known."""
    return BlobInfo(namespace=namespace, id=name, size=0, content_type="text/plain", create_time=time)


class LogSuite:
    """The behaviour of the event log."""

    async def test_the_log_has_no_holes_and_its_time_never_goes_back(self, store: Store, clock: ManualClock) -> None:
        await store.commit([changing(events=2), changing(task("a", revision=9), events=5), changing(events=1)])
        clock.move(-500)
        await store.commit([changing(events=1)])
        clock.move(1_000)
        group = [changing(events=3)]
        await store.commit(group)
        events = await store.read_events(0, 100)
        assert [event.sequence for event in events] == [1, 2, 3, 4, 5, 6, 7]
        assert [event.last for event in events] == [2, 2, 3, 4, 7, 7, 7]
        assert [event.time for event in events] == [1_000.0] * 4 + [1_500.0] * 3
        assert [event.sequence for event in group[0].events] == [5, 6, 7]

    async def test_an_event_comes_back_as_it_was_told(self, store: Store) -> None:
        error = TaskError(error_class=ErrorClass.QUOTA, reason="R", message="m", next_retry_delay=2.0)
        told = Event(
            type=EventType.TASK_FAILED,
            namespace="n",
            task_id="t",
            agent_id="a",
            session_id="s",
            role="coder",
            labels={"a": "ü"},
            ancestors=("r", "p"),
            data={"error": error, "attempt": 3, "retry_time": 1.5, "names": ["x"], "flag": False, "blob": b"\x00"},
        )
        bare = Event(type=EventType.AGENT_WAKING, namespace="n")
        await store.commit([ChangeSet(events=[told, bare])])
        assert await store.read_events(0, 10) == [told, bare]

    async def test_a_read_never_ends_within_a_change_set(self, store: Store) -> None:
        await store.commit([changing(events=3), changing(events=4), changing(events=1)])
        for after, limit, expected in [(0, 1, 3), (0, 3, 3), (0, 4, 7), (3, 2, 7), (5, 1, 7), (7, 5, 8), (0, 99, 8)]:
            events = await store.read_events(after, limit)
            assert [event.sequence for event in events] == list(range(after + 1, expected + 1))
        assert await store.read_events(8, 10) == []
        assert await store.read_events(99, 10) == []

    async def test_compaction_keeps_change_sets_whole(self, store: Store) -> None:
        await store.commit([changing(events=3), changing(events=4), changing(events=1)])
        assert await store.compact(3) == 1
        assert await store.compact(5) == 4
        assert await store.compact(99, limit=1) == 8
        assert await store.compact(8) == 8
        assert (await store.bounds()).oldest == 8
        with pytest.raises(CursorCompacted) as caught:
            await store.read_events(6, 10)
        assert caught.value.metadata == {"oldest_sequence": "8"}
        assert [event.sequence for event in await store.read_events(7, 10)] == [8]

    async def test_an_empty_log_begins_after_its_head(self, store: Store, new_store: Callable[[], Store]) -> None:
        before = await store.bounds()
        assert (before.oldest, before.head) == (1, 0)
        assert await store.compact(5) == 1
        await store.commit([changing(events=2)])
        assert await store.compact(99) == 3
        await store.close()
        store = new_store()
        await store.open()
        after = await store.bounds()
        assert (after.oldest, after.head, after.log_id) == (3, 2, before.log_id)
        assert await store.read_events(2, 10) == []
        with pytest.raises(CursorCompacted):
            await store.read_events(0, 10)
        await store.commit([changing(events=1)])
        assert [event.sequence for event in await store.read_events(2, 10)] == [3]
        await store.close()

    async def test_a_time_has_a_place_in_the_log(self, store: Store, clock: ManualClock) -> None:
        assert await store.sequence_at(0.0) == 0
        for _ in range(5):
            await store.commit([changing(events=2)])
            clock.move(10)
        await store.compact(3)
        times = [0.0, 1_010.0, 1_011.0, 1_020.0, 1_040.0, 1_040.5]
        assert [await store.sequence_at(time) for time in times] == [2, 2, 4, 4, 8, 10]


class BlobSuite:
    """The behaviour of blobs."""

    async def test_a_blob_is_read_from_any_offset(self, store: Store) -> None:
        content = bytes(range(256)) * (MIB // 100)
        stored = await store.put_blob(blob(), pieces(content[:10], content[10 : 2 * MIB], content[2 * MIB :]))
        assert (stored.size, stored.content_type) == (len(content), "text/plain")
        assert await store.find_blob("default", "sha256:1") == stored
        for offset in (0, 1, MIB - 1, MIB, 2 * MIB + 5, len(content) - 1, len(content), len(content) + 9):
            read = [piece async for piece in store.read_blob("default", "sha256:1", offset)]
            assert b"".join(read) == content[offset:]
            assert all(0 < len(piece) <= MIB for piece in read)

    async def test_blobs_belong_to_a_namespace_and_may_be_empty(self, store: Store) -> None:
        await store.put_blob(blob(), pieces(b"one"))
        await store.put_blob(blob(namespace="other"), pieces())
        assert [piece async for piece in store.read_blob("other", "sha256:1")] == []
        assert await store.find_blob("third", "sha256:1") is None
        with pytest.raises(NotFound):
            await anext(store.read_blob("third", "sha256:1"))

    async def test_a_blob_stored_again_is_renewed(self, store: Store) -> None:
        await store.put_blob(blob(), pieces(b"content"))
        again = await store.put_blob(blob(time=50.0), pieces(b"content"))
        assert (again.size, again.create_time) == (7, 50.0)
        assert await store.expire_blobs(50.0) == 0

    async def test_an_upload_that_fails_leaves_nothing(self, store: Store) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield bytes(2 * MIB)
            raise ValueError("does not match its digest")

        with pytest.raises(ValueError, match="digest"):
            await store.put_blob(blob(), broken())
        assert await store.find_blob("default", "sha256:1") is None
        assert (await store.put_blob(blob(), pieces(b"right"))).size == 5

    async def test_uploads_of_the_same_blob_meet(self, store: Store) -> None:
        stored = await asyncio.gather(*(store.put_blob(blob(), pieces(b"a" * MIB, b"b")) for _ in range(3)))
        assert {info.size for info in stored} == {MIB + 1}
        assert len(b"".join([piece async for piece in store.read_blob("default", "sha256:1")])) == MIB + 1

    async def test_old_blobs_go_oldest_first(self, store: Store) -> None:
        for number in (3, 1, 2):
            await store.put_blob(blob(f"sha256:{number}", time=float(number)), pieces(b"x"))
        assert await store.expire_blobs(3.0, limit=1) == 1
        assert await store.find_blob("default", "sha256:1") is None
        assert await store.expire_blobs(3.0) == 1
        assert await store.find_blob("default", "sha256:3") is not None
