"""An event log with everything around it, on a clock that tests move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from agenthive.v1 import event_pb2
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive_server.events.cursor import parse_cursor
from agenthive_server.events.log import EventLog
from agenthive_server.events.notifier import LocalNotifier
from agenthive_server.events.output import OutputHub
from agenthive_server.events.subscription import Subscription, SubscriptionSpec
from agenthive_server.events.subscriptions import Subscriptions
from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.storage.memory import MemoryStore


class FlakyStore(MemoryStore):
    """A store that can be away, that counts reads, and that may be changed while it is being read."""

    away = False
    reads = 0
    before_read: Callable[[], Awaitable[None]] | None = None

    async def read_events(self, after: int, limit: int) -> list[Event]:
        self.reads += 1
        await asyncio.sleep(0)
        if self.before_read is not None:
            await self.before_read()
        if self.away:
            raise StoreUnavailable("the store is away")
        return await super().read_events(after, limit)


class Reader:
    """What a subscriber received, without ever waiting for more than what is there."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.frames: list[pb.StreamEventsResponse] = []
        self.error: BaseException | None = None
        self.ended = False
        self._next: asyncio.Future[bytes] | None = None

    @property
    def waiting(self) -> bool:
        """Whether it asked for a frame and has not looked at the answer yet."""
        return self._next is not None

    async def take(self, most: int = 1_000) -> list[pb.StreamEventsResponse]:
        """Return the frames that are there, at most so many."""
        taken: list[pb.StreamEventsResponse] = []
        while len(taken) < most and not self.ended:
            if self._next is None:
                self._next = asyncio.ensure_future(anext(self.subscription))
            await settle()
            if not self._next.done():
                break
            done, self._next = self._next, None
            try:
                taken.append(pb.StreamEventsResponse.FromString(done.result()))
            except StopAsyncIteration:
                self.ended = True
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.ended, self.error = True, error
        self.frames += taken
        return taken

    async def close(self) -> None:
        """Break off, in the middle of a wait if there is one."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait([self._next])

    @property
    def sequences(self) -> list[int]:
        return [event.sequence for frame in self.frames for event in frame.events]

    @property
    def cursor(self) -> str:
        return self.frames[-1].cursor

    @property
    def position(self) -> int | None:
        return parse_cursor(self.cursor).sequence


class Rig:
    """A store, its log, the notifier and the hub."""

    def __init__(self, clock: ManualClock, tail_bytes: int, chunk_events: int) -> None:
        self.clock = clock
        self.store = FlakyStore(clock, log_id="log-1")
        self.log = EventLog(self.store, self.encode, tail_bytes=tail_bytes, chunk_events=chunk_events)
        self.notifier = LocalNotifier(clock, max_pace=0)
        self.output = OutputHub(clock, sequence=lambda: self.log.head)
        self.hub = Subscriptions(self.log, self.notifier, clock, output=self.output)
        self.encoded = 0
        self.model: list[Event] = []
        # The last sequence that is gone, after each compaction.
        self.horizons = [0]
        self._stack = AsyncExitStack()

    def encode(self, event: Event) -> bytes:
        self.encoded += 1
        message = event_pb2.Event(sequence=event.sequence, namespace=event.namespace, task_id=event.task_id)
        if event.type is EventType.TASK_OUTPUT:
            message.task_output.attempt = event.data["attempt"]
            message.task_output.offset = event.data["offset"]
            message.task_output.data = event.data["data"]
        elif event.type is EventType.OUTPUT_GAP:
            message.output_gap.attempt = event.data["attempt"]
            message.output_gap.from_offset = event.data["from_offset"]
            message.output_gap.to_offset = event.data["to_offset"]
        elif event.type is EventType.TASK_PROGRESSED:
            message.task_progressed.fraction = event.data["fraction"]
        elif event.type is EventType.SNAPSHOT_END:
            message.snapshot_end.agent_count = event.data["agent_count"]
            message.snapshot_end.task_count = event.data["task_count"]
        return message.SerializeToString()

    async def commit(self, *sizes: int, task_id: str = "task", elsewhere: bool = False) -> list[Event]:
        """Commit change sets of these sizes, here or on another replica; returns the events."""
        sets = [
            ChangeSet(
                events=[
                    Event(type=EventType.TASK_STARTED, namespace="default", task_id=f"{task_id}-{n % 3}")
                    for n in range(size)
                ]
            )
            for size in sizes
        ]
        await self.store.commit(sets)
        events = [event for changes in sets for event in changes.events]
        self.model += events
        if elsewhere:
            self.log.advance(events[-1].sequence)
        else:
            self.log.append(events)
        self.notifier.ring(self.log.head)
        return events

    async def reader(self, snapshot: Any = None, **spec: Any) -> Reader:
        """Open a subscription that is closed with the test."""
        opened = self.hub.open(SubscriptionSpec(**spec), snapshot)
        reader = Reader(await self._stack.enter_async_context(opened))
        self._stack.push_async_callback(reader.close)
        return reader

    async def close(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def open_rig(tail_bytes: int = 4 * 2**20, chunk_events: int = 1_024) -> AsyncIterator[Rig]:
    clock = ManualClock()
    rig = Rig(clock, tail_bytes, chunk_events)
    await rig.log.open()
    wheel = asyncio.ensure_future(rig.notifier.run())
    try:
        yield rig
    finally:
        await rig.close()
        wheel.cancel()
        await asyncio.wait([wheel])


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with open_rig() as opened:
        yield opened


@pytest.fixture
def new_rig() -> Callable[..., Any]:
    """Opens an event log with a tail and chunks of other sizes."""
    return open_rig
