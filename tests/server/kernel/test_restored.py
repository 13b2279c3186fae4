"""What becomes of the records of a hive that is restored: nothing of the lost one holds any more."""

from __future__ import annotations

import pytest
from agenthive_server.kernel.agents import Agent, AgentSpec, AgentState, RestartMode, RestartPolicy, Wanted
from agenthive_server.kernel.events import EventType
from agenthive_server.kernel.records import CursorRecord, RoleRecord
from agenthive_server.kernel.restored import EPOCHS, begin_anew, end_session, next_floor, release_role, void_lease
from agenthive_server.kernel.sessions import Session
from agenthive_server.kernel.tasks import Lease, Task, TaskSpec, TaskState

FLOOR = 1_000
LEASE = Lease(agent_id="a", session_id="s", epoch=3, assign_time=1.0, start_time=2.0, close_deadline=9.0)


def held(state: TaskState, **fields: object) -> Task:
    task = Task(namespace="n", id="t", spec=TaskSpec(type="w"), state=state, lease=LEASE, attempt=2, lease_epoch=3)
    return task.evolve(counted_attempts=1, **fields)


@pytest.mark.parametrize("state", [TaskState.ASSIGNED, TaskState.RUNNING, TaskState.INPUT_REQUIRED])
def test_a_held_task_goes_back_to_the_queue_and_its_attempt_is_not_counted(state: TaskState) -> None:
    step = void_lease(held(state), now=10.0)
    assert step is not None
    task, (fact,) = step
    assert (task.state, task.lease, task.counted_attempts, task.lost_leases) == (TaskState.QUEUED, None, 1, 0)
    assert (task.attempts[-1].number, task.attempts[-1].counted) == (2, False)
    assert (fact.type, fact.data["reason"]) == (EventType.TASK_REQUEUED, "RESTORED")


def test_a_task_that_was_being_canceled_is_canceled_and_a_paused_one_stays_paused() -> None:
    canceled = void_lease(held(TaskState.CANCEL_REQUESTED, reason="enough"), now=10.0)
    assert canceled is not None
    assert (canceled[0].state, canceled[0].reason) == (TaskState.CANCELED, "enough")
    paused = void_lease(held(TaskState.PAUSED, paused_from=TaskState.RUNNING), now=10.0)
    assert paused is not None
    assert (paused[0].state, paused[0].paused_from, paused[0].lease) == (TaskState.PAUSED, TaskState.QUEUED, None)


def test_a_task_that_nobody_holds_stays_as_it_is() -> None:
    assert void_lease(held(TaskState.QUEUED).evolve(lease=None), now=10.0) is None


def test_a_session_is_over() -> None:
    fact = end_session(Session(namespace="n", id="s", labels={"a": "b"}))
    assert (fact.type, fact.session_id, fact.labels) == (EventType.SESSION_ENDED, "s", {"a": "b"})


def agent(state: AgentState, driver: str = "process", mode: RestartMode = RestartMode.ON_FAILURE) -> Agent:
    spec = AgentSpec(driver=driver, restart=RestartPolicy(mode=mode))
    made = Agent(namespace="n", id="a", spec=spec, state=state, session_id="s", runner_session_id="r", start_epoch=7)
    if state is AgentState.DRAINING:
        made = made.evolve(wanted=Wanted.STOPPED, reason="as asked")
    return made.evolve(start_deadline=5.0, restarts=(9.0,))


@pytest.mark.parametrize(
    ("before", "after", "facts"),
    [
        (agent(AgentState.READY), AgentState.STARTING, [EventType.AGENT_RESTARTING]),
        (agent(AgentState.READY, mode=RestartMode.ALWAYS), AgentState.STARTING, [EventType.AGENT_RESTARTING]),
        (agent(AgentState.READY, mode=RestartMode.NEVER), AgentState.LOST, [EventType.AGENT_LOST]),
        (agent(AgentState.READY, driver="remote"), AgentState.LOST, [EventType.AGENT_LOST]),
        (agent(AgentState.WAKING, driver="remote"), AgentState.LOST, [EventType.AGENT_LOST]),
        (agent(AgentState.STARTING, mode=RestartMode.NEVER), AgentState.STARTING, []),
        (agent(AgentState.WAKING), AgentState.WAKING, []),
        (agent(AgentState.SLEEPING), AgentState.SLEEPING, []),
        (agent(AgentState.DRAINING), AgentState.STOPPED, [EventType.AGENT_STOPPED]),
        (agent(AgentState.FAILED), AgentState.FAILED, []),
    ],
)
def test_an_agent_begins_anew_by_its_policy(before: Agent, after: AgentState, facts: list[EventType]) -> None:
    changed, told = begin_anew(before, floor=FLOOR, now=10.0)
    assert changed.state is after
    assert [fact.type for fact in told] == facts
    assert (changed.session_id, changed.runner_session_id) == ("", "")
    assert changed.start_epoch >= FLOOR
    # No fault of the agent's: it is not one restart nearer to being given up.
    assert len(changed.restarts) == 1


def test_an_agent_that_was_to_start_again_does() -> None:
    changed, _ = begin_anew(agent(AgentState.DRAINING).evolve(start_again=True), floor=FLOOR, now=10.0)
    assert (changed.state, changed.wanted) == (AgentState.STARTING, Wanted.RUNNING)


def test_a_role_is_free() -> None:
    role = release_role(RoleRecord(namespace="", id="d", holder="x", epoch=4, expire_time=99.0), floor=FLOOR)
    assert (role.holder, role.epoch, role.expire_time) == ("", FLOOR, 0.0)


def test_epochs_go_on_beyond_all_earlier_ones_and_stay_exact_in_json() -> None:
    known = CursorRecord(namespace=EPOCHS[0], id=EPOCHS[1], sequence=5_000_000)
    assert next_floor(None, 2.0) == 2_000_000
    assert next_floor(known, 6.0) == 6_000_000
    # A clock that went back.
    assert next_floor(known, 1.0) == 5_000_001
    assert next_floor(None, 7_258_118_400.0) < 2**53
