"""What one server takes in is read on another: from any offset, in order, once, and a gap is marked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from agenthive_server.events.filter import EventFilter
from agenthive_server.events.output import OVERHEAD, OutputHub
from agenthive_server.events.output_reader import OutputPosition, OutputReader
from agenthive_server.events.redis.held import HELD_BYTES
from agenthive_server.events.redis.records import Names
from agenthive_server.events.redis.streams import PENDING_BYTES
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.tasks import Task, TaskSpec, TaskState
from agenthive_server.testing.waiting import eventually

TASK = Task(
    namespace="default",
    id="t",
    spec=TaskSpec(type="work", role="coder", labels={"team": "a"}),
    state=TaskState.RUNNING,
)
OTHER = replace(TASK, id="u", spec=TaskSpec(type="work", role="tester"))
NARROW = EventFilter(namespace="default", task_ids=frozenset({"t"}))
BROAD = EventFilter(namespace="default")
KEY = ("default", "t", 1)


class Reader:
    """A subscriber of one server's hub, as `Subscription` makes one."""

    def __init__(self, hub: OutputHub, reader: OutputReader) -> None:
        self._hub = hub
        self._reader = reader
        self.chunks: list[tuple[str, int, int, bytes]] = []
        self.gaps: list[tuple[str, int, int, int]] = []
        self.progress: list[tuple[str, float, str]] = []
        self.events: list[Event] = []

    def look(self) -> Reader:
        """Read what is there."""
        while self._reader.behind:
            for event in self._reader.read(64, 100_000):
                self._note(event)
        return self

    def _note(self, event: Event) -> None:
        self.events.append(event)
        data = event.data
        if event.type is EventType.TASK_OUTPUT:
            self.chunks.append((event.task_id, data["attempt"], data["offset"], data["data"]))
        elif event.type is EventType.OUTPUT_GAP:
            self.gaps.append((event.task_id, data["attempt"], data["from_offset"], data["to_offset"]))
        else:
            self.progress.append((event.task_id, data["fraction"], data["text"]))

    def ends_at(self, offset: int) -> bool:
        return bool(self.chunks) and self.chunks[-1][2] == offset

    def reads(self, text: bytes) -> bool:
        return self.text() == text

    def text(self, task_id: str = "t") -> bytes:
        """What was read of a task; offsets must follow each other but for gaps."""
        self.look()
        return b"".join(chunk for name, _, _, chunk in self.chunks if name == task_id)


@asynccontextmanager
async def reading(
    part: Any, wanted: EventFilter = NARROW, *, early: bool = False, sequence: int | None = None, **offsets: int
) -> AsyncIterator[Reader]:
    """Open a reader: from now on, from offsets of attempts 1, from the earliest, or since the log stood somewhere."""
    hub, keys = part.hub, {("default", task, 1): offset for task, offset in offsets.items()}
    since = -1 if early else part.log.head if sequence is None else sequence
    wish = await hub.exchange.open(wanted, since, keys, backlog=early or sequence is not None)
    position = 0 if early else hub.next if sequence is None else hub.position_at(sequence=sequence)
    wishes = [OutputPosition(namespace="default", task_id=key[1], attempt=1, offset=at) for key, at in keys.items()]
    try:
        yield Reader(hub, OutputReader(hub, wanted, position, wishes, sequence=since))
    finally:
        hub.exchange.close(wish)


async def shared(parts: Any, key: tuple[str, str, int] = KEY, end: int = 1) -> None:
    """Wait until Redis has an attempt's output up to a byte."""
    name = Names("agenthive:{log-1}:").stream(key)
    wanted = f"{end}-0".encode()
    await eventually(lambda: wanted in parts.redis.ask("XREVRANGE", name, "+", "-", "COUNT", "1"))


@pytest.mark.parametrize("wanted", [NARROW, BROAD, EventFilter(), EventFilter(roles=frozenset({"coder"}))])
async def test_a_follower_elsewhere_reads_along(parts: Any, wanted: EventFilter) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    async with reading(two, wanted) as reader, reading(one, wanted) as local:
        for number in range(200):
            one.hub.append(TASK, 1, 4 * number, f"{number:03};".encode(), "stdout")
            # Its own readers wait for no Redis.
            assert len(local.text()) == 4 * (number + 1)
            if number % 20 == 0:
                await asyncio.sleep(0.01)
        await eventually(lambda: len(reader.text()) == 800)
        assert reader.text() == local.text()
        assert reader.gaps == []
        event = reader.events[0]
        assert (event.role, event.labels, event.data["stream"]) == ("coder", {"team": "a"}, "stdout")
        assert 0 < event.time <= local.events[-1].time
        loop = asyncio.get_running_loop()
        began = loop.time()
        one.hub.append(TASK, 1, 800, b"end", "stdout")
        await eventually(lambda: reader.text().endswith(b"end"))
        assert loop.time() - began < 0.5


async def test_one_may_resume_at_any_offset_on_another_server(parts: Any) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    whole = bytes(range(256)) * 40
    for start in range(0, len(whole), 100):
        one.hub.append(TASK, 1, start, whole[start : start + 100])
    await shared(parts, end=len(whole))
    for offset in (0, 1, 99, 100, 5_050, len(whole) - 1, 3):
        async with reading(two, t=offset) as reader:
            assert reader.text() == whole[offset:]
            assert reader.gaps == []
    async with reading(two, t=len(whole)) as reader:
        one.hub.append(TASK, 1, len(whole), b"more")
        await eventually(lambda: reader.text() == b"more")


async def test_who_begins_now_is_not_given_what_was_before(parts: Any) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    one.hub.append(TASK, 1, 0, b"before ")
    await shared(parts, end=7)
    parts.log.head = 5
    async with reading(two, BROAD) as reader:
        one.hub.append(TASK, 1, 7, b"now")
        await eventually(lambda: reader.text() == b"now")
        assert reader.gaps == []
        # One that comes later wants the beginning: it is brought in again, and nobody gets anything twice.
        async with reading(two, t=0) as late:
            assert late.text() == b"before now"
            one.hub.append(TASK, 1, 10, b" on")
            await eventually(lambda: (reader.text(), late.text()) == (b"now on", b"before now on"))
            assert (reader.gaps, late.gaps) == ([], [])


async def test_the_earliest_and_what_came_since_are_found_in_redis(parts: Any) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    parts.log.head = 3
    one.hub.append(TASK, 1, 0, b"first ")
    one.hub.append(OTHER, 1, 0, b"other")
    await shared(parts, ("default", "u", 1), 5)
    parts.log.head = 8
    one.hub.append(TASK, 1, 6, b"second")
    one.hub.append(replace(TASK, attempt=2), 2, 0, b"again")
    await shared(parts, ("default", "t", 2), 5)
    async with reading(two, BROAD, early=True) as reader:
        assert reader.text() == b"first secondagain"
        assert reader.text("u") == b"other"
        assert reader.gaps == []
    async with reading(two, NARROW, sequence=8) as reader:
        assert reader.text() == b"secondagain"
        assert reader.text("u") == b""
    assert not two.hub.attempts, "what nobody reads is let go"


async def test_progress_travels_too(parts: Any) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    one.hub.append(TASK, 1, 0, b"x" * 50)
    await shared(parts, end=50)
    parts.log.head = 1
    async with reading(two, EventFilter(types=frozenset({EventType.TASK_PROGRESSED}))) as reader, reading(two) as both:
        one.hub.progress(TASK, 1, 0.25, "a quarter")
        await eventually(lambda: reader.look().progress == [("t", 0.25, "a quarter")])
        assert reader.text() == b""
        one.hub.append(TASK, 1, 50, b"y")
        await eventually(lambda: both.text() == b"y")
        assert (both.gaps, both.progress) == ([], [("t", 0.25, "a quarter")])


async def test_what_had_to_go_is_marked_as_a_gap(parts: Any) -> None:
    one, two = await parts.open("one", attempt_bytes=100_000), await parts.open("two")
    for start in range(0, 4_000_000, 1_000):
        one.hub.append(TASK, 1, start, b"." * 1_000)
        if start % 100_000 == 0:
            await asyncio.sleep(0.005)
    await shared(parts, end=4_000_000)
    held = int(parts.redis.ask("MEMORY", "USAGE", Names("agenthive:{log-1}:").stream(KEY), "SAMPLES", "0")[1:])
    assert held < 3_000_000, "what is gone here goes there"
    async with reading(two, t=0) as reader:
        text = reader.text()
        assert len(reader.gaps) == 1
        assert reader.gaps[0][:3] == ("t", 1, 0)
        assert len(text) + reader.gaps[0][3] == 4_000_000


async def test_nobody_is_told_what_he_does_not_read(parts: Any) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    async with reading(two) as reader:
        one.hub.append(OTHER, 1, 0, b"nobody reads this")
        one.hub.append(TASK, 1, 0, b"this")
        await eventually(lambda: reader.text() == b"this")
        assert set(two.hub.attempts) == {KEY}
    assert not two.hub.attempts
    one.hub.append(TASK, 1, 4, b"more")
    await shared(parts, end=8)
    assert not two.hub.attempts
    assert two.hub.bytes_kept == 0


def expired(hub: OutputHub) -> bool:
    hub.expire()
    return hub.empty


# Attempts that move


async def test_an_attempt_goes_on_on_another_server_without_a_gap(parts: Any) -> None:
    one, two, three = [await parts.open(name) for name in ("one", "two", "three")]
    async with reading(one) as old, reading(two) as new, reading(three) as elsewhere:
        one.hub.append(TASK, 1, 0, b"here ")
        await shared(parts, end=5)
        two.hub.append(TASK, 1, 5, b"and ")
        two.hub.append(TASK, 1, 9, b"there")
        for reader in (old, new, elsewhere):
            await eventually(partial(reader.reads, b"here and there"))
            assert reader.gaps == []
    await two.hub.exchange.whole(KEY)
    assert two.hub.tail(*KEY) == b"here and there", "its end is kept whole by the server that has it"


async def test_without_redis_an_attempt_that_moved_has_a_gap_and_waits_for_nothing(parts: Any) -> None:
    two = await parts.open("two")
    parts.redis.stop()
    await eventually(lambda: two.link.trouble)
    two.hub.append(TASK, 1, 5, b"there")
    assert two.hub.tail(*KEY) == b"there"


async def test_what_is_held_while_redis_hangs_is_let_go(parts: Any) -> None:
    two = await parts.open("two")
    reader = Reader(two.hub, OutputReader(two.hub, NARROW, two.hub.next))
    parts.redis.pause()
    assert two.hub.append(TASK, 1, 5, b"there")
    assert two.hub.append(TASK, 1, 10, b" it is")
    assert reader.text() == b""
    await asyncio.wait_for(two.hub.exchange.whole(KEY), 5)
    assert reader.text() == b"there it is"
    assert reader.gaps == [("t", 1, 0, 5)]


async def test_too_much_is_not_held(parts: Any) -> None:
    two = await parts.open("two", attempt_bytes=4 * HELD_BYTES)
    parts.redis.pause()
    for start in range(0, 2 * HELD_BYTES, 2**16):
        two.hub.append(TASK, 1, 7 + start, b"." * 2**16)
    assert len(two.hub.tail(*KEY)) >= HELD_BYTES
    await asyncio.wait_for(two.hub.exchange.whole(KEY), 5)
    assert len(two.hub.tail(*KEY)) == 2 * HELD_BYTES


# Redis that fails


@pytest.mark.parametrize("harm", ["restart", "kill", "pause", "flush"])
async def test_losing_redis_loses_output_at_most_and_marks_it(parts: Any, harm: str) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    async with reading(two, BROAD) as reader:
        one.hub.append(TASK, 1, 0, b"0" * 100)
        await eventually(lambda: len(reader.text()) == 100)
        if harm == "pause":
            parts.redis.pause()
            await eventually(lambda: one.link.trouble and two.link.trouble)
        elif harm == "flush":
            parts.redis.flush()
        else:
            getattr(parts.redis, {"restart": "stop"}.get(harm, harm))()
            await eventually(lambda: one.link.trouble and two.link.trouble)
        one.hub.append(TASK, 1, 100, b"1" * 100)
        # Every attempt begins after an event that assigns it.
        parts.log.head += 1
        one.hub.append(OTHER, 1, 0, b"began meanwhile")
        async with reading(one) as local:
            one.hub.append(TASK, 1, 200, b"2" * 100)
            assert local.text() == b"2" * 100, "its own readers need no Redis"
        if harm == "pause":
            parts.redis.resume()
        elif harm != "flush":
            parts.redis.start()
        await eventually(lambda: reader.text().endswith(b"2" * 100), limit=30)
        missing = sum(end - start for _, _, start, end in reader.gaps)
        assert len(reader.text()) + missing == 300
        await eventually(lambda: reader.text("u") == b"began meanwhile")
        one.hub.append(TASK, 1, 300, b"3" * 100)
        await eventually(lambda: reader.text().endswith(b"3" * 100))
    await eventually(lambda: not one.link.trouble and not two.link.trouble)


async def test_what_waits_for_redis_is_bounded_and_the_newest_is_kept(parts: Any) -> None:
    one, two = await parts.open("one", attempt_bytes=2**30, total_bytes=2**30), await parts.open("two")
    parts.redis.stop()
    await eventually(lambda: one.link.trouble and two.link.trouble)
    size, count = 2**16, 3 * PENDING_BYTES // 2**16
    for number in range(count):
        one.hub.append(TASK, 1, number * size, b"." * size)
    assert one.output._streams._bytes <= PENDING_BYTES + size + OVERHEAD
    parts.redis.start()
    await shared(parts, end=count * size)
    async with reading(two, t=0) as reader:
        await eventually(lambda: reader.look().ends_at((count - 1) * size))
        missing = sum(end - start for _, _, start, end in reader.gaps)
        assert 0 < missing < count * size
        assert missing + len(reader.text()) == count * size


async def test_nonsense_in_redis_harms_nobody(parts: Any) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    names = Names("agenthive:{log-1}:")
    async with reading(two, BROAD) as reader:
        parts.redis.ask("PUBLISH", names.channel("default", "t"), "nonsense")
        parts.redis.ask("XADD", names.stream(KEY), "1-0", "x", "nonsense")
        parts.redis.ask("ZADD", names.directory, "0", "nonsense", "0", "default:gone:1")
        one.hub.append(TASK, 1, 0, b"sense")
        await eventually(lambda: reader.text() == b"sense")
    async with reading(two, BROAD, early=True) as reader:
        assert reader.text() == b"sense"
    assert b"default:gone:1" not in parts.redis.ask("ZRANGE", names.directory, "0", "-1")
    parts.redis.ask("DEL", names.stream(KEY))
    parts.redis.ask("SET", names.stream(KEY), "a string")
    one.hub.append(TASK, 1, 5, b"!")
    await eventually(lambda: "WRONGTYPE" in one.link.trouble)
    parts.redis.ask("DEL", names.stream(KEY))
    await eventually(lambda: not one.link.trouble)


# Bounds


async def test_guests_have_bounds_of_their_own(parts: Any) -> None:
    one = await parts.open("one")
    two = await parts.open("two", guest_bytes=20 * (OVERHEAD + 1_000), attempt_bytes=10_000)
    two.hub.append(OTHER, 1, 0, b"its own")
    async with reading(two, BROAD) as reader:
        for number in range(100):
            one.hub.append(replace(TASK, id=f"t{number}"), 1, 0, b"." * 1_000)
        await eventually(lambda: len(reader.look().chunks) + len(reader.gaps) == 100)
        assert reader.chunks
        assert two.hub.bytes_kept <= 21 * (OVERHEAD + 1_000)
        assert two.hub.tail("default", "u", 1) == b"its own"


async def test_ten_thousand_attempts_cost_a_narrow_reader_nothing(parts: Any) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    async with reading(two) as reader:
        for number in range(10_000):
            one.hub.append(replace(TASK, id=f"n{number}"), 1, 0, b"line\n")
        one.hub.append(TASK, 1, 0, b"mine")
        await eventually(lambda: reader.text() == b"mine", limit=30)
        assert set(two.hub.attempts) == {KEY}
        names = Names("agenthive:{log-1}:")
        await eventually(lambda: parts.redis.ask("ZCARD", names.directory) == b":10001\r\n", limit=30)
        assert int(parts.redis.ask("PTTL", names.stream(("default", "n7", 1)))[1:]) > 3_500_000


async def test_an_attempt_that_expired_here_is_gone_there(parts: Any) -> None:
    one = await parts.open("one", retention=0.2)
    one.hub.append(TASK, 1, 0, b"soon gone")
    await shared(parts, end=9)
    await eventually(lambda: expired(one.hub))
    names = Names("agenthive:{log-1}:")
    await eventually(lambda: parts.redis.ask("EXISTS", names.stream(KEY)) == b":0\r\n")
    assert parts.redis.ask("ZCARD", names.directory) == b":0\r\n"
