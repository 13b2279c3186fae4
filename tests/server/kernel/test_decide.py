"""The path of every change: repeats by request id, records that are not in memory, callers that go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from agenthive_server.kernel.agent_verbs import NewAgent
from agenthive_server.kernel.agents import AgentSpec
from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import Exists, NotFound, Refused, StoreUnavailable
from agenthive_server.kernel.records import Kind, Payload
from agenthive_server.kernel.session_items import Accept, Ask, Beat, Result
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import Question, TaskSpec, TaskState, Usage
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.testing.faults import FaultyStore, no_fault
from agenthive_server.testing.hive import NAMESPACE, Hive, open_hive


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


@pytest.fixture
async def faulty() -> AsyncIterator[tuple[Hive, FaultyStore]]:
    made: list[FaultyStore] = []

    def store(clock: ManualClock) -> FaultyStore:
        made.append(FaultyStore(MemoryStore(clock)))
        return made[0]

    async with open_hive(store=store) as hive:
        yield hive, made[0]


async def test_repeating_a_call_that_chose_its_ids_is_no_collision_with_itself(hive: Hive) -> None:
    new = [NewTask(id="t", spec=TaskSpec(type="work"))]
    await hive.kernel.tasks.delegate(hive.caller("r"), new)
    assert (await hive.kernel.tasks.delegate(hive.caller("r"), new))[0].id == "t"
    with pytest.raises(Exists):
        await hive.kernel.tasks.delegate(hive.caller("other"), new)
    agents = [NewAgent(id="a", spec=AgentSpec())]
    await hive.kernel.agents.spawn(hive.caller("r", "spawn"), agents)
    assert (await hive.kernel.agents.spawn(hive.caller("r", "spawn"), agents))[0].id == "a"


async def test_repeating_a_call_whose_state_does_not_allow_it_twice_answers_as_it_stands(hive: Hive) -> None:
    tasks = hive.kernel.tasks
    worker = await hive.worker("a")
    await hive.delegate("t", requires_review=True)
    epoch = worker.assignments()[0].task.lease_epoch
    await worker.say(Accept("t", epoch))
    await tasks.pause(hive.caller("1"), "t")
    for _ in range(2):
        assert (await tasks.resume(hive.caller("2"), "t")).state is TaskState.RUNNING
    await worker.say(Ask("t", epoch, Question(question="why?")))
    for _ in range(2):
        assert (await tasks.respond(hive.caller("3"), "t", Payload(data=b"so"))).state is TaskState.RUNNING
    await worker.say(Result("t", epoch, result=Payload(data=b"x")))
    for _ in range(2):
        assert (await tasks.review(hive.caller("4"), "t", True, "")).state is TaskState.SUCCEEDED
    await worker.lose()
    await hive.advance(40.0)
    for _ in range(2):
        assert (await tasks.retry(hive.caller("5"), "t")).state is TaskState.QUEUED
    with pytest.raises(Refused):
        await tasks.retry(hive.caller("6"), "t")


async def test_a_message_sent_and_expired_is_not_sent_again_by_a_repeat(hive: Hive) -> None:
    await hive.kernel.agents.spawn(hive.caller(), [NewAgent(id="a", spec=AgentSpec())])
    payload = Payload(data=b"x")
    sent = await hive.kernel.messages.send(hive.caller("r"), agent_id="a", payload=payload, ttl=5.0)
    again = await hive.kernel.messages.send(hive.caller("r"), agent_id="a", payload=payload, ttl=5.0)
    assert sent.id == again.id
    await hive.advance(100.0)
    with pytest.raises(NotFound):
        await hive.kernel.messages.send(hive.caller("r"), agent_id="a", payload=payload, ttl=5.0)


async def test_hundreds_of_records_that_are_not_in_memory_are_no_collisions(hive: Hive) -> None:
    count = 300
    tasks = [NewTask(id=f"t{n}", spec=TaskSpec(type="work")) for n in range(count)]
    await hive.kernel.tasks.delegate(hive.caller(), tasks)
    worker = await hive.worker("a", slots=count)
    await hive.settle()
    held = worker.assignments()
    assert len(held) == count
    results = [
        Result(a.task.id, a.task.lease_epoch, result=Payload(data=b"x"), usage=Usage(input_tokens=1))
        for a in held[:150]
    ]
    assert await worker.say(*(Accept(a.task.id, a.task.lease_epoch) for a in held)) == []
    assert await worker.say(*results) == []
    await worker.lose()
    await hive.advance(40.0)
    queued = [await hive.task(f"t{n}") for n in range(count)]
    assert [t.state for t in queued] == [TaskState.SUCCEEDED] * 150 + [TaskState.QUEUED] * 150
    assert hive.kernel.followups.failing == ""


async def test_a_retried_task_is_given_its_checkpoint(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    epoch = worker.assignments()[0].task.lease_epoch
    await worker.say(Accept("t", epoch))
    beat = [Beat(task_id="t", epoch=epoch, checkpoint=b"half")]
    written = hive.kernel.sessions.beat(NAMESPACE, worker.session_id, worker.welcome.epoch, beat)
    assert written is not None
    await written
    await hive.kernel.tasks.cancel(hive.caller(), "t", "no")
    await worker.say(Result("t", epoch, canceled="stopped"))
    await hive.kernel.tasks.retry(hive.caller(), "t")
    await hive.settle()
    assert worker.assignments()[-1].checkpoint == b"half"


async def test_a_caller_that_goes_away_does_not_take_its_change_back(faulty: tuple[Hive, FaultyStore]) -> None:
    hive, store = faulty
    gate = asyncio.Event()

    async def slow(group: Sequence[ChangeSet]) -> None:
        await gate.wait()

    store.before = slow
    calls = [asyncio.create_task(hive.delegate(name)) for name in ("t", "u")]
    await hive.settle()
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert hive.kernel.memory.committed((Kind.TASK, (NAMESPACE, "t"))) is None
    gate.set()
    await hive.settle()
    for name in ("t", "u"):
        ref = (Kind.TASK, (NAMESPACE, name))
        (stored,) = await store.get(Kind.TASK, [ref[1]])
        assert hive.kernel.memory.committed(ref) == hive.kernel.memory.latest(ref) == stored is not None


async def test_an_answer_that_rests_on_a_failed_change_is_decided_again(faulty: tuple[Hive, FaultyStore]) -> None:
    hive, store = faulty
    gate = asyncio.Event()

    async def down(group: Sequence[ChangeSet]) -> None:
        await gate.wait()
        raise StoreUnavailable("down")

    await hive.delegate("t")
    await hive.advance(2.0)
    store.before = down
    cancel = asyncio.create_task(hive.kernel.tasks.cancel(hive.caller(), "t", "no"))
    await hive.settle()
    # No change of its own: as far as it sees, the task is over. It must not say so before that is durable.
    again = asyncio.create_task(hive.kernel.tasks.cancel(hive.caller(), "t", "no"))
    await hive.settle()
    assert not again.done()
    gate.set()
    store.before = no_fault
    with pytest.raises(StoreUnavailable):
        await cancel
    assert (await again).state is TaskState.CANCELED
    assert (await hive.task("t")).state is TaskState.CANCELED


async def test_a_refusal_that_rests_on_a_failed_change_is_decided_again(faulty: tuple[Hive, FaultyStore]) -> None:
    hive, store = faulty
    gate = asyncio.Event()

    async def down(group: Sequence[ChangeSet]) -> None:
        await gate.wait()
        raise StoreUnavailable("down")

    await hive.delegate("t")
    await hive.advance(2.0)
    store.before = down
    cancel = asyncio.create_task(hive.kernel.tasks.cancel(hive.caller(), "t", "no"))
    await hive.settle()
    pause = asyncio.create_task(hive.kernel.tasks.pause(hive.caller(), "t"))
    await hive.settle()
    gate.set()
    store.before = no_fault
    with pytest.raises(StoreUnavailable):
        await cancel
    assert (await pause).state is TaskState.PAUSED
