"""One memory among several: what other replicas committed is taken over, in the order of the commits.

What this replica commits is in its memory at once; what it tells of (`announce`) waits its turn, so that everybody here
hears of all changes in the order of the log. What others commit comes with the feed; long records are only named there
and read from the store, which may show them newer than they were then. A revision that is known changes nothing.

Nobody here relies on the memory being up to date: a change built on an old state is a conflict. What no conflict would
catch, reads and refusals, waits for `fresh` first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final

from agenthive_server.telemetry import Histogram

from .changes import ChangeSet
from .clock import Clock
from .errors import CursorCompacted, KernelError, StoreUnavailable
from .events import Event
from .memory import Memory
from .others import READ, Others, Own
from .ports import Change, Feed, Store
from .records import Kind, Record, Ref
from .tasks import Task

LOOK_EVERY: Final = 1.0
"""Seconds after which the feed is read although nobody rang: changes without events ring nobody."""

PAUSE: Final = 0.1
"""Seconds until the next try when the store could not be read."""

EVENTS: Final = 2_000

CALM: Final = 0.001
PACE: Final = 0.008
FEW: Final = 2
"""Seconds between two looks at what others commit, when the last found few groups or more: under load one look serves
many."""

MANY: Final = 100
"""Groups found at once after which there may be more."""

FOLLOWED: Final = (Kind.SESSION, Kind.AGENT, Kind.MESSAGE, Kind.BROADCAST, Kind.CURSOR, Kind.TASK)
"""What fills the memory, with the progress of the tasks."""

_log = logging.getLogger(__name__)


class Following:
    """Keeps a memory up to date with a store that others write as well."""

    def __init__(
        self,
        memory: Memory,
        store: Store,
        feed: Feed,
        announce: Callable[[Sequence[Event]], None],
        clock: Clock,
        *,
        concerns: Callable[[Record], bool] = lambda _: False,
    ) -> None:
        """`concerns`: whether somebody here has to hear how a record ended."""
        self._memory = memory
        self._store = store
        self._feed = feed
        self._others = Others(memory, store, feed, concerns)
        self._announce = announce
        self._clock = clock
        # The last group whose turn has come, and where the log stood after it.
        self.group = 0
        self.head = 0
        self._own: deque[Own] = deque()
        self._asked: list[asyncio.Future[None]] = []
        self._woken = asyncio.Event()
        self._rung = 0
        # One at a time reads what was missed.
        self._reading = asyncio.Lock()
        self._filled = False
        self._filling = False
        self._next_look = float("-inf")
        self.failing = ""
        # How often the memory was filled anew because too much was missed.
        self.refills = 0
        # How long waits for everything took, in seconds.
        self.waits = Histogram()

    # Filling --------------------------------------------------------------------------------------------------------

    async def fill(self) -> None:
        """Fill the memory from the store, or put right what is in it, and go on from there.

        Everybody here hears of what was missed, as far as it is kept. Raises `StoreUnavailable`.
        """
        async with self._reading:
            await self._fill()

    async def _fill(self) -> None:
        self._filling = True
        try:
            group, head = await self._feed.position()
            for kind in FOLLOWED:
                records = await self._store.scan(kind, open_only=True)
                self._memory.renew(kind, records, self._newer(group))
            await self._progress(group)
            if not self._filled:
                self.head, self._filled = head, True
            async for events in self._events(head):
                self._tell(events)
            self.group, self.head = max(group, self.group), max(head, self.head)
        finally:
            self._filling = False
        self._turn()

    async def _progress(self, group: int) -> None:
        keys = [task.key for task in self._memory.all(Task)]
        for start in range(0, len(keys), READ):
            some = keys[start : start + READ]
            read = await self._store.get(Kind.PROGRESS, some)
            newer = self._newer(group)
            for key, record in zip(some, read, strict=True):
                if (Kind.PROGRESS, key) not in newer:
                    self._memory.follow((Kind.PROGRESS, key), record, anew=True)
            self._memory.followed()

    def _newer(self, than: int) -> set[Ref]:
        """Return what this replica changed after a group: what is in memory of it is not to be taken from before."""
        return {ref for own in self._own if own.before >= than for ref in own.refs}

    # What this replica commits --------------------------------------------------------------------------------------

    @property
    def overtaken(self) -> bool:
        """Whether the last group of this replica was followed already, like anybody else's, before it heard of it."""
        return self._feed.written[1] <= self.group

    def settled(self, changes: Iterable[ChangeSet], events: Sequence[Event]) -> None:
        """Take note of the change sets of this replica that were just committed, and are in memory already."""
        before, after = self._feed.written
        if after > before and not self.overtaken:
            if before == self.group and not self._own and not self._filling:
                self._pass(after, events)
            else:
                refs = frozenset(ref for each in changes for ref in (*each.puts, *each.deletes))
                self._own.append(Own(before, after, refs, events))
                self._turn()
        if self._own or self._rung > self.head:
            self._woken.set()

    def _pass(self, group: int, events: Sequence[Event]) -> None:
        self.group = group
        self._tell(events)

    def _tell(self, events: Sequence[Event]) -> None:
        if events and events[0].sequence <= self.head:
            events = [event for event in events if event.sequence > self.head]
        if events:
            self.head = events[-1].sequence
            self._announce(events)

    def _turn(self) -> None:
        """Let the groups of this replica have their turn whose time has come."""
        while self._own and not self._filling and self._own[0].before <= self.group:
            own = self._own.popleft()
            if own.after > self.group:
                self._pass(own.after, own.events)

    # What others commit ---------------------------------------------------------------------------------------------

    def ring(self, head: int, *, busy: bool = False) -> None:
        """Take note that the log has grown to `head`; while this replica is `busy` committing, that may be its own."""
        self._rung = max(self._rung, head)
        if head > self.head and not busy:
            self._woken.set()

    @property
    def known(self) -> tuple[int, int]:
        """The last group and event that this replica knows to be committed; it may not have followed so far."""
        group = self._own[-1].after if self._own else self.group
        return max(self.group, group), max(self.head, self._rung)

    async def fresh(self) -> None:
        """Wait until everything is known that was committed before this was called. Raises `StoreUnavailable`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        self._woken.set()
        began = self._clock.monotonic()
        await future
        self.waits.observe(self._clock.monotonic() - began)

    async def run(self) -> None:
        """Follow until cancelled; failures of the store delay it."""
        try:
            while True:
                await self._wait()
                asked, self._asked = self._asked, []
                rung = self._rung
                try:
                    until = (await self._feed.position())[0] if asked else 0
                    await self.catch_up(until)
                    self.failing = ""
                    if self._rung == rung:
                        # What was rung for before is known now, or was never there: anybody may ring.
                        self._rung = self.head
                except KernelError as error:
                    self.failing = error.message
                    _fail(asked, error)
                    await self._clock.sleep(PAUSE)
                    self._woken.set()
                    continue
                for future in asked:
                    if not future.done():
                        future.set_result(None)
        finally:
            _fail(self._asked, StoreUnavailable("the server is stopping"))

    async def look(self) -> None:
        """See to it that the feed is read now and then although nobody rings, until cancelled."""
        while True:
            await self._clock.sleep(LOOK_EVERY)
            self._woken.set()

    async def _wait(self) -> None:
        """Return when there is something to do, and not too soon after the last time."""
        await self._woken.wait()
        pause = self._next_look - self._clock.monotonic()
        if pause > 0 and not self._asked:
            await self._clock.sleep(pause)
        self._woken.clear()

    async def catch_up(self, until: int) -> None:
        """Follow the feed until nothing more is in it, and at least to a group. Raises `StoreUnavailable`."""
        async with self._reading:
            while await self._step(until):
                pass

    async def _step(self, until: int) -> bool:
        """Follow some of the feed; whether there may be more."""
        known = self._own[0].before if self._own else 0
        read = await self._feed.changes(self.group, self._mine())
        if not read and known > self.group:
            # It is not there: either it is too long ago, and all that is known comes later.
            read = await self._feed.changes(self.group)
        # What was committed here meanwhile may have had its turn, or waits for it.
        read = [change for change in read if change.number > self.group]
        mine = self._mine()
        found = [change for change in read if change.number not in mine]
        if read and read[0].number != self.group + 1:
            _log.warning("memory_is_filled_anew", extra={"group": self.group, "oldest": read[0].number})
            self.refills += 1
            await self._fill()
        elif found:
            await self._take(found)
            self._next_look = self._clock.monotonic() + (CALM if len(found) <= FEW else PACE)
        elif self.group < max(until, known):
            raise StoreUnavailable("what other replicas changed cannot be read yet")
        self._turn()
        return self.group < until or bool(self._own) or len(read) >= MANY

    def _mine(self) -> set[int]:
        """Return the numbers of this replica's groups that wait for their turn: nobody has to tell it what they did."""
        return {number for own in self._own for number in range(own.before + 1, own.after + 1)}

    async def _take(self, found: Sequence[Change]) -> None:
        """Take over what groups of others did, and tell of it; those of this replica in between have their turn."""
        done = await self._others.read(found, self._own)
        if found[0].number != self.group + 1:
            # It had its turn while this was read.
            return
        self._others.take(done, self._newer(found[-1].number))
        events: list[Event] = []
        for change in found:
            if self._own and self._own[0].before < change.number:
                self._pass(self._own[0].before, events)
                self._turn()
                events = []
            events += change.events
        self._pass(found[-1].number, events)
        self.head = max(self.head, found[-1].head)

    async def _events(self, head: int) -> AsyncIterator[list[Event]]:
        """Yield what happened since, up to a place in the log; those that are gone already are left out."""
        after = self.head
        while after < head:
            try:
                read = await self._store.read_events(after, EVENTS)
            except CursorCompacted:
                after = (await self._store.bounds()).oldest - 1
                continue
            yield [event for event in read if event.sequence <= head]
            after = read[-1].sequence if read else head


def _fail(futures: Iterable[asyncio.Future[None]], error: KernelError) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
            # Whoever stopped waiting does not look.
            future.exception()


Fresh = Callable[[], Awaitable[None]]
"""Waits until everything that is committed is known."""
