"""Agents driven to the wanted state: placed on runners, started again, stopped, put to sleep and woken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from agenthive_server.kernel.agent_verbs import NewAgent
from agenthive_server.kernel.agents import Agent, AgentSpec, AgentState, RestartMode, RestartPolicy
from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.errors import Conflict, Exists, Overloaded, Refused
from agenthive_server.kernel.events import EventType
from agenthive_server.kernel.session_items import Accept, AgentReport, HandBack, Hello, HostedAgent, Start, Stop
from agenthive_server.kernel.sessions import RunnerCapacity
from agenthive_server.kernel.tasks import TaskState
from agenthive_server.testing.hive import NAMESPACE, Hive, PlayedWorker, open_hive

LOCAL = AgentSpec(driver="process", start_timeout=20.0)


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


async def _runner(hive: Hive, *hosted: str, session_id: str = "", **capacity: object) -> PlayedWorker:
    labels = capacity.pop("labels", {})
    made = RunnerCapacity(**{"drivers": ("process",), **capacity})  # type: ignore[arg-type]  # fields by name
    agents = tuple(HostedAgent(agent_id=name) for name in hosted)
    hello = Hello(session_id=session_id, agents=agents, runner=made, labels=labels)  # type: ignore[arg-type]  # see above
    worker = await hive.worker(hello=hello)
    await hive.advance(0.5)
    return worker


async def _spawn(hive: Hive, name: str, spec: AgentSpec = LOCAL) -> None:
    await hive.kernel.agents.spawn(hive.caller(), [NewAgent(id=name, spec=spec)])
    await hive.advance(0.5)


async def _agent(hive: Hive, name: str = "a") -> Agent:
    return await hive.kernel.agents.get(NAMESPACE, name)


def _started(runner: PlayedWorker) -> list[tuple[str, bool]]:
    return [(told.agent.id, told.wake) for told in runner.link.told if isinstance(told, Start)]


def _stops(runner: PlayedWorker) -> list[Stop]:
    return [told for told in runner.link.told if isinstance(told, Stop)]


async def _ready(hive: Hive, name: str = "a", spec: AgentSpec = LOCAL) -> PlayedWorker:
    runner = await _runner(hive)
    await _spawn(hive, name, spec)
    assert await runner.say(AgentReport(name, "READY")) == []
    return runner


# Placement ----------------------------------------------------------------------------------------------------------


async def test_an_agent_waits_for_a_runner_with_its_driver_and_labels(hive: Hive) -> None:
    await _spawn(hive, "a", replace(LOCAL, runner_labels={"gpu": "yes"}))
    other = await _runner(hive, drivers=("script",), labels={"gpu": "yes"})
    plain = await _runner(hive)
    fitting = await _runner(hive, labels={"gpu": "yes", "zone": "x"})
    assert [_started(r) for r in (other, plain, fitting)] == [[], [], [("a", False)]]
    assert (await _agent(hive)).runner_session_id == fitting.session_id


async def test_agents_go_to_the_runner_with_the_fewest_and_never_beyond_its_bound(hive: Hive) -> None:
    small, large = await _runner(hive, maximum_agents=1), await _runner(hive)
    specs = [NewAgent(id=f"a{n}", spec=LOCAL) for n in range(5)]
    await hive.kernel.agents.spawn(hive.caller(), specs)
    await hive.advance(0.5)
    assert (len(_started(small)), len(_started(large))) == (1, 4)


async def test_an_agent_that_found_no_place_gets_the_next_that_comes_free(hive: Hive) -> None:
    runner = await _runner(hive, maximum_agents=1)
    await _spawn(hive, "a")
    await _spawn(hive, "b")
    assert _started(runner) == [("a", False)]
    await runner.say(AgentReport("a", "READY"))
    await hive.kernel.agents.shutdown(hive.caller(), "a", "enough", 0.0)
    await hive.settle()
    await runner.say(AgentReport("a", "STOPPED"))
    await hive.advance(0.5)
    assert _started(runner) == [("a", False), ("b", False)]


async def test_a_draining_runner_is_given_nothing(hive: Hive) -> None:
    runner = await _runner(hive)
    await hive.kernel.sessions.drain(NAMESPACE, runner.session_id, runner.welcome.epoch)
    await _spawn(hive, "a")
    assert _started(runner) == []


async def test_a_start_is_told_again_when_the_runner_comes_back(hive: Hive) -> None:
    runner = await _runner(hive)
    await _spawn(hive, "a")
    await runner.lose()
    again = await _runner(hive, session_id=runner.session_id)
    assert _started(again) == [("a", False)]
    assert (await _agent(hive)).start_epoch == 1


async def test_an_agent_that_is_not_ready_in_time_is_stopped_and_started_again(hive: Hive) -> None:
    runner = await _runner(hive)
    await _spawn(hive, "a")
    await hive.advance(20.5)
    assert [(s.agent_id, s.reason) for s in _stops(runner)] == [("a", "not ready in time")]
    await hive.advance(1.5)
    agent = await _agent(hive)
    assert (agent.state, agent.start_epoch, len(agent.restarts)) == (AgentState.STARTING, 2, 1)
    assert _started(runner) == [("a", False)] * 2


async def test_the_agents_of_a_runner_that_leaves_start_elsewhere_uncounted(hive: Hive) -> None:
    runner = await _ready(hive)
    other = await _runner(hive)
    await hive.kernel.sessions.leave(NAMESPACE, runner.session_id, runner.welcome.epoch, "update")
    await hive.advance(0.5)
    agent = await _agent(hive)
    assert (agent.runner_session_id, agent.restarts) == (other.session_id, ())


async def test_the_agents_of_a_lost_runner_are_lost_and_start_elsewhere(hive: Hive) -> None:
    runner = await _ready(hive)
    other = await _runner(hive)
    await runner.lose()
    for _ in range(4):
        hive.kernel.sessions.heard(NAMESPACE, other.session_id, other.welcome.epoch)
        await hive.advance(9.0)
    agent = await _agent(hive)
    assert (agent.runner_session_id, len(agent.restarts)) == (other.session_id, 1)


# Restarts -----------------------------------------------------------------------------------------------------------


async def test_failures_are_followed_by_restarts_with_growing_waits_up_to_the_limit(hive: Hive) -> None:
    policy = RestartPolicy(initial_interval=2.0, backoff_coefficient=3.0, maximum_interval=10.0, maximum_restarts=3)
    runner = await _ready(hive, spec=replace(LOCAL, restart=policy))
    for wait in (2.0, 6.0, 10.0):
        await runner.say(AgentReport("a", "FAILED", "crashed", 1))
        agent = await _agent(hive)
        assert agent.state is AgentState.STARTING
        assert agent.next_start_time - hive.clock.now() == pytest.approx(wait)
        hive.kernel.sessions.heard(NAMESPACE, runner.session_id, runner.welcome.epoch)
        await hive.advance(wait + 0.5)
        await runner.say(AgentReport("a", "READY"))
    await runner.say(AgentReport("a", "FAILED", "crashed", 1))
    agent = await _agent(hive)
    assert (agent.state, agent.reason) == (AgentState.FAILED, "crashed; restarted too often")


async def test_restarts_outside_the_window_do_not_count(hive: Hive) -> None:
    policy = RestartPolicy(initial_interval=0.5, maximum_restarts=1, window=15.0)
    runner = await _ready(hive, spec=replace(LOCAL, restart=policy))
    for _ in range(3):
        await runner.say(AgentReport("a", "FAILED"))
        assert (await _agent(hive)).state is AgentState.STARTING
        await hive.advance(1.5)
        await runner.say(AgentReport("a", "READY"))
        hive.kernel.sessions.heard(NAMESPACE, runner.session_id, runner.welcome.epoch)
        await hive.advance(16.0)


@pytest.mark.parametrize(
    ("mode", "report", "state"),
    [
        (RestartMode.NEVER, "FAILED", AgentState.FAILED),
        (RestartMode.ON_FAILURE, "FAILED", AgentState.STARTING),
        (RestartMode.ON_FAILURE, "STOPPED", AgentState.STOPPED),
        (RestartMode.ALWAYS, "STOPPED", AgentState.STARTING),
    ],
)
async def test_the_policy_says_after_which_end_an_agent_starts_again(
    hive: Hive, mode: RestartMode, report: str, state: AgentState
) -> None:
    runner = await _ready(hive, spec=replace(LOCAL, restart=RestartPolicy(mode=mode)))
    await runner.say(AgentReport("a", report))
    assert (await _agent(hive)).state is state


async def test_an_agent_that_failed_gives_up_its_lease_as_lost(hive: Hive) -> None:
    runner = await _ready(hive)
    await hive.delegate("t")
    await runner.say(Accept("t", 1), AgentReport("a", "FAILED", "crashed", 9))
    await hive.settle()
    task = await hive.task("t")
    assert (task.state, task.lost_leases) == (TaskState.QUEUED, 1)
    failed = [e for e in await hive.store.read_events(0, 100) if e.type is EventType.AGENT_FAILED]
    assert failed[0].data["exit_code"] == 9


# Stop ---------------------------------------------------------------------------------------------------------------


async def test_a_stop_lets_held_tasks_finish_and_is_over_when_the_worker_says_so(hive: Hive) -> None:
    runner = await _ready(hive)
    await hive.delegate("t")
    await runner.say(Accept("t", 1))
    agent = await hive.kernel.agents.shutdown(hive.caller(), "a", "enough", 3.0)
    assert agent.state is AgentState.DRAINING
    await hive.settle()
    assert _stops(runner) == [Stop("a", 3.0, sleep=False, reason="enough")]
    assert (await hive.delegate("u")).state is TaskState.QUEUED
    await runner.say(HandBack("t", 1, b"half"), AgentReport("a", "STOPPED"))
    task = await hive.task("t")
    assert (task.state, task.lost_leases, task.attempts[0].counted) == (TaskState.QUEUED, 0, False)
    assert (await _agent(hive)).state is AgentState.STOPPED
    assert (await hive.kernel.agents.shutdown(hive.caller(), "a", "again", None)).state is AgentState.STOPPED


async def test_a_stop_nobody_confirms_is_over_after_the_ladder(hive: Hive) -> None:
    runner = await _ready(hive)
    await hive.kernel.agents.shutdown(hive.caller(), "a", "enough", 3.0)
    await hive.advance(17.0)
    assert (await _agent(hive)).state is AgentState.DRAINING
    await hive.advance(2.0)
    assert (await _agent(hive)).state is AgentState.STOPPED
    assert runner.link.error is None


async def test_a_late_report_of_sleep_does_not_stop_the_clock_of_a_stop(hive: Hive) -> None:
    runner = await _ready(hive)
    await hive.kernel.agents.sleep(hive.caller(), "a", "night")
    await hive.kernel.agents.shutdown(hive.caller(), "a", "enough", 3.0)
    await runner.say(AgentReport("a", "SLEEPING"))
    hive.kernel.sessions.heard(NAMESPACE, runner.session_id, runner.welcome.epoch)
    await hive.advance(19.0)
    assert (await _agent(hive)).state is AgentState.STOPPED


async def test_an_agent_not_started_yet_stops_at_once(hive: Hive) -> None:
    await _spawn(hive, "a")
    assert (await hive.kernel.agents.shutdown(hive.caller(), "a", "no", None)).state is AgentState.STOPPED


async def test_restart_stops_and_starts_again_uncounted(hive: Hive) -> None:
    runner = await _ready(hive)
    assert (await hive.kernel.agents.restart(hive.caller(), "a")).state is AgentState.DRAINING
    await hive.settle()
    await runner.say(AgentReport("a", "STOPPED"))
    await hive.advance(0.5)
    assert _started(runner) == [("a", False)] * 2
    agent = await _agent(hive)
    assert (agent.state, agent.restarts, agent.start_epoch) == (AgentState.STARTING, (), 2)


async def test_restart_brings_back_one_that_has_ended(hive: Hive) -> None:
    runner = await _ready(hive, spec=replace(LOCAL, restart=RestartPolicy(mode=RestartMode.NEVER)))
    await runner.say(AgentReport("a", "FAILED"))
    assert (await hive.kernel.agents.restart(hive.caller(), "a")).state is AgentState.STARTING
    await hive.advance(0.5)
    assert _started(runner) == [("a", False)] * 2


async def test_a_stopped_remote_agent_is_not_taken_back_by_a_hello(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.kernel.agents.shutdown(hive.caller(), "a", "enough", 0.0)
    await worker.say(AgentReport("a", "STOPPED"))
    await hive.worker("a")
    assert (await _agent(hive)).state is AgentState.STOPPED
    await hive.kernel.agents.restart(hive.caller(), "a")
    await hive.worker("a")
    assert (await _agent(hive)).state is AgentState.READY


# Sleep --------------------------------------------------------------------------------------------------------------


async def test_sleep_and_wake_go_to_the_runner(hive: Hive) -> None:
    runner = await _ready(hive)
    assert (await hive.kernel.agents.sleep(hive.caller(), "a", "night")).state is AgentState.SLEEPING
    await hive.settle()
    (stop,) = _stops(runner)
    assert stop.sleep
    await runner.say(AgentReport("a", "SLEEPING"))
    assert (await hive.delegate("t")).state is TaskState.QUEUED
    assert (await hive.kernel.agents.wake(hive.caller(), "a")).state is AgentState.WAKING
    await hive.settle()
    assert _started(runner) == [("a", False), ("a", True)]
    await runner.say(AgentReport("a", "READY"))
    await hive.settle()
    assert (await hive.task("t")).state is TaskState.ASSIGNED
    with pytest.raises(Refused):
        await hive.kernel.agents.wake(hive.caller(), "a")


async def test_a_sleeping_agent_outlives_its_runner_and_wakes_on_another(hive: Hive) -> None:
    runner = await _ready(hive)
    await hive.kernel.agents.sleep(hive.caller(), "a", "night")
    await hive.settle()
    await runner.say(AgentReport("a", "SLEEPING"))
    await runner.lose()
    await hive.advance(33.0)
    agent = await _agent(hive)
    assert (agent.state, agent.session_id, agent.runner_session_id) == (AgentState.SLEEPING, "", "")
    await hive.kernel.agents.wake(hive.caller(), "a")
    other = await _runner(hive)
    assert _started(other) == [("a", True)]


async def test_a_wake_is_told_again_when_the_runner_comes_back(hive: Hive) -> None:
    runner = await _ready(hive)
    await hive.kernel.agents.sleep(hive.caller(), "a", "night")
    await hive.settle()
    await runner.say(AgentReport("a", "SLEEPING"))
    await runner.lose()
    await hive.kernel.agents.wake(hive.caller(), "a")
    again = await _runner(hive, session_id=runner.session_id)
    assert _started(again) == [("a", True)]


async def test_a_sleep_nobody_confirms_is_taken_as_done(hive: Hive) -> None:
    await _ready(hive, spec=replace(LOCAL, stop_grace=1.0))
    await hive.kernel.agents.sleep(hive.caller(), "a", "night")
    await hive.advance(17.0)
    agent = await _agent(hive)
    assert (agent.state, agent.stop_deadline) == (AgentState.SLEEPING, 0.0)


# Records ------------------------------------------------------------------------------------------------------------


async def test_an_update_needs_the_current_revision(hive: Hive) -> None:
    await _spawn(hive, "a")
    agent = await _agent(hive)
    changed = await hive.kernel.agents.update(hive.caller(), "a", replace(LOCAL, slots=4), agent.revision)
    assert changed.spec.slots == 4
    with pytest.raises(Conflict) as caught:
        await hive.kernel.agents.update(hive.caller(), "a", LOCAL, agent.revision)
    assert caught.value.reason == "REVISION_MISMATCH"


async def test_spawning_is_all_or_none(hive: Hive) -> None:
    await _spawn(hive, "a")
    with pytest.raises(Exists):
        await hive.kernel.agents.spawn(hive.caller(), [NewAgent(id=name, spec=LOCAL) for name in ("b", "a")])
    with pytest.raises(Exception, match="no agent"):
        await _agent(hive, "b")
    both = [NewAgent(id=name, spec=LOCAL) for name in ("b", "a")]
    made = await hive.kernel.agents.spawn(hive.caller(), both, use_existing=True)
    assert [agent.id for agent in made] == ["b", "a"]


async def test_an_overload_is_waited_out(hive: Hive, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def full(changes: ChangeSet) -> None:
        nonlocal calls
        calls += 1
        raise Overloaded("full")

    await _spawn(hive, "a")
    runner = await _runner(hive, drivers=("other",))
    hello = Hello(session_id=runner.session_id, runner=RunnerCapacity(drivers=("process",)))
    again = await hive.worker(hello=hello)
    with monkeypatch.context() as patch:
        patch.setattr(hive.kernel.decisions, "_submit", full)
        await hive.advance(2.0)
    assert 0 < calls < 30
    await hive.advance(1.0)
    assert _started(again) == [("a", False)]
