"""One memory among several: what other replicas committed is taken over, in the order of the commits.

What this replica commits is in its memory at once; what it tells of (`announce`) waits its turn, so that everybody here
hears of all changes in the order of the log. What others commit is named by the feed and read from the store, which may
show it newer than it was then; a revision that is known already changes nothing.

Nobody here relies on the memory being up to date: a change built on an old state is a conflict. What no conflict would
catch, reads and refusals, waits for `fresh` first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple

from .changes import ChangeSet
from .clock import Clock
from .errors import CursorCompacted, KernelError, StoreUnavailable
from .events import Event
from .memory import Memory
from .ports import Change, Feed, Store
from .records import Key, Kind, Record, Ref

LOOK_EVERY: Final = 1.0
"""Seconds after which the feed is read although nobody rang: changes without events ring nobody."""

PAUSE: Final = 0.1
"""Seconds until the next try when the store could not be read."""

READ: Final = 500
"""Records read at once."""

EVENTS: Final = 2_000

FOLLOWED: Final = (Kind.SESSION, Kind.AGENT, Kind.MESSAGE, Kind.BROADCAST, Kind.CURSOR, Kind.TASK)
"""What fills the memory, with the progress of the tasks."""

_log = logging.getLogger(__name__)


class _Own(NamedTuple):
    """A group of this replica that has not had its turn yet."""

    before: int
    after: int
    refs: frozenset[Ref]
    events: Sequence[Event]


class Following:
    """Keeps a memory up to date with a store that others write as well."""

    def __init__(
        self, memory: Memory, store: Store, feed: Feed, announce: Callable[[Sequence[Event]], None], clock: Clock
    ) -> None:
        self._memory = memory
        self._store = store
        self._feed = feed
        self._announce = announce
        self._clock = clock
        # The last group whose turn has come, and where the log stood after it.
        self.group = 0
        self.head = 0
        self._own: deque[_Own] = deque()
        self._asked: list[asyncio.Future[None]] = []
        self._woken = asyncio.Event()
        self._rung = 0
        self.failing = ""
        # How often the memory was filled anew because too much was missed.
        self.refills = 0

    # Filling --------------------------------------------------------------------------------------------------------

    async def fill(self) -> None:
        """Fill the memory from the store, or put right what is in it, and go on from there."""
        group, head = await self._feed.position()
        for kind in FOLLOWED:
            records = await self._store.scan(kind, open_only=True)
            self._memory.renew(kind, records, self._newer())
            if kind is Kind.TASK:
                await self._progress([task.key for task in records])
        self.group, self.head = max(group, self.group), max(head, self.head)
        self._turn()

    async def _progress(self, keys: Sequence[Key]) -> None:
        found: list[Record] = []
        for start in range(0, len(keys), READ):
            read = await self._store.get(Kind.PROGRESS, keys[start : start + READ])
            found += [record for record in read if record is not None]
        self._memory.renew(Kind.PROGRESS, found, self._newer())

    def _newer(self, than: int = 0) -> set[Ref]:
        """Return what this replica changed after a group: what is in memory of it is not to be taken from before."""
        return {ref for own in self._own if own.before >= than for ref in own.refs}

    # What this replica commits --------------------------------------------------------------------------------------

    def settled(self, changes: Iterable[ChangeSet], events: Sequence[Event]) -> None:
        """Take note of a group of this replica that was committed, and is in memory already."""
        before, after = self._feed.written
        if before == after or after <= self.group:
            # Nothing was written, or it has been followed like everybody else's already.
            return
        if before == self.group and not self._own:
            self._pass(after, events)
        else:
            refs = frozenset(ref for each in changes for ref in (*each.puts, *each.deletes))
            self._own.append(_Own(before, after, refs, events))
            self._turn()
        if self._own or self._rung > self.head:
            self._woken.set()

    def _pass(self, group: int, events: Sequence[Event]) -> None:
        self.group = group
        if events:
            self.head = events[-1].sequence
            self._announce(events)

    def _turn(self) -> None:
        """Let the groups of this replica have their turn whose time has come."""
        while self._own and self._own[0].before <= self.group:
            own = self._own.popleft()
            if own.after > self.group:
                self._pass(own.after, own.events)

    # What others commit ---------------------------------------------------------------------------------------------

    def ring(self, head: int, *, busy: bool = False) -> None:
        """Take note that the log has grown to `head`; while this replica is `busy` committing, that may be its own."""
        self._rung = max(self._rung, head)
        if head > self.head and not busy:
            self._woken.set()

    async def fresh(self) -> None:
        """Wait until everything is known that was committed before this was called. Raises `StoreUnavailable`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        self._woken.set()
        await future

    async def run(self) -> None:
        """Follow until cancelled; failures of the store delay it."""
        try:
            while True:
                await self._wait()
                asked, self._asked = self._asked, []
                try:
                    until = (await self._feed.position())[0] if asked else 0
                    await self.catch_up(until)
                    self.failing = ""
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

    async def _wait(self) -> None:
        """Return when there is something to do, or it is time to look."""
        if not self._woken.is_set():
            sleep = asyncio.ensure_future(self._clock.sleep(LOOK_EVERY))
            woken = asyncio.ensure_future(self._woken.wait())
            try:
                await asyncio.wait((sleep, woken), return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleep.cancel()
                woken.cancel()
        self._woken.clear()

    async def catch_up(self, until: int) -> None:
        """Follow the feed until nothing more is in it, and at least to a group. Raises `StoreUnavailable`."""
        while True:
            bound = self._own[0].before if self._own else None
            found = await self._feed.changes(self.group, bound)
            # What was committed here meanwhile may have had its turn.
            found = [change for change in found if change.number > self.group]
            if found and found[0].number != self.group + 1:
                _log.warning("memory_is_filled_anew", extra={"group": self.group, "oldest": found[0].number})
                self.refills += 1
                await self.fill()
            elif found:
                await self._take(found)
            elif self.group < max(until, bound or 0):
                raise StoreUnavailable("what other replicas changed cannot be read yet")
            elif not self._own:
                return
            self._turn()

    async def _take(self, found: Sequence[Change]) -> None:
        last: dict[Ref, int] = {}
        anew: set[Ref] = set()
        for change in found:
            for ref, revision in change.touched:
                last[ref] = revision
                if not revision:
                    anew.add(ref)
        read = await self._read([ref for ref, revision in last.items() if revision and self._unknown(ref, revision)])
        events = await self._events(found[-1].head)
        if found[0].number != self.group + 1:
            # It had its turn while this was read.
            return
        newer, memory = self._newer(found[-1].number), self._memory
        for ref in last:
            if ref in newer:
                continue
            if ref in anew or ref in read:
                memory.follow(ref, read.get(ref), anew=ref in anew)
        memory.followed()
        self._pass(found[-1].number, events)
        self.head = max(self.head, found[-1].head)

    def _unknown(self, ref: Ref, revision: int) -> bool:
        known = self._memory.committed(ref)
        return known is None or known.revision < revision

    async def _read(self, refs: Sequence[Ref]) -> dict[Ref, Record | None]:
        by_kind: dict[Kind, list[Key]] = {}
        for kind, key in refs:
            by_kind.setdefault(kind, []).append(key)
        found: dict[Ref, Record | None] = {}
        for kind, keys in by_kind.items():
            for start in range(0, len(keys), READ):
                some = keys[start : start + READ]
                found.update(zip(((kind, key) for key in some), await self._store.get(kind, some), strict=True))
        return found

    async def _events(self, head: int) -> list[Event]:
        """Return what happened since, up to a place in the log; those that are gone already are left out."""
        found: list[Event] = []
        after = self.head
        while after < head:
            try:
                read = await self._store.read_events(after, EVENTS)
            except CursorCompacted:
                after = (await self._store.bounds()).oldest - 1
                continue
            found += [event for event in read if event.sequence <= head]
            after = read[-1].sequence if read else head
        return found


def _fail(futures: Iterable[asyncio.Future[None]], error: KernelError) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
            # Whoever stopped waiting does not look.
            future.exception()


Fresh = Callable[[], Awaitable[None]]
"""Waits until everything that is committed is known."""
