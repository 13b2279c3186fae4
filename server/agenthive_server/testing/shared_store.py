"""The store of one replica on a `SharedDatabase`: the feed, the fence, an ear, and the real tenure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextvars import copy_context
from typing import Final

from agenthive_server.kernel.changes import ChangeSet, Outcome
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.following import MANY
from agenthive_server.kernel.ports import Change, Touched
from agenthive_server.kernel.records import Kind, Record
from agenthive_server.storage.postgres import feed
from agenthive_server.storage.postgres.tenure import Tenure
from agenthive_server.storage.postgres.writer import Fence

from .faults import FaultyStore
from .shared_database import SharedDatabase
from .shared_leases import SharedLeases

SOME: Final = MANY
"""Groups a look at the feed returns at most."""


class SharedEar:
    """Hears of commits, in the process that listens."""

    def __init__(self, store: SharedStore, heard: Callable[[int], None]) -> None:
        self._store = store
        self._heard = heard
        self._context = copy_context()

    def tell(self, head: int, delay: float | None) -> None:
        """Have it hear of a commit some time later."""
        if delay is not None:
            asyncio.get_running_loop().call_later(delay, self._heard, head, context=self._context)

    async def look(self) -> int:
        """Return the head of the log."""
        return (await self._store.position())[1]

    def close(self) -> None:
        """Listen no more."""
        self._store.database.ears.pop(self, None)


class SharedStore(FaultyStore):
    """The store of one replica, as `stores.Shared`: with the feed, and its tenure once that is set."""

    def __init__(self, database: SharedDatabase) -> None:
        super().__init__(database.disk)
        self.database = database
        self.written = (0, 0)
        self.fence: Fence | None = None
        self.tenure = Tenure(SharedLeases(database, self.ask), database.clock)
        self.tenure.rejoined = self._rejoined
        self._recover: Callable[[], Awaitable[None]] | None = None
        # What was sent to the database and is not there yet, with its fence.
        self.under_way: tuple[list[ChangeSet], Fence | None] | None = None
        # Whether the next group is written one change set at a time.
        self.one_by_one: Callable[[], bool] = lambda: False
        # Whether a record was too long for the feed.
        self.brief: Callable[[], bool] = lambda: False

    async def open(self) -> None:
        """Join the replicas."""
        await self.tenure.begin()
        self.fence = self.tenure.fence

    def follow(
        self,
        *,
        caught_up: Callable[[], Awaitable[None]],
        went: Callable[[], None],
        recover: Callable[[], Awaitable[None]],
        facts: Callable[[], str],
        came: Callable[[], None] = lambda: None,
    ) -> None:
        """Name who takes part, as the store on PostgreSQL."""
        self.tenure.caught_up, self.tenure.facts = caught_up, facts
        self.tenure.went, self.tenure.came = went, came
        self._recover = recover

    async def _rejoined(self) -> None:
        # The row may be lost again meanwhile: without one nothing may be committed.
        fence = self.tenure.fence
        if self._recover is not None:
            await self._recover()
        self.fence = fence

    async def listen(self, heard: Callable[[int], None]) -> SharedEar:
        """Call back with the head of the log after every commit on the database."""
        await self.position()
        ear = SharedEar(self, heard)
        self.database.ears[ear] = None
        return ear

    def record(self, touched: Touched, known: Record | None) -> Record | None:
        """Return a record as a group wrote it, given the state of it that is known; None when it has to be read."""
        return None if self.brief() else feed.record(touched, known)

    @property
    def writable(self) -> str:
        """Empty while commits succeed, else why the last one did not."""
        return self.tenure.lost or super().writable

    async def commit(self, group: Sequence[ChangeSet]) -> Sequence[Outcome]:
        """Commit under the fence, between the two hooks."""
        fence = self.fence
        self.under_way = (list(group), fence)
        try:
            await self.before(group)
        except StoreUnavailable:
            self.under_way = None
            raise
        outcomes, written = await self.database.commit(group, fence, one_by_one=self.one_by_one())
        self.under_way = None
        await self.after(group)
        self.written = written
        return outcomes

    async def position(self) -> tuple[int, int]:
        """Return how many groups were committed, and where the log stands."""

        async def question() -> tuple[int, int]:
            return self.database.group_count, self.database.disk._head

        return await self.ask(question)

    async def cut(self, kinds: Sequence[Kind]) -> tuple[int, list[list[Record]]]:
        """Return where the log stands, and all records of some kinds as of then; of tasks those that are not over."""

        async def question() -> tuple[int, list[list[Record]]]:
            disk = self.database.disk
            return disk._head, [await disk.scan(kind, open_only=True) for kind in kinds]

        return await self.ask(question)

    async def changes(self, after: int, without: Collection[int] = ()) -> Sequence[Change]:
        """Return some of the groups after one, in order; what is too long ago is not known any more."""

        async def question() -> Sequence[Change]:
            found = (c for c in self.database.changes if c.number > after and c.number not in without)
            return [change for change, _ in zip(found, range(SOME), strict=False)]

        return await self.ask(question)
