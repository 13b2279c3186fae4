"""Agents of one kind: whose turn it is to get one of them, and who is passed over."""

from __future__ import annotations

from agenthive_server.kernel.agents import AgentSpec
from agenthive_server.kernel.assign import Candidate, Requirement
from agenthive_server.kernel.group import Group
from agenthive_server.kernel.ready import ReadyQueue
from agenthive_server.kernel.tasks import Task, TaskSpec, TaskState


def _group() -> Group:
    group = Group(("n", frozenset({"a"}), ""))
    agent = Candidate(("n", "agent"), AgentSpec(), frozenset({"a"}), session_id="s")
    group.members[agent.key] = agent
    group.changed(agent)
    return group


def _queue(need: Requirement, task_id: str, priority: int) -> ReadyQueue:
    queue = ReadyQueue(need)
    spec = TaskSpec(type="work", priority=priority)
    queue.add(Task(namespace="n", id=task_id, spec=spec, state=TaskState.QUEUED))
    return queue


def test_only_its_own_namespace_capabilities_and_role_fit() -> None:
    group = _group()
    assert group.fits(Requirement("n"))
    assert group.fits(Requirement("n", frozenset({"a"})))
    assert not group.fits(Requirement("n", frozenset({"a", "b"})))
    assert not group.fits(Requirement("n", role="r"))
    assert not group.fits(Requirement("other"))


def test_one_that_is_passed_over_comes_back_when_it_is_looked_at_again() -> None:
    group = _group()
    late, early = _queue(Requirement("n"), "late", 3), _queue(Requirement("n", frozenset({"a"})), "early", 1)
    group.ask(late)
    group.ask(early)
    assert group.line.first() is early
    group.pass_over(early)
    assert group.line.first() is late
    assert group.look_again()
    assert group.line.first() is early
    assert not group.look_again()


def test_nobody_is_next_while_no_member_is_free() -> None:
    group = _group()
    group.ask(_queue(Requirement("n"), "t", 3))
    assert group.order() is not None
    agent = group.members["n", "agent"]
    agent.used = 1
    group.changed(agent)
    assert group.order() is None
