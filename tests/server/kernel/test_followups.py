"""What events entail: dependents, children, and that all of it is done after a crash too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import NotFound, Refused
from agenthive_server.kernel.followups import CURSOR
from agenthive_server.kernel.pending import Pending
from agenthive_server.kernel.records import CursorRecord, Kind, Payload
from agenthive_server.kernel.session_items import Accept, Cancel, Result
from agenthive_server.kernel.tasks import ChildrenPolicy, DependencyPolicy, RetryPolicy, TaskState
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.testing.hive import NAMESPACE, Hive, open_hive

S = TaskState
ONCE = RetryPolicy(maximum_attempts=1)


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


async def _state(hive: Hive, task_id: str) -> TaskState:
    await hive.settle()
    return (await hive.task(task_id)).state


async def _family(hive: Hive, policy: ChildrenPolicy) -> None:
    """A parent with a policy, a held child and one that waits."""
    await hive.delegate("parent", children_policy=policy, required_capabilities=("nobody",))
    await hive.delegate("held", parent_task_id="parent")
    await hive.delegate("waiting", parent_task_id="parent", required_capabilities=("nobody",))


async def test_children_are_canceled_with_their_parent(hive: Hive) -> None:
    worker = await hive.worker("a")
    await _family(hive, ChildrenPolicy.CANCEL)
    await hive.delegate("grandchild", parent_task_id="waiting", required_capabilities=("nobody",))
    await hive.kernel.tasks.cancel(hive.caller(), "parent", "no")
    states = [await _state(hive, name) for name in ("parent", "held", "waiting", "grandchild")]
    assert states == [S.CANCELED, S.CANCEL_REQUESTED, S.CANCELED, S.CANCELED]
    assert isinstance(worker.link.told[-1], Cancel)


async def test_children_left_alone_go_on(hive: Hive) -> None:
    await hive.worker("a")
    await _family(hive, ChildrenPolicy.ABANDON)
    await hive.kernel.tasks.cancel(hive.caller(), "parent", "no")
    assert [await _state(hive, name) for name in ("parent", "held", "waiting")] == [S.CANCELED, S.ASSIGNED, S.QUEUED]


async def test_a_parent_that_waits_is_canceled_when_its_children_have_ended(hive: Hive) -> None:
    worker = await hive.worker("a")
    await _family(hive, ChildrenPolicy.WAIT)
    await hive.kernel.tasks.cancel(hive.caller(), "parent", "no")
    assert await _state(hive, "parent") is S.CANCEL_REQUESTED
    with pytest.raises(Refused):
        await hive.delegate("late", parent_task_id="parent")
    await worker.finish(worker.assignments()[0])
    assert await _state(hive, "parent") is S.CANCEL_REQUESTED
    await hive.kernel.tasks.cancel(hive.caller(), "waiting", "no")
    assert await _state(hive, "parent") is S.CANCELED


async def test_a_held_parent_that_waits_is_canceled_after_its_children_too(hive: Hive) -> None:
    worker = await hive.worker("a", slots=2)
    await hive.delegate("parent", children_policy=ChildrenPolicy.WAIT)
    await hive.delegate("child", parent_task_id="parent")
    await hive.kernel.tasks.cancel(hive.caller(), "parent", "no")
    await worker.say(Accept("parent", 1), Result("parent", 1, canceled="stopped"))
    assert await _state(hive, "parent") is S.CANCEL_REQUESTED
    assert (await hive.task("parent")).lease is None
    await worker.finish(worker.assignments()[1])
    assert await _state(hive, "parent") is S.CANCELED


async def test_a_held_parent_without_children_is_canceled_soon(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("parent", children_policy=ChildrenPolicy.WAIT)
    await hive.kernel.tasks.cancel(hive.caller(), "parent", "no")
    await worker.say(Result("parent", 1, canceled="stopped"))
    assert await _state(hive, "parent") is S.CANCELED


async def test_a_child_that_waits_for_its_own_children_does_so_when_its_parent_is_canceled(hive: Hive) -> None:
    await hive.delegate("parent", required_capabilities=("nobody",))
    await hive.delegate(
        "child", parent_task_id="parent", children_policy=ChildrenPolicy.WAIT, required_capabilities=("nobody",)
    )
    worker = await hive.worker("a")
    await hive.delegate("grandchild", parent_task_id="child")
    await hive.kernel.tasks.cancel(hive.caller(), "parent", "no")
    assert await _state(hive, "child") is S.CANCEL_REQUESTED
    await worker.finish(worker.assignments()[0])
    assert await _state(hive, "child") is S.CANCELED


async def test_a_failed_dependency_is_ignored_where_the_task_says_so(hive: Hive) -> None:
    worker = await hive.worker("a", slots=5)
    await hive.delegate("first", retry=ONCE)
    await hive.delegate("strict", depends_on=("first",))
    await hive.delegate("loose", depends_on=("first",), dependency_policy=DependencyPolicy.RELEASE)
    await hive.kernel.tasks.cancel(hive.caller(), "first", "no")
    await worker.say(Result("first", 1, canceled="stopped"))
    assert [await _state(hive, name) for name in ("strict", "loose")] == [S.FAILED, S.ASSIGNED]
    assert (await hive.delegate("later", depends_on=("first",))).state is S.FAILED
    assert (await hive.delegate("later2", depends_on=("loose", "strict"))).state is S.FAILED
    with pytest.raises(NotFound):
        await hive.delegate("x", depends_on=("none",))


async def test_a_canceled_task_that_waits_for_children_does_not_fail_with_a_dependency(hive: Hive) -> None:
    await hive.delegate("first", required_capabilities=("nobody",))
    await hive.delegate("parent", depends_on=("first",), children_policy=ChildrenPolicy.WAIT)
    await hive.delegate("child", parent_task_id="parent", required_capabilities=("nobody",))
    await hive.kernel.tasks.cancel(hive.caller(), "parent", "no")
    await hive.kernel.tasks.cancel(hive.caller(), "first", "no")
    assert await _state(hive, "parent") is S.CANCEL_REQUESTED
    await hive.kernel.tasks.cancel(hive.caller(), "child", "no")
    assert await _state(hive, "parent") is S.CANCELED


async def test_what_a_crash_interrupted_is_done_after_the_start() -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    async with open_hive(store=store, clock=clock) as hive:
        await hive.worker("a", slots=2)
        await hive.delegate("parent", children_policy=ChildrenPolicy.WAIT, required_capabilities=("nobody",))
        await hive.delegate("child", parent_task_id="parent")
        await hive.delegate("next", depends_on=("child",), required_capabilities=("nobody",))
        await hive.kernel.tasks.cancel(hive.caller(), "parent", "no")
        await hive.settle()
        hive.kernel.followups.follow = _nothing  # type: ignore[method-assign]  # it dies before it acts
        position = hive.kernel.followups.position
        await hive.kernel.sessions.apply(NAMESPACE, "id-0-1", 1, [Result("child", 1, result=Payload(data=b"x"))])
        assert (await hive.task("parent")).state is S.CANCEL_REQUESTED
        hive.kernel.followups.position = position
    async with open_hive(store=store, clock=clock, seed=1) as hive:
        await hive.advance(1.0)
        assert [await _state(hive, name) for name in ("parent", "next")] == [S.CANCELED, S.QUEUED]


async def _nothing(event: object) -> None:
    await asyncio.get_running_loop().create_future()


async def test_waiting_for_an_outcome_ends_with_it_or_with_a_question_or_at_drain(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    waiting = asyncio.create_task(hive.kernel.queries.wait(NAMESPACE, "t", timeout=60.0))
    await hive.settle()
    assert not waiting.done()
    await worker.finish(worker.assignments()[0])
    assert (await waiting).state is S.SUCCEEDED
    await hive.delegate("u", requires_review=True)
    attending = asyncio.create_task(hive.kernel.queries.wait(NAMESPACE, "u", timeout=60.0, until_attention=True))
    waiting = asyncio.create_task(hive.kernel.queries.wait(NAMESPACE, "u", timeout=60.0))
    await hive.settle()
    await worker.finish(worker.assignments()[-1])
    assert (await attending).state is S.REPORTED
    assert not waiting.done()
    hive.kernel.drain()
    assert (await waiting).state is S.REPORTED


async def test_explaining_a_routing_names_what_keeps_each_agent_away(hive: Hive) -> None:
    await hive.worker("busy")
    await hive.delegate("x", agent_id="busy")
    lost = await hive.worker("lost", capabilities=("python",))
    await lost.lose()
    away = await hive.worker("away")
    await hive.kernel.sessions.drain(NAMESPACE, away.session_id, away.welcome.epoch)
    free = await hive.worker("free", capabilities=("python",), role="coder")
    await hive.worker("other", role="tester")
    await hive.delegate("t", required_capabilities=("python",), role="coder")
    found = await hive.kernel.queries.explain(NAMESPACE, task_id="t")
    words = {candidate.agent_id: candidate.exclusions for candidate in found.candidates}
    assert words == {
        "busy": ("ROLE", "CAPABILITIES", "NO_FREE_SLOT"),
        "lost": ("ROLE", "NOT_IN_CONTACT"),
        "away": ("ROLE", "CAPABILITIES", "DRAINING"),
        "free": ("NO_FREE_SLOT",),
        "other": ("ROLE", "CAPABILITIES"),
    }
    await free.finish(free.assignments()[0])
    await hive.delegate("u", agent_id="busy")
    found = await hive.kernel.queries.explain(NAMESPACE, task_id="u")
    assert found.queue_position == 0
    assert {c.agent_id: c.exclusions for c in found.candidates}["free"] == ("PINNED_ELSEWHERE",)


async def test_what_a_change_hid_that_came_to_nothing_is_done_after_all(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("first")
    await hive.delegate("second", depends_on=("first",))
    memory = hive.kernel.memory
    waiting = memory.task((NAMESPACE, "second"))
    assert waiting is not None
    # A cancel that is on its way to the store, as everybody sees already.
    canceled = waiting.evolve(state=S.CANCELED, waiting_on=(), revision=waiting.revision + 1)
    changes = ChangeSet(puts={waiting.ref: canceled})
    memory.apply(changes, Pending())
    before = hive.kernel.followups.position
    await worker.finish(worker.assignments()[0])
    await hive.settle()
    await hive.clock.advance(2.0)
    assert hive.kernel.followups.position > before
    stored = (await hive.store.get(Kind.CURSOR, [CURSOR]))[0]
    assert stored is None or (isinstance(stored, CursorRecord) and stored.sequence <= before)
    memory.revert(changes)
    await hive.clock.advance(2.0)
    assert await _state(hive, "second") is S.ASSIGNED
