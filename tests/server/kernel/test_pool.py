"""The pool: the best free agent is found for every strategy, nothing that fits is overlooked, and it stays cheap."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter

import pytest
from agenthive_server.kernel.agents import AgentSpec
from agenthive_server.kernel.assign import Candidate, Requirement, exclusions, rank, requirement_of
from agenthive_server.kernel.line import PATIENCE, Order
from agenthive_server.kernel.pool import Pool
from agenthive_server.kernel.records import Key
from agenthive_server.kernel.reserving import Reserving
from agenthive_server.kernel.tasks import Strategy, Task, TaskSpec, TaskState
from hypothesis import given, settings
from hypothesis import strategies as st

NAMESPACE = "n"
CAPABILITIES = ("a", "b", "c")
ROLES = ("", "coder", "tester")


def _task(task_id: str, **spec: object) -> Task:
    made = TaskSpec(**{"type": "work", **spec})  # type: ignore[arg-type]  # tests write fields by name
    return Task(namespace=NAMESPACE, id=task_id, spec=made, state=TaskState.QUEUED)


def _agent(pool: Pool, name: str, **spec: object) -> Key:
    key = (NAMESPACE, name)
    pool.put_agent(key, AgentSpec(**spec), "s", "")  # type: ignore[arg-type]  # tests write fields by name
    return key


def _choose(pool: Pool, **spec: object) -> str:
    task = _task("t", **spec)
    found = pool.choose(requirement_of(task, 0.0), task.spec)
    return found.key[1] if found else ""


def test_capability_first_spares_the_agent_that_can_do_more() -> None:
    pool = Pool()
    _agent(pool, "all", capabilities=("a", "b", "c"))
    _agent(pool, "one", capabilities=("a",))
    assert _choose(pool, required_capabilities=("a",)) == "one"
    assert _choose(pool, required_capabilities=("a", "b")) == "all"
    assert _choose(pool, required_capabilities=("x",)) == ""


def test_load_balanced_takes_the_emptiest_agent() -> None:
    pool = Pool()
    pool.use(_agent(pool, "half", slots=4), 2)
    pool.use(_agent(pool, "quarter", slots=4), 1)
    assert _choose(pool, strategy=Strategy.LOAD_BALANCED) == "quarter"


def test_priority_aware_packs_ordinary_tasks_and_spreads_urgent_ones() -> None:
    pool = Pool()
    pool.use(_agent(pool, "half", slots=4), 2)
    _agent(pool, "empty", slots=4)
    assert _choose(pool, strategy=Strategy.PRIORITY_AWARE, priority=3) == "half"
    assert _choose(pool, strategy=Strategy.PRIORITY_AWARE, priority=1) == "empty"


def test_a_pin_beats_every_strategy_and_waits_for_its_agent() -> None:
    pool = Pool()
    pool.use(_agent(pool, "mine"), 1)
    _agent(pool, "other")
    assert _choose(pool, agent_id="mine") == ""
    pool.use((NAMESPACE, "mine"), -1)
    assert _choose(pool, agent_id="mine") == "mine"


def test_affinity_leads_back_to_the_agent_that_had_the_last_one() -> None:
    pool = Pool()
    _agent(pool, "a")
    key = _agent(pool, "b")
    task = _task("t", affinity_key="chat")
    pool.assigned(task, key)
    assert _choose(pool, affinity_key="chat") == "b"
    pool.use(key, 1)
    assert _choose(pool, affinity_key="chat") == "a"


def test_an_avoided_agent_is_passed_over() -> None:
    pool = Pool()
    _agent(pool, "a")
    task = _task("t").evolve(avoid=(("a", 10.0),))
    assert pool.choose(requirement_of(task, 5.0), task.spec) is None
    assert pool.choose(requirement_of(task, 10.0), task.spec) is not None


def test_a_scoring_hook_decides_among_the_eligible() -> None:
    pool = Pool()
    for name in "abc":
        _agent(pool, name)
    pool.scorers = (lambda spec, agent: 1.0 if agent.key[1] == "c" else 0.0,)
    assert _choose(pool) == "c"


@pytest.mark.parametrize("strategy", list(Strategy))
def test_round_robin_goes_round_within_one_change_set(strategy: Strategy) -> None:
    pool = Pool()
    for name in "abc":
        _agent(pool, name, slots=10)
    order = ""
    with Reserving(pool, 8) as taken:
        for _ in range(9):
            name = _choose(pool, strategy=strategy, priority=1)
            order += name
            taken.take(pool.agents[NAMESPACE, name])
    assert all(agent.used == 0 for agent in pool.agents.values())
    assert Counter(order) == {"a": 3, "b": 3, "c": 3}
    assert order == "abcabcabc"


def test_the_weighted_strategy_shares_in_proportion() -> None:
    pool = Pool()
    _agent(pool, "one", slots=1000, weight=1.0)
    _agent(pool, "three", slots=1000, weight=3.0)
    served: Counter[str] = Counter()
    for _ in range(80):
        name = _choose(pool, strategy=Strategy.WEIGHTED)
        served[name] += 1
        pool.use((NAMESPACE, name), 1)
    assert abs(served["three"] - 60) <= 1


def test_an_agent_that_leaves_its_group_is_found_in_its_new_one() -> None:
    pool = Pool()
    _agent(pool, "a", capabilities=("a",))
    _agent(pool, "a", capabilities=("b",))
    assert _choose(pool, required_capabilities=("a",)) == ""
    assert _choose(pool, required_capabilities=("b",)) == "a"
    pool.remove_agent((NAMESPACE, "a"))
    assert not pool.groups
    assert _choose(pool) == ""


def test_turns_go_round_over_queues_with_different_requirements() -> None:
    pool = Pool()
    key = _agent(pool, "a", capabilities=("a", "b"))
    for n in range(100):
        pool.put_task(_task(f"old{n}", required_capabilities=("a",), fairness_key="old"), 0.0)
    for _ in range(50):
        assert _dispatch(pool) == key
        pool.use(key, -1)
    for n in range(20):
        pool.put_task(_task(f"new{n}", required_capabilities=("b",), fairness_key="new"), 0.0)
    before = pool.queued
    for _ in range(20):
        _dispatch(pool)
        pool.use(key, -1)
    left = Counter(name[1][:3] for name in pool._waiting)
    assert before - pool.queued == 20
    assert abs(left["old"] - 40) <= 1
    assert abs(left["new"] - 10) <= 1


def _dispatch(pool: Pool) -> Key | None:
    """Assign one task as the dispatcher does."""
    while (queue := pool.next_queue()) is not None:
        head = queue.head()
        assert head is not None
        task = _TASKS.get(head[1]) or _task(head[1][1])
        agent = pool.choose(queue.need, task.spec)
        if agent is None:
            pool.close(queue)
            continue
        queue.take()
        pool.remove_task(head[1])
        pool.use(agent.key, 1)
        return agent.key
    return None


_TASKS: dict[Key, Task] = {}


def _eligible(pool: Pool, need: Requirement) -> list[Candidate]:
    return [a for a in pool.agents.values() if not exclusions(need, a)]


def _random_spec(dice: random.Random) -> TaskSpec:
    return TaskSpec(
        type="work",
        required_capabilities=tuple(sorted(dice.sample(CAPABILITIES, dice.choice([0, 0, 1, 2])))),
        role=dice.choice(ROLES),
        agent_id=dice.choice(["", "", "", "", f"a{dice.randint(0, 9)}"]),
        priority=dice.randint(1, 5),
        fairness_key=dice.choice(["", "x", "y"]),
        fairness_weight=dice.choice([0.5, 1.0, 2.0]),
        strategy=dice.choice([*Strategy, None]),
    )


class _Random:
    """A pool under random use, with the tasks and leases it was told of kept beside it."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.pool = Pool()
        self.tasks: dict[Key, Task] = {}
        self.leases: list[Key] = []
        self.names = 0
        self.now = 0.0

    def step(self) -> None:
        acts = [self.agent, self.task, self.task, self.finish, self.withdraw, self.dispatch, self.dispatch, self.leave]
        self.dice.choice(acts)()

    def agent(self) -> None:
        spec = AgentSpec(
            capabilities=tuple(sorted(self.dice.sample(CAPABILITIES, self.dice.randint(0, 3)))),
            role=self.dice.choice(ROLES),
            slots=self.dice.choice([1, 1, 2, 5]),
            weight=self.dice.choice([1.0, 3.0]),
        )
        key = (NAMESPACE, f"a{self.dice.randint(0, 9)}")
        there = self.dice.random() < 0.8
        held = self.leases.count(key)
        self.pool.put_agent(key, spec, "s" if there else "", "" if there else "STATE", used=held)

    def leave(self) -> None:
        if self.pool.agents and self.dice.random() < 0.3:
            self.pool.remove_agent(self.dice.choice(sorted(self.pool.agents)))

    def task(self) -> None:
        self.names += 1
        avoid = ((f"a{self.dice.randint(0, 9)}", self.now + 5.0),) if self.dice.random() < 0.3 else ()
        task = Task(
            namespace=NAMESPACE, id=f"t{self.names}", spec=_random_spec(self.dice), state=TaskState.QUEUED, avoid=avoid
        )
        self.tasks[task.key] = task
        self.pool.put_task(task, self.now)

    def withdraw(self) -> None:
        if self.tasks:
            key = self.dice.choice(sorted(self.tasks))
            del self.tasks[key]
            self.pool.remove_task(key)

    def finish(self) -> None:
        self.now += 1.0
        for task in self.tasks.values():
            self.pool.put_task(task, self.now)
        if self.leases:
            key = self.leases.pop(self.dice.randrange(len(self.leases)))
            self.pool.use(key, -1)

    def dispatch(self) -> None:
        """One wave: several choices are made before they become leases, or come to nothing."""
        chosen: list[tuple[Task, Key]] = []
        with Reserving(self.pool, 8) as taken:
            for _ in range(self.dice.randint(1, 6)):
                queue = self.pool.next_queue()
                if queue is None:
                    break
                head = queue.head()
                assert head is not None
                task = self.tasks[head[1]]
                agent = self.pool.choose(queue.need, task.spec)
                self.check_choice(queue.need, task.spec, agent)
                if agent is None:
                    self.pool.close(queue)
                    continue
                self.check_turn(head[0])
                queue.take()
                chosen.append((task, agent.key))
                taken.take(agent)
        if self.dice.random() < 0.2:
            for task, _ in chosen:
                self.pool.remove_task(task.key)
                self.pool.put_task(task, self.now)
            self.pool.reopen()
            return
        for task, agent_key in chosen:
            del self.tasks[task.key]
            self.pool.remove_task(task.key)
            self.pool.use(agent_key, 1)
            self.leases.append(agent_key)

    def check_turn(self, served: Order) -> None:
        """Nobody who could have been served had a better priority, or a fairness key whose turn it was before.

        The turns are exact among as many queues, and groups they wait for, as are put right in one go.
        """
        orders = {need: order for need, queue in self.pool.queues.items() if (order := queue.order()) is not None}
        rivals = sum(order[0] == served[0] for order in orders.values()) + len(self.pool.groups)
        exact = 2 if rivals <= 1 + PATIENCE else 1
        for need, order in orders.items():
            if order[:exact] < served[:exact]:
                assert not _eligible(self.pool, need)

    def check_choice(self, need: Requirement, spec: TaskSpec, agent: Candidate | None) -> None:
        eligible = _eligible(self.pool, need)
        if agent is None:
            assert not eligible
            return
        assert agent in eligible
        if need.agent_id:
            return
        strategy = spec.strategy or self.pool.default_strategy
        best = min(rank(strategy, need, spec.priority, a) for a in eligible)
        assert rank(strategy, need, spec.priority, agent) == best

    def check(self) -> None:
        pool = self.pool
        assert {key for queue in pool.queues.values() for level in queue._levels.values() for key in level.keys()} == (  # noqa: SIM118 - not a dict
            set(self.tasks)
        )
        assert set(pool.queues) == {requirement_of(task, self.now) for task in self.tasks.values()}
        for need, queue in pool.queues.items():
            assert not (pool.closed(queue) and _eligible(pool, need)), f"{need} is closed although an agent is free"
        for key, agent in pool.agents.items():
            assert agent.used == self.leases.count(key)
        assert {agent for group in pool.groups.values() for agent in group.members} == set(pool.agents)


@given(seed=st.integers(min_value=0, max_value=2**32))
@settings(deadline=None)
def test_the_agent_chosen_has_the_best_rank_and_no_closed_queue_has_an_agent_free(seed: int) -> None:
    world = _Random(seed)
    for _ in range(120):
        world.step()
        world.check()


@pytest.mark.parametrize("strategy", list(Strategy))
def test_finding_an_agent_costs_no_more_than_the_logarithm_of_their_number(
    strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Finding the best passes an entry that has become stale (two comparisons a level) and adds one (at most one a
    # level).
    for count in (64, 512, 4096):
        assert _comparisons(count, strategy, monkeypatch) <= 2 * math.log2(count) + 2


class _Counted(tuple[object, ...]):
    """A heap entry that counts how often it is compared."""

    __slots__ = ()
    seen = 0

    def __lt__(self, other: object) -> bool:
        _Counted.seen += 1
        return tuple.__lt__(self, other)  # type: ignore[operator]  # entries are only compared with entries


def _comparisons(agents: int, strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the comparisons in heaps for one task assigned and one finished, with so many agents in one group."""
    pool = Pool()
    push, replace = heapq.heappush, heapq.heapreplace
    with monkeypatch.context() as patch:
        patch.setattr(heapq, "heappush", lambda heap, entry: push(heap, _Counted(entry)))
        patch.setattr(heapq, "heapreplace", lambda heap, entry: replace(heap, _Counted(entry)))
        for n in range(agents):
            _agent(pool, f"a{n}", slots=2)
        dice = random.Random(7)
        held: list[Key] = []
        for n in range(2 * agents):
            pool.put_task(_task(f"t{n}", strategy=strategy), 0.0)
            key = _dispatch_as(pool, strategy)
            if key is not None:
                held.append(key)
            if held and len(held) > agents // 2:
                pool.use(held.pop(dice.randrange(len(held))), -1)
        _Counted.seen = 0
        rounds = 500
        for n in range(rounds):
            pool.put_task(_task(f"u{n}", strategy=strategy), 0.0)
            key = _dispatch_as(pool, strategy)
            assert key is not None
            pool.use(key, -1)
    return _Counted.seen / rounds


def _dispatch_as(pool: Pool, strategy: Strategy) -> Key | None:
    queue = pool.next_queue()
    if queue is None:
        return None
    head = queue.head()
    assert head is not None
    agent = pool.choose(queue.need, TaskSpec(type="work", strategy=strategy))
    assert agent is not None
    queue.take()
    pool.remove_task(head[1])
    pool.use(agent.key, 1)
    return agent.key
