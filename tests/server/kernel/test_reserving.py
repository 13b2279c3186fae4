"""Slots taken by a decision under way: nobody else is given them, and when it comes to nothing they are free again."""

from __future__ import annotations

import pytest
from agenthive_server.kernel.agents import AgentSpec
from agenthive_server.kernel.assign import requirement_of
from agenthive_server.kernel.pool import Pool
from agenthive_server.kernel.reserving import Reserving
from agenthive_server.kernel.tasks import Task, TaskSpec, TaskState

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
