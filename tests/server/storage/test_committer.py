"""The committer answers everyone, in order, after those who follow; and goes on whatever happens around it."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Sequence

import pytest
from agenthive_server.kernel.changes import COMMITTED, MAX_ROWS, ChangeSet, Conflicted, Outcome
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.kernel.errors import Draining, KernelError, OutcomeUnknown, Overloaded, StoreUnavailable
from agenthive_server.kernel.events import EventType, task_event
from agenthive_server.kernel.records import Kind
from agenthive_server.storage.committer import GROUP_ROWS, Committer
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.testing.faults import FaultyStore, no_fault
from agenthive_server.testing.store_model import changing, task


class Scene:
    """A committer on a faulty memory store, and what was told to whom in which order."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = FaultyStore(MemoryStore(self.clock))
        self.told: list[object] = []
        self.groups: list[int] = []
        self.committer = Committer(
            self.store, settled=self.settled, failed=self.failed, clock=self.clock, maximum_waiting=100
        )
        self.gate = asyncio.Event()
        self.store.before = self.pass_gate

    async def pass_gate(self, group: Sequence[ChangeSet]) -> None:
        self.groups.append(len(group))
        await self.gate.wait()

    def settled(self, pairs: Sequence[tuple[ChangeSet, Outcome]]) -> None:
        self.told.append([outcome for _, outcome in pairs])

    def failed(self, group: Sequence[ChangeSet], error: KernelError) -> None:
        self.told.append(error)

    def submit(self, *names: str) -> list[asyncio.Future[Outcome]]:
        return [self.committer.submit(changing(task(name), events=1)).wait() for name in names]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    running = asyncio.ensure_future(scene.committer.run())
    yield scene
    scene.gate.set()
    await scene.committer.stop()
    await running


async def test_a_group_is_what_gathered_during_the_last(scene: Scene) -> None:
    first = scene.submit("a")
    await settle()
    more = scene.submit("b", "c", "a")
    await settle()
    assert scene.groups == [1]
    scene.gate.set()
    assert await asyncio.gather(*first, *more) == [COMMITTED] * 3 + [Conflicted((task("a").ref,))]
    assert scene.groups == [1, 3]
    assert (scene.committer.groups, scene.committer.change_sets, scene.committer.rows) == (2, 4, 8)


async def test_who_follows_hears_before_who_waits(scene: Scene) -> None:
    (future,) = scene.submit("a")
    future.add_done_callback(lambda _: scene.told.append("answered"))
    scene.gate.set()
    await future
    await settle()
    assert scene.told == [[COMMITTED], "answered"]


async def test_a_waiter_that_goes_takes_nothing_back(scene: Scene) -> None:
    waiter = asyncio.ensure_future(asyncio.wait_for(scene.submit("a")[0], None))
    queued = scene.submit("b")[0]
    await settle()
    waiter.cancel()
    queued.cancel()
    scene.gate.set()
    assert await scene.submit("c")[0] == COMMITTED
    assert all(await scene.store.get(Kind.TASK, [task(name).key for name in "abc"]))
    assert [outcome for outcomes in scene.told for outcome in outcomes] == [COMMITTED] * 3  # type: ignore[attr-defined] # lists here


@pytest.mark.parametrize("error", [StoreUnavailable("no"), OutcomeUnknown("perhaps")])
async def test_a_group_that_fails_is_told_of_and_the_next_goes_on(scene: Scene, error: KernelError) -> None:
    async def fail(group: Sequence[ChangeSet]) -> None:
        raise error

    scene.store.before = fail
    futures = scene.submit("a", "b")
    assert await asyncio.gather(*futures, return_exceptions=True) == [error, error]
    assert scene.told == [error]
    assert scene.committer.failures == 1
    scene.submit("nobody waits for this")
    await settle()
    gc.collect()
    scene.store.before = scene.pass_gate
    scene.gate.set()
    assert await scene.submit("a")[0] == COMMITTED


async def test_what_was_built_on_a_change_that_failed_does_not_stand_on_what_another_made_of_it(scene: Scene) -> None:
    mine, next_of_mine = changing(task("a")), changing(task("a", revision=2))
    next_of_mine.built_on = (mine,)

    async def another_is_quicker(group: Sequence[ChangeSet]) -> None:
        await scene.gate.wait()
        scene.store.before = no_fault
        await scene.store.commit([changing(task("a", type="another"))])
        raise StoreUnavailable("gone")

    scene.store.before = another_is_quicker
    first = scene.committer.submit(mine).wait()
    await settle()
    second = scene.committer.submit(next_of_mine).wait()
    scene.gate.set()
    with pytest.raises(StoreUnavailable):
        await first
    assert await second == Conflicted((task("a").ref,))
    assert mine.void
    assert next_of_mine.void
    assert not next_of_mine.built_on


async def test_a_bug_in_the_store_reaches_every_waiter(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def break_down(group: Sequence[ChangeSet]) -> None:
        raise ZeroDivisionError

    scene.store.before = break_down
    with caplog.at_level(logging.CRITICAL), pytest.raises(OutcomeUnknown):
        await scene.submit("a")[0]
    assert isinstance(scene.told[0], OutcomeUnknown)
    scene.store.before = scene.pass_gate
    scene.gate.set()
    assert await scene.submit("b")[0] == COMMITTED


async def test_a_follower_that_fails_stops_nothing(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    def break_down(pairs: Sequence[tuple[ChangeSet, Outcome]]) -> None:
        raise ZeroDivisionError

    committer = Committer(scene.store, settled=break_down, failed=scene.failed, clock=scene.clock)
    scene.gate.set()
    running = asyncio.ensure_future(committer.run())
    assert await committer.submit(changing(task("a"))) == COMMITTED
    assert await committer.submit(changing(task("b"))) == COMMITTED
    await committer.stop()
    await running
    assert [record.message for record in caplog.records] == ["commit_follow_up_failed"] * 2


async def test_beyond_its_bound_it_refuses_the_newest(scene: Scene) -> None:
    scene.submit("in flight")
    await settle()
    waiting = scene.submit(*(f"t{number}" for number in range(50)))
    with pytest.raises(Overloaded) as caught:
        scene.submit("too many")
    assert caught.value.retry_after
    scene.gate.set()
    await asyncio.gather(*waiting)
    assert await scene.submit("now")[0] == COMMITTED


async def test_a_change_set_beyond_the_bounds_is_a_programming_error(scene: Scene) -> None:
    rows = changing(*(task(f"t{number}") for number in range(MAX_ROWS + 1)))
    with pytest.raises(ValueError, match="1025 rows"):
        _ = scene.committer.submit(rows)
    wordy = task_event(EventType.TASK_SENT_BACK, task(), comment="x" * 2**20)
    with pytest.raises(ValueError, match="bytes of events"):
        _ = scene.committer.submit(ChangeSet(events=[wordy]))


async def test_groups_are_bounded(scene: Scene) -> None:
    committer = Committer(scene.store, settled=scene.settled, failed=scene.failed, clock=scene.clock)
    scene.gate.set()
    sets = [changing(*(task(f"{at}-{number}") for number in range(1_000))) for at in range(6)]
    futures = [committer.submit(changes).wait() for changes in sets]
    running = asyncio.ensure_future(committer.run())
    assert await asyncio.gather(*futures) == [COMMITTED] * 6
    assert scene.groups == [GROUP_ROWS // 1_000, 2]
    await committer.stop()
    await running


async def test_stopping_writes_what_waits_and_takes_nothing_new(scene: Scene) -> None:
    futures = scene.submit("a")
    await settle()
    futures += scene.submit("b", "c")
    stop = asyncio.ensure_future(scene.committer.stop())
    await settle()
    with pytest.raises(Draining):
        scene.submit("d")
    assert not stop.done()
    scene.gate.set()
    await stop
    assert [future.result() for future in futures] == [COMMITTED] * 3


async def test_stopping_what_never_ran_returns(scene: Scene) -> None:
    await Committer(scene.store, settled=scene.settled, failed=scene.failed, clock=scene.clock).stop()


async def test_nobody_is_left_waiting_when_it_is_cancelled_against_the_rules(scene: Scene) -> None:
    committer = Committer(scene.store, settled=scene.settled, failed=scene.failed, clock=scene.clock)
    running = asyncio.ensure_future(committer.run())
    futures = [committer.submit(changing(task("a"))).wait()]
    await settle()
    futures.append(committer.submit(changing(task("b"))).wait())
    running.cancel()
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [OutcomeUnknown] * 2
    await asyncio.wait([running])


async def test_who_comes_while_a_commit_is_in_doubt_is_refused_and_nothing_of_it_is_written(scene: Scene) -> None:
    (first,) = scene.submit("a")
    await settle()
    scene.store.doubt = "the database is away"
    with pytest.raises(StoreUnavailable, match="the database is away"):
        scene.submit("b")
    scene.store.doubt = ""
    (second,) = scene.submit("c")
    scene.gate.set()
    assert [await first, await second] == [COMMITTED, COMMITTED]
    assert [record is not None for record in await scene.store.get(Kind.TASK, [task(n).key for n in "abc"])] == [
        True,
        False,
        True,
    ]
