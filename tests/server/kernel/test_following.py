"""Following what other replicas commit: whatever order things come in, memory becomes what the store is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from agenthive_server.events.log import EventLog
from agenthive_server.events.notifier import LocalNotifier
from agenthive_server.kernel import transitions
from agenthive_server.kernel.agents import Agent, AgentSpec, AgentState
from agenthive_server.kernel.changes import ChangeSet, Conflicted, Outcome
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.kernel.decide import Caller, Decisions, View
from agenthive_server.kernel.dispatcher import WAVE
from agenthive_server.kernel.errors import KernelError, Refused, StoreUnavailable
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.memory import is_open
from agenthive_server.kernel.messages import Message, MessageState
from agenthive_server.kernel.records import Kind, Payload, Record, Ref
from agenthive_server.kernel.session_items import Revoke
from agenthive_server.kernel.sessions import Session
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import Lease, Progress, Task, TaskSpec, TaskState, Timeouts
from agenthive_server.storage.committer import Committer
from agenthive_server.testing.hive import PlayedLink
from agenthive_server.testing.shared_database import SharedDatabase
from agenthive_server.testing.shared_store import SOME, SharedStore
from agenthive_server.testing.simulation_loop import run
from agenthive_server.testing.store_model import changing, task
from hypothesis import given
from hypothesis import strategies as st


class Node:
    """A replica without loops but those a test starts: it commits, and follows when told to."""

    def __init__(self, database: SharedDatabase, clock: ManualClock) -> None:
        self.clock = clock
        self.store = SharedStore(database)
        self.log = EventLog(self.store, encode=lambda event: b"")
        self._notifier = LocalNotifier(clock)
        self.committer = Committer(self.store, settled=self._settled, failed=self._failed, clock=clock)
        self.kernel = Kernel(
            self.store,
            self.committer.submit,
            self.log,
            self._notifier,
            clock=clock,
            new_id=lambda: "id",
            chance=lambda: 0.5,
            feed=self.store,
        )
        assert self.kernel.following is not None
        self.following = self.kernel.following
        self.memory = self.kernel.memory
        self.told: list[int] = []
        self.kernel.observers += [self.log.append, self._ring, self._hear]
        self.loops = [asyncio.create_task(loop()) for loop in (self.committer.run, self._notifier.run)]

    def _settled(self, group: Sequence[tuple[ChangeSet, Outcome]]) -> None:
        self.kernel.settled(group)

    def _failed(self, group: Sequence[ChangeSet], error: KernelError) -> None:
        self.kernel.failed(group, error)

    def _ring(self, events: Sequence[Event]) -> None:
        self._notifier.ring(events[-1].sequence)

    def _hear(self, events: Sequence[Event]) -> None:
        self.told += [event.sequence for event in events]

    async def commit(self, *records: Record, events: int = 1, deletes: tuple[Record, ...] = ()) -> object:
        return await self.kernel.decisions.commit(changing(*records, events=events, deletes=deletes))

    async def catch_up(self) -> None:
        await self.following.catch_up(0)

    def knows(self, name: str = "t") -> Record | None:
        return self.memory.committed((Kind.TASK, ("default", name)))

    async def close(self) -> None:
        for loop in self.loops:
            loop.cancel()
        await asyncio.wait(self.loops)


class Held:
    """A hook that keeps whoever comes until it is opened."""

    def __init__(self) -> None:
        self.waiting = 0
        self._open = asyncio.Event()

    async def __call__(self, _group: object = None) -> None:
        self.waiting += 1
        await self._open.wait()

    def open(self) -> None:
        self._open.set()


async def free(_group: object = None) -> None:
    """Let pass."""


def done(name: str = "t", revision: int = 2) -> Task:
    return task(name, revision=revision, state=TaskState.SUCCEEDED)


def progress(name: str = "t", revision: int = 1) -> Progress:
    return Progress(namespace="default", id=name, revision=revision, checkpoint=b"so far", attempt=1)


@pytest.fixture
def database() -> SharedDatabase:
    return SharedDatabase(ManualClock())


@pytest.fixture
async def pair(database: SharedDatabase) -> AsyncIterator[tuple[Node, Node]]:
    nodes = [Node(database, ManualClock()) for _ in range(2)]
    for node in nodes:
        await node.kernel.open()
    yield nodes[0], nodes[1]
    for node in nodes:
        await node.close()


async def test_what_another_commits_is_known_and_told_of_in_order(pair: tuple[Node, Node]) -> None:
    one, two = pair
    await one.commit(task("a"), events=2)
    await two.commit(task("b"))
    # Its own is in memory at once, but told of only when its turn has come.
    assert two.knows("b") == task("b")
    assert two.told == []
    await two.catch_up()
    await one.catch_up()
    assert one.told == two.told == [1, 2, 3]
    assert one.knows("b") == two.knows("b")
    assert two.knows("a") == task("a")


async def test_what_is_read_newer_than_it_was_then_is_kept(pair: tuple[Node, Node]) -> None:
    one, two = pair
    await one.commit(task())
    await one.commit(task(revision=2))
    for _ in range(3):
        await one.commit(task("other"), events=0)
        await one.commit(deletes=(task("other"),), events=0)
    await two.catch_up()
    assert two.knows() == task(revision=2)
    assert two.knows("other") is None


async def test_an_own_commit_that_was_followed_before_it_was_heard_of_hides_nothing_newer(
    pair: tuple[Node, Node],
) -> None:
    one, two = pair
    one.store.after = Held()
    waiting = asyncio.create_task(one.commit(task()))
    await settle()
    await two.catch_up()
    await two.commit(task(revision=2))
    await one.catch_up()
    one.store.after.open()
    await waiting
    assert one.knows() == one.memory.latest((Kind.TASK, ("default", "t"))) == task(revision=2)
    assert one.told == [1, 2]


async def test_an_own_commit_that_another_has_undone_already_does_not_come_back(pair: tuple[Node, Node]) -> None:
    one, two = pair
    one.store.after = Held()
    waiting = asyncio.create_task(one.commit(task()))
    await settle()
    await two.catch_up()
    await two.commit(deletes=(task(),))
    await one.catch_up()
    one.store.after.open()
    await waiting
    assert one.knows() is None
    assert one.memory.all(Task) == []


async def test_what_was_removed_and_made_anew_is_what_it_is_now(pair: tuple[Node, Node]) -> None:
    one, two = pair
    for revision in (1, 2, 3):
        await one.commit(task(revision=revision))
    await two.catch_up()
    await one.commit(deletes=(task(revision=3),))
    await one.commit(task(priority=1))
    await two.catch_up()
    assert two.knows() == task(priority=1)


async def test_the_checkpoint_of_a_task_that_is_tried_again_is_there_again(pair: tuple[Node, Node]) -> None:
    one, two = pair
    await one.commit(task(state=TaskState.FAILED, attempt=1), progress())
    await two.catch_up()
    assert two.memory.progress(("default", "t")) is None
    await one.commit(task(revision=2, attempt=1))
    await two.catch_up()
    assert two.memory.progress(("default", "t")) == progress()


async def test_the_progress_of_a_task_that_is_over_is_not_kept(pair: tuple[Node, Node]) -> None:
    one, two = pair
    await one.commit(task(), progress())
    await two.catch_up()
    assert two.memory.progress(("default", "t")) == progress()
    await one.commit(done(), progress(revision=2))
    await one.commit(progress(revision=3), events=0)
    await two.catch_up()
    assert two.memory.all(Progress) == []


async def test_what_an_own_commit_only_wanted_to_change_is_followed(pair: tuple[Node, Node]) -> None:
    one, two = pair
    await one.commit(task())
    await two.catch_up()
    await one.commit(task(revision=2))
    stale, fine = changing(task(revision=2, priority=1)), changing(task("other"))
    two.store.before = Held()
    first = asyncio.create_task(two.commit(task("first")))
    await settle()
    # In one group, the second of which conflicts, and whose caller does not look at it again.
    both = asyncio.gather(two.kernel.decisions.commit(fine), two.kernel.decisions.commit(stale))
    two.store.before.open()
    await first
    assert isinstance((await both)[1], Conflicted)
    await two.catch_up()
    assert two.knows() == task(revision=2)


async def test_a_commit_in_several_groups_that_is_half_followed_is_told_of_once(pair: tuple[Node, Node]) -> None:
    one, two = pair
    two.store.before = Held()
    waiting = [asyncio.create_task(two.commit(task("first")))]
    await settle()
    waiting += [asyncio.create_task(two.commit(task(str(number)))) for number in range(SOME + 2)]
    await settle()
    two.store.before.open()
    await waiting[0]
    two.store.after, two.store.one_by_one = Held(), lambda: True
    await settle()
    reading = two.store.answering = Held()
    following = asyncio.create_task(two.catch_up())
    await settle()
    two.store.answering = free
    reading.open()
    await settle()
    two.store.after.open()
    await asyncio.gather(*waiting, following)
    await one.catch_up()
    assert one.told == two.told == list(range(1, SOME + 4))


# Filling -------------------------------------------------------------------------------------------------------------


async def test_what_was_missed_is_told_of_when_memory_is_filled_anew(
    pair: tuple[Node, Node], database: SharedDatabase
) -> None:
    one, two = pair
    await one.commit(task())
    await two.catch_up()
    await one.commit(done())
    for number in range(10):
        await one.commit(task(str(number)))
    database.trim(3)
    await two.catch_up()
    assert two.following.refills == 1
    assert two.told == one.told == list(range(1, 13))
    assert two.knows("5") == task("5")
    assert two.memory.task(("default", "t")) is None


async def test_filling_takes_what_is_new_over_what_this_one_did_before(
    pair: tuple[Node, Node], database: SharedDatabase
) -> None:
    one, two = pair
    await one.commit(task("before"))
    await two.commit(task())
    # What two did has not had its turn: it does not know what came before it.
    for revision in (2, 3, 4):
        one.memory.load([task(revision=revision - 1)])
        await one.commit(task(revision=revision))
    database.trim(1)
    await two.catch_up()
    assert two.knows() == task(revision=4)
    assert two.told == [1, 2, 3, 4, 5]


async def test_filling_does_not_undo_what_this_one_does_meanwhile(
    pair: tuple[Node, Node], database: SharedDatabase
) -> None:
    one, two = pair
    for number in range(5):
        await one.commit(task(str(number)))
    database.trim(1)
    two.store.answering = Held()
    filling = asyncio.create_task(two.following.fill())
    await settle()
    await two.commit(task())
    two.store.answering.open()
    await filling
    await two.catch_up()
    assert two.knows() == task()
    assert two.told == list(range(1, 7))


async def test_filling_and_following_at_once_lose_nothing(pair: tuple[Node, Node]) -> None:
    one, two = pair
    held = two.store.answering = Held()
    filling = asyncio.create_task(two.following.fill())
    await settle()
    held.open()
    late = two.store.answering = Held()
    await settle()
    two.store.answering = free
    await one.commit(task())
    following = asyncio.create_task(two.catch_up())
    await settle()
    late.open()
    await asyncio.gather(filling, following)
    await two.catch_up()
    assert two.knows() == task()
    assert two.told == [1]


async def test_filling_sees_what_was_made_anew_and_what_is_read(
    pair: tuple[Node, Node], database: SharedDatabase
) -> None:
    one, two = pair
    message = Message(
        namespace="default",
        id="m",
        revision=1,
        agent_id="a",
        payload=Payload(data=b"hello"),
        create_time=1.0,
        expire_time=2.0,
    )
    for revision in (1, 2):
        await one.commit(task(revision=revision))
    await one.commit(message)
    await two.catch_up()
    await one.commit(deletes=(task(revision=2),))
    await one.commit(task(priority=1))
    await one.commit(message.evolve(revision=2, state=MessageState.READ))
    database.trim(1)
    await two.catch_up()
    assert two.following.refills == 1
    assert two.knows() == task(priority=1)
    assert two.memory.all(Message) == []


async def test_one_whose_own_groups_wait_for_what_nobody_knows_any_more_fills_its_memory(
    pair: tuple[Node, Node], database: SharedDatabase
) -> None:
    one, two = pair
    for number in range(5):
        await one.commit(task(str(number)))
    await two.commit(task())
    await one.catch_up()
    await one.commit(task("last"))
    database.trim(1)
    await two.catch_up()
    assert two.told == list(range(1, 8))
    assert two.knows("last") == task("last")


# Waiting -------------------------------------------------------------------------------------------------------------


async def test_fresh_waits_until_what_was_committed_before_is_known(pair: tuple[Node, Node]) -> None:
    one, two = pair
    two.loops.append(asyncio.create_task(two.following.run()))
    await one.commit(task())
    await two.kernel.decisions.fresh()
    assert two.knows() == task()
    two.store.reading = _down
    await one.commit(task(revision=2))
    with pytest.raises(StoreUnavailable):
        await two.kernel.decisions.fresh()
    assert two.following.failing


async def test_a_refusal_and_an_answer_without_a_change_wait_until_all_is_known_but_a_change_does_not(
    pair: tuple[Node, Node],
) -> None:
    one, two = pair
    await one.commit(task())
    await two.catch_up()
    await one.commit(task(revision=2, state=TaskState.PAUSED))
    asked = 0

    async def fresh() -> None:
        nonlocal asked
        asked += 1
        await two.catch_up()

    decisions = Decisions(two.memory, two.store, two.committer.submit, fresh)
    seen: list[int] = []

    def read(view: View) -> int:
        seen.append(view.task("default", "t").revision)
        return seen[-1]

    def refuse_old(view: View) -> int:
        found = read(view)
        if found < 3:
            raise Refused(f"revision {found}")
        return found

    assert await decisions.run(read) == 2
    assert (seen, asked) == ([1, 2], 1)
    await one.commit(task(revision=3))
    seen.clear()
    assert await decisions.run(refuse_old) == 3
    assert (seen, asked) == ([2, 3], 2)
    # What is late and collides looks at what it collided with, and waits for nothing else.
    await one.commit(task(revision=4, priority=1))
    seen.clear()

    def change(view: View) -> int:
        record = view.task("default", "t")
        seen.append(record.revision)
        return view.put(record.evolve(update_time=7.0)).revision

    assert await decisions.run(change) == 5
    assert (seen, asked) == ([3, 4], 2)


async def test_a_refusal_that_cannot_be_made_sure_of_is_not_made(pair: tuple[Node, Node]) -> None:
    _, two = pair

    async def fresh() -> None:
        raise StoreUnavailable("down")

    decisions = Decisions(two.memory, two.store, two.committer.submit, fresh)
    with pytest.raises(StoreUnavailable):
        await decisions.run(lambda view: view.task("default", "nobody"))


async def _down() -> None:
    raise StoreUnavailable("down")


async def test_a_ring_during_a_commit_that_changes_nothing_is_heard(pair: tuple[Node, Node]) -> None:
    one, two = pair
    await one.commit(task())
    await two.catch_up()
    two.loops.append(asyncio.create_task(two.following.run()))
    await settle()
    two.store.before = Held()
    waiting = asyncio.create_task(two.commit(task(revision=2, priority=1)))
    await settle()
    await one.commit(task(revision=2))
    two.following.ring(2, busy=True)
    two.store.before.open()
    assert isinstance(await waiting, Conflicted)
    await two.clock.advance(0.1)
    assert two.told == [1, 2]


async def test_what_an_event_entails_is_done_once_memory_knows_what_it_tells_of(pair: tuple[Node, Node]) -> None:
    one, two = pair
    caller = Caller(namespace="default")
    await one.kernel.tasks.delegate(caller, [NewTask(TaskSpec(type="work"), "first")])
    await two.catch_up()
    await one.kernel.tasks.delegate(caller, [NewTask(TaskSpec(type="work", depends_on=("first",)), "then")])
    await one.kernel.tasks.cancel(caller, "first", "not wanted")
    # Somebody who begins to read makes two look how far the log reaches.
    await two.log.refresh()
    two.loops.append(asyncio.create_task(two.kernel.followups.run()))
    await two.clock.advance(2.0)
    await two.catch_up()
    await two.clock.advance(2.0)
    then = (await two.store.get(Kind.TASK, [("default", "then")]))[0]
    assert isinstance(then, Task)
    assert then.state is TaskState.FAILED


async def test_of_two_assignments_of_one_epoch_the_one_that_stands_counts(pair: tuple[Node, Node]) -> None:
    one, two = pair
    await one.commit(task())
    await two.catch_up()
    given = {
        name: task(
            revision=2,
            state=TaskState.ASSIGNED,
            lease=Lease(agent_id=name, session_id=f"of {name}", epoch=1, assign_time=1.0),
            lease_epoch=1,
            attempt=1,
        )
        for name in ("a", "b")
    }
    two.store.before = Held()
    late = asyncio.create_task(two.commit(given["a"]))
    await settle()
    await one.commit(given["b"])
    await two.catch_up()
    two.store.before.open()
    assert isinstance(await late, Conflicted)
    index = two.kernel.index
    assert [index.open_leases(("default", name)) for name in "ab"] == [0, 1]
    assert list(index.leases_by_session["default", "of b"]) == [("default", "t")]


async def test_a_lease_whose_session_went_on_elsewhere_is_not_ended_for_want_of_a_pulse_here(
    pair: tuple[Node, Node],
) -> None:
    one, two = pair
    session = Session(namespace="default", id="s", revision=1)
    lease = Lease(
        agent_id="a",
        session_id="s",
        epoch=1,
        assign_time=1.0,
        start_time=two.clock.now(),
        close_deadline=two.clock.now() + 99,
    )
    held = task(
        state=TaskState.RUNNING,
        lease=lease,
        lease_epoch=1,
        attempt=1,
        timeouts=Timeouts(heartbeat=2.0),
        close_deadline=two.clock.now() + 99,
    )
    await one.commit(session, held)
    await two.catch_up()
    two.kernel.contacts.add(session.key, 1, PlayedLink())
    # The worker has gone on at the other one, and two, which has it in mind still, does not hear of that.
    await one.commit(session.evolve(revision=2, epoch=2))
    for _ in range(5):
        await two.clock.advance(1.0)
        await two.kernel.reaper.look()
    found = (await two.store.get(Kind.TASK, [held.key]))[0]
    assert isinstance(found, Task)
    assert (found.lease, found.reason) == (lease, "")


async def test_a_worker_is_told_at_once_that_its_task_was_ended_by_another_replica(pair: tuple[Node, Node]) -> None:
    one, two = pair
    session = Session(namespace="default", id="s", revision=1)
    held = task(
        "t", lease=Lease(agent_id="a", session_id="s", epoch=7, assign_time=1.0), lease_epoch=7, state=TaskState.RUNNING
    )
    elsewhere = task("u", lease=Lease(agent_id="b", session_id="other", epoch=7, assign_time=1.0), lease_epoch=7)
    await one.commit(session, held, elsewhere)
    await two.catch_up()
    link = PlayedLink()
    two.kernel.contacts.add(session.key, 1, link)
    for name in "tu":
        over, facts = transitions.expire(one.kernel.memory.task(("default", name)) or held, "CLOSE", now=0.0)
        changes = ChangeSet(puts={over.ref: over.evolve(revision=2)}, events=list(facts))
        await one.kernel.decisions.commit(changes)
    await two.catch_up()
    assert [(type(told), told.task_id) for told in link.take() if isinstance(told, Revoke)] == [(Revoke, "t")]
    # What nobody here holds is not even read.
    assert two.memory.latest((Kind.TASK, ("default", "u"))) is None


@pytest.mark.parametrize(("slots", "given"), [(1, False), (WAVE, False), (WAVE + 2, True)])
async def test_a_slot_whose_lease_did_not_end_after_all_is_not_given_away(
    pair: tuple[Node, Node], slots: int, given: bool
) -> None:
    one, two = pair
    agent = Agent(
        namespace="default", id="a", revision=1, spec=AgentSpec(slots=slots), state=AgentState.READY, session_id="s"
    )
    session = Session(namespace="default", id="s", revision=1)
    lease = Lease(agent_id="a", session_id="s", epoch=1, assign_time=1.0)
    held = task("held", state=TaskState.RUNNING, lease=lease, lease_epoch=1, attempt=1)
    await one.commit(agent, session, held, task("next"))
    await two.catch_up()
    # One cancels what two takes to be done; two has it and what follows from it in flight.
    await one.commit(held.evolve(revision=2, state=TaskState.CANCEL_REQUESTED))
    two.store.before = Held()
    done = asyncio.create_task(two.commit(held.evolve(revision=2, state=TaskState.SUCCEEDED, lease=None)))
    await settle()
    assigning = asyncio.create_task(two.kernel.dispatcher.wave())
    await settle()
    two.store.before.open()
    assert isinstance(await done, Conflicted)
    # Where as many slots are free as a wave may take, it rests on no such end.
    assert await assigning is given
    stored = await two.store.get(Kind.TASK, [("default", "next"), ("default", "held")])
    following, still_held = [record.lease for record in stored if isinstance(record, Task)]
    assert (following is not None, still_held) == (given, lease)


# Any order -----------------------------------------------------------------------------------------------------------

Deed = tuple[int, str, str]
"""Which replica does what, to which task."""

NAMES = ("a", "b")
DEEDS = st.tuples(
    st.integers(0, 1),
    st.sampled_from(["put", "put", "close", "reopen", "delete", "read", "follow", "fill", "trim", "rest"]),
    st.sampled_from(NAMES),
)


@given(deeds=st.lists(DEEDS, max_size=40), seed=st.integers(0, 2**32))
def test_memory_becomes_what_the_store_is(deeds: list[Deed], seed: int) -> None:
    clock, dice = ManualClock(), random.Random(seed)
    run(lambda: _any_order(deeds, clock, dice), clock, dice)


async def _any_order(deeds: list[Deed], clock: ManualClock, dice: random.Random) -> None:
    database = SharedDatabase(clock)
    nodes = [Node(database, clock) for _ in range(2)]
    for node in nodes:
        await node.kernel.open()
        slow = _slow(clock, dice)
        node.store.before = node.store.after = node.store.reading = node.store.answering = slow
        node.store.one_by_one = lambda: dice.random() < 0.3
    under_way = [asyncio.ensure_future(_do(nodes[number], deed, name, clock, dice)) for number, deed, name in deeds]
    if under_way:
        await asyncio.wait(under_way)
    for work in under_way:
        await work
    for node in nodes:
        await node.catch_up()
        assert node.told == list(range(1, database.disk._head + 1))
        for kind in (Kind.TASK, Kind.PROGRESS):
            stored = {record.ref: record for record in await database.disk.scan(kind)}
            for name in NAMES:
                _require_known(node, stored, (kind, ("default", name)))
        await node.close()


def _require_known(node: Node, stored: dict[Ref, Record], ref: Ref) -> None:
    known, record = node.memory.committed(ref), stored.get(ref)
    assert node.memory.flight(ref) is None
    if ref[0] is Kind.PROGRESS:
        # Not always there, but never out of date.
        assert known in (None, record)
    elif record is not None and is_open(record):
        assert known == record == node.memory.latest(ref)
    else:
        assert known in (None, record)


def _slow(clock: ManualClock, dice: random.Random) -> Callable[..., Awaitable[None]]:
    async def wait(_group: object = None) -> None:
        if dice.random() < 0.5:
            await clock.sleep(dice.random())

    return wait


async def _do(node: Node, deed: str, name: str, clock: ManualClock, dice: random.Random) -> None:
    await clock.sleep(3 * dice.random())
    ref: Ref = (Kind.TASK, ("default", name))
    known = node.memory.latest(ref)
    match deed:
        case "put" | "close" | "reopen":
            state = TaskState.SUCCEEDED if deed == "close" else TaskState.QUEUED
            revision = known.revision + 1 if known is not None else 1
            changes = changing(task(name, revision=revision, state=state), events=1)
            old = node.memory.progress(ref[1])
            if deed == "put" and dice.random() < 0.5:
                changes.puts[Kind.PROGRESS, ref[1]] = progress(name, old.revision + 1 if old is not None else 1)
            outcome = await node.kernel.decisions.commit(changes)
            if isinstance(outcome, Conflicted) and dice.random() < 0.5:
                await node.kernel.decisions.refresh(outcome.refs)
        case "delete" if known is not None:
            await node.commit(deletes=(known,))
        case "read":
            await node.kernel.decisions.refresh([ref])
        case "follow":
            await node.catch_up()
        case "fill":
            await node.following.fill()
        case "trim":
            node.store.database.trim(dice.choice([1, 3]))
        case _:
            await clock.sleep(1.0)
