"""Sessions: resumed within the grace, fenced by newer ones, lost, drained, and what they are told when they open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from agenthive_server.kernel.agent_verbs import NewAgent
from agenthive_server.kernel.agents import AgentSpec, AgentState
from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import KernelError, NotFound, SessionFenced
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.session_items import (
    Accept,
    AgentReport,
    Assign,
    Beat,
    Cancel,
    Drained,
    HandBack,
    Hello,
    HostedAgent,
    Item,
    LeaseRef,
    Pause,
    Reconnect,
    Result,
    Revoke,
    Start,
    Stop,
)
from agenthive_server.kernel.sessions import RunnerCapacity
from agenthive_server.kernel.tasks import TaskState, Timeouts
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.testing.faults import FaultyStore, no_fault
from agenthive_server.testing.hive import NAMESPACE, Hive, PlayedLink, PlayedWorker, open_hive


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


async def _resume(hive: Hive, worker: PlayedWorker, *agents: str, leases: tuple[LeaseRef, ...] = ()) -> PlayedWorker:
    hosted = tuple(HostedAgent(agent_id=name, spec=AgentSpec()) for name in agents)
    return await hive.worker(hello=Hello(session_id=worker.session_id, agents=hosted, leases=leases))


async def _held(hive: Hive, worker: PlayedWorker, task_id: str = "t", **spec: object) -> LeaseRef:
    await hive.delegate(task_id, **spec)
    epoch = worker.assignments()[-1].task.lease_epoch
    await worker.say(Accept(task_id, epoch))
    return LeaseRef(task_id, epoch)


async def _state(hive: Hive, task_id: str = "t") -> TaskState:
    return (await hive.task(task_id)).state


async def test_a_session_resumed_within_the_grace_keeps_its_leases(hive: Hive) -> None:
    worker = await hive.worker("a")
    lease = await _held(hive, worker)
    await worker.lose()
    await hive.advance(25.0)
    again = await _resume(hive, worker, "a", leases=(lease, LeaseRef("other", 1)))
    assert (again.session_id, again.welcome.resumed) == (worker.session_id, True)
    assert again.welcome.valid_leases == (lease,)
    assert again.link.told == []
    assert await again.say(Result(lease.task_id, lease.epoch, result=Payload(data=b"x"))) == []
    assert await _state(hive) is TaskState.SUCCEEDED


async def test_a_lease_the_worker_does_not_name_is_told_again_as_repeated(hive: Hive) -> None:
    worker = await hive.worker("a")
    lease = await _held(hive, worker)
    again = await _resume(hive, worker, "a")
    (told,) = again.assignments()
    assert (told.task.id, told.task.lease_epoch, told.repeated) == ("t", lease.epoch, True)


async def test_an_assignment_that_was_not_accepted_is_told_again_as_new(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    again = await _resume(hive, worker, "a")
    (told,) = again.assignments()
    assert not told.repeated


async def test_an_assignment_told_again_has_its_whole_time_to_be_accepted(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    await worker.lose()
    await hive.advance(20.0)
    again = await _resume(hive, worker, "a")
    await hive.advance(8.0)
    assert await again.say(Accept("t", 1)) == []
    assert await _state(hive) is TaskState.RUNNING


async def test_what_happened_meanwhile_is_told_when_the_session_resumes(hive: Hive) -> None:
    worker = await hive.worker("a", slots=2)
    canceled, paused = await _held(hive, worker, "c"), await _held(hive, worker, "p")
    await worker.lose()
    await hive.kernel.tasks.cancel(hive.caller(), "c", "no")
    await hive.kernel.tasks.pause(hive.caller(), "p")
    again = await _resume(hive, worker, "a", leases=(canceled, paused))
    assert set(again.link.told) == {Cancel("c", canceled.epoch, "no"), Pause("p", paused.epoch, resume=False)}


async def test_a_session_lost_again_right_after_it_came_back_has_the_whole_grace_again(hive: Hive) -> None:
    worker = await hive.worker("a")
    lease = await _held(hive, worker)
    await worker.lose()
    await hive.advance(25.0)
    again = await _resume(hive, worker, "a", leases=(lease,))
    await again.lose()
    await hive.advance(25.0)
    assert (await _resume(hive, worker, "a", leases=(lease,))).welcome.valid_leases == (lease,)


async def test_after_the_grace_leases_are_lost_and_the_session_is_over(hive: Hive) -> None:
    worker = await hive.worker("a")
    lease = await _held(hive, worker)
    await worker.lose()
    await hive.advance(32.0)
    task = await hive.task("t")
    assert (task.state, task.counted_attempts, task.lost_leases) == (TaskState.QUEUED, 0, 1)
    assert task.attempts[0].error is not None
    assert task.attempts[0].error.reason == "LEASE_LOST"
    assert (await hive.kernel.agents.get(NAMESPACE, "a")).state is AgentState.LOST
    with pytest.raises(NotFound) as caught:
        await _resume(hive, worker, "a", leases=(lease,))
    assert caught.value.reason == "SESSION_NOT_FOUND"


async def test_a_hello_without_a_session_ends_the_leases_of_the_old_one(hive: Hive) -> None:
    old = await hive.worker("a")
    lease = await _held(hive, old)
    new = await hive.worker("a")
    task = await hive.task("t")
    assert (task.state, task.lost_leases, task.counted_attempts) == (TaskState.QUEUED, 1, 0)
    assert isinstance(old.link.error, SessionFenced)
    assert Revoke("t", lease.epoch, "TASK_REQUEUED") in old.link.told
    (refusal,) = await old.say(Result("t", lease.epoch, result=Payload(data=b"late")))
    assert refusal.reason == "STALE_ATTEMPT"
    await hive.advance(6.0)
    assert [a.task.lease_epoch for a in new.assignments()] == [lease.epoch + 1]


async def test_only_the_agent_that_moved_is_fenced_in_a_session_with_several(hive: Hive) -> None:
    old = await hive.worker("a", "b")
    await hive.delegate("ta", agent_id="a")
    await hive.delegate("tb", agent_id="b")
    epochs = {a.task.id: a.task.lease_epoch for a in old.assignments()}
    new = await hive.worker("a")
    assert old.link.error is None
    assert await old.say(Accept("tb", epochs["tb"])) == []
    (refusal,) = await old.say(AgentReport("a", "READY"))
    assert refusal.reason == "SESSION_FENCED"
    assert await _state(hive, "tb") is TaskState.RUNNING
    await hive.advance(6.0)
    assert [a.task.id for a in new.assignments()] == ["ta"]


async def test_an_older_stream_of_the_session_changes_nothing(hive: Hive) -> None:
    old = await hive.worker("a")
    lease = await _held(hive, old)
    await _resume(hive, old, "a", leases=(lease,))
    assert isinstance(old.link.error, SessionFenced)
    with pytest.raises(SessionFenced):
        await old.say(Result("t", lease.epoch, result=Payload(data=b"x")))
    await old.lose()
    assert (await hive.kernel.agents.get(NAMESPACE, "a")).state is AgentState.READY
    assert hive.kernel.sessions.beat(NAMESPACE, old.session_id, old.welcome.epoch, [Beat(task_id="t", epoch=1)]) is None


async def test_an_agent_the_worker_comes_back_without_is_lost(hive: Hive) -> None:
    worker = await hive.worker("a", "b")
    await hive.delegate("t", agent_id="b")
    await worker.say(Accept("t", 1))
    await _resume(hive, worker, "a")
    await hive.settle()
    assert (await hive.kernel.agents.get(NAMESPACE, "b")).state is AgentState.LOST
    assert await _state(hive) is TaskState.QUEUED


async def test_a_session_that_leaves_hands_back_what_it_holds(hive: Hive) -> None:
    worker = await hive.worker("a")
    await _held(hive, worker)
    await hive.kernel.sessions.leave(NAMESPACE, worker.session_id, worker.welcome.epoch, "done")
    await hive.settle()
    task = await hive.task("t")
    assert (task.state, task.lost_leases, task.attempts[0].counted) == (TaskState.QUEUED, 0, False)
    assert (await hive.kernel.agents.get(NAMESPACE, "a")).state is AgentState.STOPPED


async def test_a_draining_session_finishes_what_it_holds_and_takes_nothing_new(hive: Hive) -> None:
    worker = await hive.worker("a", slots=2)
    lease = await _held(hive, worker)
    await hive.kernel.sessions.drain(NAMESPACE, worker.session_id, worker.welcome.epoch)
    assert worker.link.told[-1] == Drained("as asked")
    assert (await hive.delegate("u")).state is TaskState.QUEUED
    assert await worker.say(Result("t", lease.epoch, result=Payload(data=b"x"))) == []
    assert hive.kernel.sessions.holds(NAMESPACE, worker.session_id) == 0
    with pytest.raises(SessionFenced):
        await hive.kernel.sessions.drain(NAMESPACE, worker.session_id, worker.welcome.epoch + 1)


async def test_a_session_sent_away_loses_nothing(hive: Hive) -> None:
    worker = await hive.worker("a")
    lease = await _held(hive, worker)
    hive.kernel.sessions.send_away(lambda: 2.0)
    assert worker.link.told[-1] == Reconnect(2.0)
    again = await _resume(hive, worker, "a", leases=(lease,))
    assert again.welcome.valid_leases == (lease,)


async def test_silence_of_three_beats_is_a_loss_of_contact(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.advance(29.0)
    assert hive.kernel.agents.shown(await hive.kernel.agents.get(NAMESPACE, "a")).state == "IDLE"
    await hive.advance(3.0)
    assert hive.kernel.agents.shown(await hive.kernel.agents.get(NAMESPACE, "a")).state == "SUSPECT"
    assert (await hive.delegate("t")).state is TaskState.QUEUED
    await _resume(hive, worker, "a")
    await hive.settle()
    assert await _state(hive) is TaskState.ASSIGNED


async def test_a_restarted_server_gives_every_session_the_whole_grace_again() -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    async with open_hive(store=store, clock=clock) as hive:
        worker = await hive.worker("a")
        lease = await _held(hive, worker)
        await worker.lose()
        await hive.advance(25.0)
    clock.move(600.0)
    async with open_hive(store=store, clock=clock, seed=1) as hive:
        await hive.advance(25.0)
        again = await _resume(hive, worker, "a", leases=(lease,))
        assert again.welcome.valid_leases == (lease,)
        assert await again.say(Result("t", lease.epoch, result=Payload(data=b"x"))) == []
        await again.lose()
        await hive.advance(32.0)
        with pytest.raises(NotFound):
            await _resume(hive, again, "a")


async def test_a_session_open_when_the_server_died_is_suspect_and_then_over() -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    async with open_hive(store=store, clock=clock) as hive:
        worker = await hive.worker("a")
        await _held(hive, worker, timeouts=Timeouts(start_to_close=7200.0))
    async with open_hive(store=store, clock=clock, seed=1) as hive:
        await hive.advance(3.0)
        assert hive.kernel.agents.shown(await hive.kernel.agents.get(NAMESPACE, "a")).state == "SUSPECT"
        await hive.advance(30.0)
        assert await _state(hive) is TaskState.QUEUED


async def test_the_heartbeat_of_a_task_held_again_is_counted_anew(hive: Hive) -> None:
    """What was noted of the first attempt's pulse must not end the second one."""
    worker = await hive.worker("a")
    lease = await _held(hive, worker, requires_review=True, timeouts=Timeouts(heartbeat=20.0))
    hive.kernel.sessions.beat(NAMESPACE, worker.session_id, 1, [Beat(task_id="t", epoch=lease.epoch)])
    await worker.say(Result("t", lease.epoch, result=Payload(data=b"x")))
    for _ in range(10):
        hive.kernel.sessions.heard(NAMESPACE, worker.session_id, 1)
        await hive.advance(10.0)
    await hive.kernel.tasks.review(hive.caller(), "t", False, "again")
    await hive.settle()
    await worker.say(Accept("t", lease.epoch + 1))
    await hive.advance(5.0)
    assert await _state(hive) is TaskState.RUNNING


async def test_what_ends_leaves_no_trace_of_its_pulse(hive: Hive) -> None:
    worker = await hive.worker("a")
    lease = await _held(hive, worker)
    beats = [Beat(task_id="t", epoch=lease.epoch, fraction=0.5)]
    written = hive.kernel.sessions.beat(NAMESPACE, worker.session_id, 1, beats)
    assert written is not None
    await written
    await hive.advance(2.0)
    await worker.say(Result("t", lease.epoch, result=Payload(data=b"x")))
    (contact,) = hive.kernel.contacts
    assert not contact.renewed
    assert not contact.progressed
    assert not contact.written


async def test_progress_is_written_once_a_second_and_a_checkpoint_always(hive: Hive) -> None:
    worker = await hive.worker("a")
    lease = await _held(hive, worker)

    def beat(**news: object) -> object:
        beats = [Beat(task_id="t", epoch=lease.epoch, **news)]  # type: ignore[arg-type]  # tests write fields by name
        return hive.kernel.sessions.beat(NAMESPACE, worker.session_id, 1, beats)

    first = beat(fraction=0.1)
    assert first is not None
    await first  # type: ignore[misc]  # what `beat` returned
    assert beat(fraction=0.2) is None
    second = beat(checkpoint=b"half")
    await second  # type: ignore[misc]  # what `beat` returned
    await hive.advance(1.1)
    third = beat(fraction=0.3, text="on it")
    await third  # type: ignore[misc]  # what `beat` returned
    progress = (await hive.kernel.queries.get(NAMESPACE, "t"))[1]
    assert progress is not None
    assert (progress.fraction, progress.text, progress.checkpoint) == (0.3, "on it", b"half")


async def test_a_full_context_gets_nothing_new_until_a_new_session(hive: Hive) -> None:
    worker = await hive.worker("a", slots=2)
    lease = await _held(hive, worker)
    hive.kernel.sessions.beat(
        NAMESPACE, worker.session_id, 1, [Beat(task_id="t", epoch=lease.epoch, context_usage=0.9)]
    )
    assert (await hive.delegate("u")).state is TaskState.QUEUED
    (shown,) = (await hive.kernel.queries.explain(NAMESPACE, task_id="u")).candidates
    assert shown.exclusions == ("CONTEXT_FULL",)
    fresh = await hive.worker("a", slots=2)
    await hive.settle()
    assert "u" in [a.task.id for a in fresh.assignments()]


async def test_a_beat_for_a_lease_that_is_over_is_answered_with_revoke(hive: Hive) -> None:
    worker = await hive.worker("a")
    lease = await _held(hive, worker)
    await worker.say(HandBack("t", lease.epoch))
    await hive.settle()
    worker.link.take()
    hive.kernel.sessions.beat(NAMESPACE, worker.session_id, 1, [Beat(task_id="t", epoch=lease.epoch)])
    hive.kernel.sessions.beat(NAMESPACE, worker.session_id, 1, [Beat(task_id="t", epoch=7)])
    assert [told for told in worker.link.told if isinstance(told, Revoke)] == [Revoke("t", 7, "the lease is over")]


async def test_a_connect_that_takes_long_is_not_taken_for_a_loss() -> None:
    made: list[FaultyStore] = []

    def store(clock: ManualClock) -> FaultyStore:
        made.append(FaultyStore(MemoryStore(clock)))
        return made[0]

    async with open_hive(store=store) as hive:
        gate = asyncio.Event()

        async def slow(group: Sequence[ChangeSet]) -> None:
            await gate.wait()

        made[0].before = slow
        link = PlayedLink()
        agents = tuple(HostedAgent(agent_id=f"a{n:03}", spec=AgentSpec()) for n in range(250))
        connecting = asyncio.create_task(hive.kernel.sessions.connect(NAMESPACE, "", Hello(agents=agents), link))
        await hive.advance(5.0)
        gate.set()
        made[0].before = no_fault
        welcome = await connecting
        await hive.advance(20.0)
        hive.kernel.sessions.heard(NAMESPACE, welcome.session_id, welcome.epoch)
        await hive.advance(20.0)
        assert link.error is None
        assert (await hive.delegate("t")).state is TaskState.ASSIGNED


async def test_agents_that_are_not_known_need_a_spec(hive: Hive) -> None:
    with pytest.raises(KernelError) as caught:
        await hive.worker(hello=Hello(agents=(HostedAgent(agent_id="ghost"),)))
    assert caught.value.reason == "AGENT_NOT_FOUND"


async def test_a_worker_may_change_what_its_agent_can_do(hive: Hive) -> None:
    await hive.worker("a")
    await hive.delegate("t", required_capabilities=("python",))
    worker = await hive.worker("a", capabilities=("python",))
    await hive.settle()
    assert [told.task.id for told in worker.link.told if isinstance(told, Assign)] == ["t"]


async def test_a_frame_of_many_items_is_applied_in_order_and_refusals_name_their_index(hive: Hive) -> None:
    worker = await hive.worker("a", slots=3)
    for name in ("t1", "t2", "t3"):
        await hive.delegate(name)
    items: list[Item] = [
        *(Accept("t1", 1) for _ in range(300)),
        Result("t1", 1, result=Payload(data=b"x")),
        Result("t2", 9, result=Payload(data=b"x")),
        Result("unknown", 1, result=Payload(data=b"x")),
    ]
    refusals = await worker.say(*items)
    assert [(r.index, r.reason, r.task_id) for r in refusals] == [
        (301, "STALE_ATTEMPT", "t2"),
        (302, "TASK_NOT_FOUND", "unknown"),
    ]
    assert await _state(hive, "t1") is TaskState.SUCCEEDED


async def test_a_worker_that_was_killed_and_started_again_need_not_wait_for_the_grace(hive: Hive) -> None:
    first = await hive.worker("a")
    await hive.delegate("t")
    await first.say(Accept("t", first.assignments()[0].task.lease_epoch))
    await first.lose()
    second = await hive.worker(
        hello=Hello(agents=(HostedAgent(agent_id="b", spec=AgentSpec()),), replaces=first.session_id)
    )
    await hive.settle()
    assert [assign.task.id for assign in second.assignments()] == ["t"]
    assert (await hive.kernel.agents.get(NAMESPACE, "a")).state is AgentState.LOST


async def test_replacing_a_session_nobody_knows_is_no_error(hive: Hive) -> None:
    hello = Hello(agents=(HostedAgent(agent_id="a", spec=AgentSpec()),), replaces="long-gone")
    assert (await hive.worker(hello=hello)).session_id


async def test_a_worker_that_comes_back_without_any_number_of_its_agents_is_welcome(hive: Hive) -> None:
    names = [f"a{number}" for number in range(1_500)]
    first = await hive.worker(*names)
    await first.lose()
    back = await hive.worker(hello=Hello(session_id=first.session_id, agents=(HostedAgent(agent_id="a0"),)))
    assert back.session_id == first.session_id
    await hive.settle()
    states = [(await hive.kernel.agents.get(NAMESPACE, name)).state for name in names]
    assert states == [AgentState.READY] + [AgentState.LOST] * 1_499


async def test_a_runner_that_comes_back_too_late_stops_what_is_not_its_own_any_more(hive: Hive) -> None:
    runner, spec = RunnerCapacity(drivers=("process",)), AgentSpec(driver="process")
    await hive.kernel.agents.spawn(hive.caller(), [NewAgent(id=name, spec=spec) for name in ("moved", "kept")])
    first = await hive.worker(hello=Hello(runner=runner))
    await hive.advance(1)
    await first.say(AgentReport("moved", "READY"), AgentReport("kept", "READY"))
    await first.lose()
    await hive.advance(60)
    hosted = tuple(HostedAgent(agent_id=name, spec=None) for name in ("moved", "kept", "unknown"))
    late = await hive.worker(hello=Hello(runner=runner, agents=hosted))
    stops = [told.agent_id for told in late.link.told if isinstance(told, Stop)]
    assert stops == ["moved", "kept", "unknown"]
    assert not any(told.sleep for told in late.link.told if isinstance(told, Stop))
    # What it reports of them does not touch agents that are started elsewhere; and it may be given them again.
    refused = await late.say(AgentReport("unknown", "STOPPED"))
    assert [each.reason for each in refused] == ["AGENT_NOT_FOUND"]
    await hive.advance(10)
    started = {told.agent.id for told in late.link.told if isinstance(told, Start)}
    assert started == {"moved", "kept"}


async def test_a_runner_that_comes_back_in_time_stops_nothing(hive: Hive) -> None:
    runner, spec = RunnerCapacity(drivers=("process",)), AgentSpec(driver="process")
    await hive.kernel.agents.spawn(hive.caller(), [NewAgent(id="a", spec=spec)])
    first = await hive.worker(hello=Hello(runner=runner))
    await hive.advance(1)
    await first.say(AgentReport("a", "READY"))
    await first.lose()
    again = await hive.worker(
        hello=Hello(session_id=first.session_id, runner=runner, agents=(HostedAgent(agent_id="a", spec=None),))
    )
    assert not any(isinstance(told, Stop) for told in again.link.told)
