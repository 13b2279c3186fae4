"""Slots taken by a decision under way: nobody else is given them, and when it comes to nothing they are free again."""

from __future__ import annotations

import random

import pytest
from agenthive_server.kernel.agents import AgentSpec
from agenthive_server.kernel.assign import requirement, requirement_of
from agenthive_server.kernel.pool import Pool
from agenthive_server.kernel.reserving import Reserving
from agenthive_server.kernel.tasks import Strategy, Task, TaskSpec, TaskState

KEY = ("n", "a")


def _free(pool: Pool) -> bool:
    task = Task(namespace="n", id="t", spec=TaskSpec(type="work"), state=TaskState.QUEUED)
    return pool.choose(requirement_of(task, 0.0), task.spec) is not None


def test_slots_are_taken_while_the_decision_is_made_and_free_when_it_fails() -> None:
    pool = Pool()
    pool.put_agent(KEY, AgentSpec(slots=2, weight=2.0), "s", "")
    agent = pool.agents[KEY]
    before = (agent.used, agent.last_assigned, agent.share)

    def decide() -> None:
        with Reserving(pool, 8) as taken:
            assert KEY not in taken
            taken.take(agent)
            assert KEY in taken
            assert _free(pool)
            taken.take(agent)
            assert not _free(pool)
            raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        decide()
    assert (agent.used, agent.last_assigned, agent.share) == before
    assert _free(pool)


def _pool(dice: random.Random) -> Pool:
    pool = Pool()
    for number in range(dice.randrange(1, 6)):
        capabilities = ("go",) if dice.random() < 0.5 else ()
        spec = AgentSpec(slots=dice.randrange(1, 5), capabilities=capabilities, role=dice.choice(("", "coder")))
        pool.put_agent(("n", f"a{number}"), spec, "s" if dice.random() < 0.9 else "", "STATE")
    return pool


def _task(dice: random.Random, number: int) -> Task:
    spec = TaskSpec(
        type="work",
        required_capabilities=("go",) if dice.random() < 0.3 else (),
        role="coder" if dice.random() < 0.2 else "",
        agent_id="a1" if dice.random() < 0.1 else "",
        affinity_key="k" if dice.random() < 0.2 else "",
        priority=dice.randrange(1, 5),
        strategy=dice.choice((None, *Strategy)),
    )
    avoid = (("a0", 9.0),) if dice.random() < 0.1 else ()
    return Task(namespace="n", id=f"t{number}", spec=spec, state=TaskState.QUEUED, avoid=avoid)


@pytest.mark.parametrize("seed", range(200))
def test_tasks_get_the_agents_they_would_get_one_by_one(seed: int) -> None:
    told, pool = _pool(random.Random(seed)), _pool(random.Random(seed))
    dice = random.Random(-seed - 1)
    before = {key: (agent.used, agent.last_assigned, agent.share) for key, agent in pool.agents.items()}
    free = {group.key: set(group.free) for group in pool.groups.values()}
    once = Task(namespace="n", id="once", spec=TaskSpec(type="work", affinity_key="k"), state=TaskState.QUEUED)
    for each in (told, pool):
        each.assigned(once, ("n", "a0"))
    same = _task(dice, 0)
    with Reserving(pool, 25) as taken:
        for number in range(25):
            task = same if dice.random() < 0.5 else _task(dice, number)
            need = requirement("n", task.spec) if not task.avoid else requirement_of(task, 0.0)
            expected = told.choose(need, task.spec)
            agent = taken.choose(need, task.spec)
            assert (agent and agent.key) == (expected and expected.key)
            if agent is not None:
                assert agent.free > 0
                told.use(agent.key, 1)
                taken.take(agent)
    assert {key: (agent.used, agent.last_assigned, agent.share) for key, agent in pool.agents.items()} == before
    assert {group.key: set(group.free) for group in pool.groups.values()} == free
