"""A replica takes over what others committed, also where it tried the same and came too late."""

from __future__ import annotations

from collections.abc import Sequence

from agenthive_server.events.log import EventLog
from agenthive_server.events.notifier import LocalNotifier
from agenthive_server.kernel.changes import COMMITTED, ChangeSet, Conflicted
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.pending import Pending
from agenthive_server.kernel.ports import Change, Touched
from agenthive_server.kernel.records import Kind, Record
from agenthive_server.kernel.tasks import TaskState
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.testing.store_model import changing, task


class PlayedFeed:
    """A feed whose groups are the test's."""

    def __init__(self) -> None:
        self.groups: list[Change] = []
        self.written = (0, 0)

    async def position(self) -> tuple[int, int]:
        return len(self.groups), 0

    async def cut(self, kinds: Sequence[Kind]) -> tuple[int, list[list[Record]]]:
        raise NotImplementedError

    async def changes(self, after: int, until: int | None = None) -> Sequence[Change]:
        return self.groups[after:until]

    def record(self, touched: Touched, known: Record | None) -> Record | None:
        return None


async def test_who_came_too_late_with_a_change_takes_over_that_of_the_other() -> None:
    clock, feed = ManualClock(), PlayedFeed()
    store = MemoryStore(clock)

    def submit(changes: ChangeSet) -> Pending:
        raise NotImplementedError

    kernel = Kernel(
        store,
        submit,
        EventLog(store, encode=lambda event: b""),
        LocalNotifier(clock),
        clock=clock,
        new_id=lambda: "id",
        chance=lambda: 0.5,
        feed=feed,
    )
    assert kernel.following is not None
    await store.commit([changing(task("a")), changing(task("b"))])
    kernel.memory.load([task("a"), task("b")])

    # Another replica pauses the task; this one, which does not know, does so too, and changes something else besides.
    theirs = task("a", revision=2, state=TaskState.PAUSED, update_time=7.0)
    late, mine = changing(task("a", revision=2, state=TaskState.PAUSED)), changing(task("b", revision=2))
    for changes in (late, mine):
        kernel.memory.apply(changes, Pending())
    assert await store.commit([changing(theirs), late, mine]) == [COMMITTED, Conflicted((theirs.ref,)), COMMITTED]
    feed.groups = [Change(1, 0, [Touched(theirs.ref, 2)], []), Change(2, 0, [Touched(task("b").ref, 2)], [])]
    feed.written = (1, 2)
    kernel.settled([(late, Conflicted((theirs.ref,))), (mine, COMMITTED)])

    await kernel.following.catch_up(2)
    assert kernel.following.group == 2
    assert kernel.memory.committed(theirs.ref) == theirs
    assert kernel.memory.committed(task("b").ref) == task("b", revision=2)
