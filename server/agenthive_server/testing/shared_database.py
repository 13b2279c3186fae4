"""A database that several replicas share, in memory: what PostgreSQL does for them.

Everything of it is done in one step of the loop; what a replica has to wait for, and what gets lost, is in the hooks of
its store (`shared_store.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, cast

from agenthive_server.kernel.changes import ChangeSet, Committed, Outcome
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.ports import Change
from agenthive_server.kernel.records import Kind, RoleRecord
from agenthive_server.storage.fold import Fold
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.storage.postgres import bulk, feed
from agenthive_server.storage.postgres.writer import Fence, Fenced

NOTED: Final = 3
"""Which argument of the statement that writes a group holds what its replicas follow."""


class Hearing(Protocol):
    """One who listens."""

    def tell(self, head: int, delay: float | None) -> None:
        """Have it hear of a commit some time later, or never."""


class SharedDatabase:
    """Keeps everything, and which rows each group touched."""

    def __init__(self, clock: Clock, *, log_id: str = "") -> None:
        self.clock = clock
        self.disk = MemoryStore(clock, log_id=log_id)
        self.group_count = 0
        self.changes: list[Change] = []
        # Those who listen; what is said takes a while to get there (None: it never does).
        self.ears: dict[Hearing, None] = {}
        self.delay: Callable[[], float | None] = lambda: 0.0
        # Called with each change set that was committed.
        self.witness: Callable[[ChangeSet], None] = lambda _: None

    async def commit(
        self, group: Sequence[ChangeSet], fence: Fence | None, *, one_by_one: bool = False
    ) -> tuple[list[Outcome], tuple[int, int]]:
        """Write a group under a fence; returns the outcomes, and how many groups there were before and are with it.

        Raises `StoreUnavailable` when the fence is not as it was. `one_by_one`: as when data are refused.
        """
        before = self.group_count
        if fence is not None and self.disk._revision(fence[0]) != fence[1]:
            raise Fenced("this server was away, and others have taken its work over")
        outcomes: list[Outcome] = []
        for part in [[changes] for changes in group] if one_by_one else [group]:
            found = await self.disk.commit(part)
            self._count(
                [changes for changes, outcome in zip(part, found, strict=True) if isinstance(outcome, Committed)]
            )
            outcomes += found
        return outcomes, (before, self.group_count)

    def _count(self, written: Sequence[ChangeSet]) -> None:
        fold = Fold()
        for changes in written:
            fold.add(changes)
        made = bulk.build(fold, written, fence=None, channel="", now=None)
        if not made.written:
            return
        self.group_count += 1
        head, packed = self.disk._head, made.arguments[NOTED]
        self.changes.append(feed._change(self.group_count, head, self.disk._time, packed))
        for changes in written:
            self.witness(changes)
        if made.members:
            for ear in self.ears:
                ear.tell(self.disk._head, self.delay())

    def trim(self, kept: int) -> None:
        """Forget what the oldest groups touched but for the last so many."""
        del self.changes[: max(0, len(self.changes) - kept)]

    # Lease rows

    def row(self, name: str) -> RoleRecord | None:
        """Return a lease row."""
        return cast("RoleRecord | None", self.disk._tables[Kind.ROLE].get(("", name)))

    def rows(self) -> dict[str, RoleRecord]:
        """Return all lease rows by name."""
        return {key[1]: cast("RoleRecord", row) for key, row in self.disk._tables[Kind.ROLE].items()}

    def put_row(self, row: RoleRecord, before: int) -> bool:
        """Write a lease row over the revision before, 0 for none; False when that is not there."""
        if self.disk._revision(row.ref) != before:
            return False
        self.disk._tables[Kind.ROLE][row.key] = row
        return True

    def remove_row(self, row: RoleRecord) -> bool:
        """Remove a lease row if it has this revision."""
        if self.disk._revision(row.ref) != row.revision:
            return False
        del self.disk._tables[Kind.ROLE][row.key]
        return True
