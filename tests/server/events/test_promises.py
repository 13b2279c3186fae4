"""The six promises of the event log, held against a model: ordered, unique, reliable, atomic, resumable, bookmarked.

Subscribers lag, break off, resume by cursor, filter and are compacted away, while change sets are committed here and
on other replicas and the store comes and goes. What each one received is what the model says, or it was told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from agenthive_server.events.cursor import parse_cursor
from agenthive_server.events.filter import EventFilter
from agenthive_server.events.subscription import Start
from agenthive_server.kernel.errors import CursorCompacted, StoreUnavailable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FILTERS = (
    EventFilter(),
    EventFilter(namespace="default", task_ids=frozenset({"task-1"})),
    EventFilter(task_ids=frozenset({"task-0", "task-2"})),
    EventFilter(namespace="other"),
)
READERS = 4

reader = st.integers(0, READERS - 1)
STEPS = st.one_of(
    st.tuples(st.just("commit"), st.lists(st.integers(1, 40), min_size=1, max_size=12), st.booleans()),
    st.tuples(st.just("commit"), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.booleans()),
    st.tuples(st.just("burst"), st.integers(1, 20)),
    st.tuples(st.just("take"), reader, st.integers(1, 6)),
    st.tuples(st.just("take"), reader, st.just(1_000)),
    st.tuples(st.just("break"), reader),
    st.tuples(st.just("compact"), st.floats(0, 1), st.booleans()),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(st.just("time"), st.floats(0.1, 20)),
)


class Subscriber:
    """A client that keeps its cursor, and what it should have received."""

    def __init__(self, rig: Any, wanted: EventFilter) -> None:
        self.rig = rig
        self.wanted = wanted
        self.reader: Any = None
        self.position = 0
        self.told = 0

    async def take(self, most: int) -> None:
        """Read on, opening a stream at the cursor when there is none."""
        try:
            if self.reader is None:
                cursor = self.rig.log.cursor(self.position)
                self.reader = await self.rig.reader(start=Start.AFTER, cursor=cursor, filter=self.wanted)
        except CursorCompacted as error:
            self._too_late(error)
            return
        except StoreUnavailable:
            return
        # What it asked for earlier may have been answered before the last compaction.
        waited = self.reader.waiting
        for frame in await self.reader.take(most):
            self._check(frame)
        if isinstance(self.reader.error, CursorCompacted):
            self._too_late(self.reader.error, waited=waited)
            self.reader = None
        elif self.reader.error is not None:
            raise self.reader.error

    async def break_off(self) -> None:
        """Go away without a word."""
        if self.reader is not None:
            await self.reader.close()
            self.reader = None

    def _check(self, frame: Any) -> None:
        """Everything wanted between the last cursor and this one, in order, once; the cursor ends a change set."""
        position = parse_cursor(frame.cursor).sequence
        assert position is not None
        assert position >= self.position
        between = self.rig.model[self.position : position]
        assert [event.sequence for event in frame.events] == [e.sequence for e in between if self.wanted.matches(e)]
        assert position == 0 or self.rig.model[position - 1].last == position
        self.position = position

    def _too_late(self, error: CursorCompacted, *, waited: bool = False) -> None:
        """It is told so only if it is true, and exactly what it missed as of when it was told."""
        horizon = parse_cursor(error.metadata["oldest_cursor"]).sequence
        assert horizon is not None
        assert self.position < horizon
        assert horizon in self.rig.horizons if waited else horizon == self.rig.horizons[-1]
        self.position = horizon
        self.told += 1


class World:
    """Plays the steps."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig
        self.subscribers = [Subscriber(rig, FILTERS[n % len(FILTERS)]) for n in range(READERS)]

    async def commit(self, sizes: list[int], elsewhere: bool) -> None:
        await self.rig.commit(*sizes, elsewhere=elsewhere)

    async def burst(self, groups: int) -> None:
        for _ in range(groups):
            await self.rig.commit(*[5] * 10)

    async def take(self, index: int, most: int) -> None:
        await self.subscribers[index].take(most)

    async def break_(self, index: int) -> None:
        await self.subscribers[index].break_off()

    async def compact(self, share: float, elsewhere: bool) -> None:
        rig = self.rig
        before = rig.store._oldest + int(share * (rig.store._head + 1 - rig.store._oldest))
        await (rig.store.compact(before) if elsewhere else rig.log.compact(before))
        rig.horizons.append(rig.store._oldest - 1)

    async def away(self, away: bool) -> None:
        self.rig.store.away = away

    async def time(self, seconds: float) -> None:
        await self.rig.clock.advance(seconds)

    async def settle(self) -> None:
        """In the end everyone has everything."""
        self.rig.store.away = False
        head = len(self.rig.model)
        for _ in range(50):
            for subscriber in self.subscribers:
                await subscriber.take(10_000)
            if all(subscriber.position == head for subscriber in self.subscribers):
                break
            await self.rig.clock.advance(15)
        assert [subscriber.position for subscriber in self.subscribers] == [head] * READERS


async def play(new_rig: Callable[..., Any], steps: list[tuple[Any, ...]]) -> None:
    async with new_rig(tail_bytes=60 * 640, chunk_events=50) as rig:
        world = World(rig)
        for name, *arguments in steps:
            await getattr(world, name.replace("break", "break_"))(*arguments)
        await world.settle()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=40))
def test_every_subscriber_has_the_log_or_was_told(new_rig: Callable[..., Any], steps: list[tuple[Any, ...]]) -> None:
    asyncio.run(play(new_rig, steps))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 30), min_size=5, max_size=60),
    share=st.floats(0, 1),
    when=st.integers(1, 20),
)
def test_compaction_in_the_middle_of_a_read_makes_no_silent_gap(
    new_rig: Callable[..., Any], sizes: list[int], share: float, when: int
) -> None:
    async def run() -> None:
        async with new_rig(tail_bytes=640, chunk_events=20) as rig:
            await rig.commit(*sizes)
            before = int(share * len(rig.model))

            async def strike() -> None:
                if rig.store.reads == when:
                    await rig.store.compact(before)
                    rig.horizons.append(rig.store._oldest - 1)

            rig.store.before_read = strike
            subscriber = Subscriber(rig, FILTERS[0])
            for _ in range(4):
                await subscriber.take(1_000)
            assert subscriber.position == len(rig.model)
            assert subscriber.told <= 1

    asyncio.run(run())


async def test_an_idle_stream_is_never_silent_for_long(new_rig: Callable[..., Any]) -> None:
    async with new_rig() as rig:
        reader = await rig.reader(filter=FILTERS[3])
        silent = 0.0
        for second in range(120):
            if second % 7 == 0:
                await rig.commit(2)
            silent = 0.0 if await reader.take() else silent + 1
            assert silent <= 15
            await rig.clock.advance(1)
