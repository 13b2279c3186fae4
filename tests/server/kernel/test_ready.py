"""The ready queue: priority first, then fairness by weight, then age."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

from agenthive_server.kernel.assign import Requirement
from agenthive_server.kernel.ready import FairLevel, ReadyQueue
from agenthive_server.kernel.records import Key
from agenthive_server.kernel.tasks import Task, TaskSpec, TaskState
from hypothesis import given
from hypothesis import strategies as st


def _task(task_id: str, *, queue_time: float = 0.0, **spec: object) -> Task:
    made = TaskSpec(**{"type": "work", **spec})  # type: ignore[arg-type]  # tests write fields by name
    return Task(namespace="n", id=task_id, spec=made, state=TaskState.QUEUED, queue_time=queue_time)


def _drain(queue: ReadyQueue) -> list[str]:
    taken: list[str] = []
    while (key := queue.take()) is not None:
        taken.append(key[1])
    return taken


def test_the_better_priority_goes_first_and_the_older_task_within_it() -> None:
    queue = ReadyQueue(Requirement("n"))
    for name, priority in (("c", 3), ("a", 1), ("d", 3), ("b", 1)):
        queue.add(_task(name, priority=priority))
    assert _drain(queue) == ["a", "b", "c", "d"]


def test_a_task_that_comes_back_keeps_the_place_of_its_age() -> None:
    queue = ReadyQueue(Requirement("n"))
    for name, time in (("b", 2.0), ("c", 3.0), ("a", 1.0)):
        queue.add(_task(name, queue_time=time))
    assert _drain(queue) == ["a", "b", "c"]


def test_a_key_that_waits_again_right_after_its_last_task_has_one_turn_only() -> None:
    level = FairLevel()
    for n in range(6):
        level.add(("n", f"b{n}"), "b", 1.0, 0.0, n)
    level.add(("n", "a0"), "a", 1.0, 0.0, 10)
    served: list[str] = []
    for n in range(6):
        key = level.take()
        assert key is not None
        served.append(key[1][0])
        if key[1].startswith("a"):
            level.add(("n", f"a{n + 1}"), "a", 1.0, 0.0, 20 + n)
    assert Counter(served) == {"a": 3, "b": 3}
    while level.take() is not None:
        pass
    assert len(level) == 0


def test_a_withdrawn_task_is_passed_over() -> None:
    queue = ReadyQueue(Requirement("n"))
    for name in "abc":
        queue.add(_task(name))
    queue.discard(("n", "a"))
    queue.discard(("n", "unknown"))
    assert len(queue) == 2
    assert _drain(queue) == ["b", "c"]


def test_a_task_withdrawn_and_added_again_is_served_once() -> None:
    queue = ReadyQueue(Requirement("n"))
    queue.add(_task("a"))
    queue.discard(("n", "a"))
    queue.add(_task("a"))
    assert _drain(queue) == ["a"]


def test_the_position_counts_those_of_equal_or_better_priority() -> None:
    queue = ReadyQueue(Requirement("n"))
    for name, priority in (("a", 1), ("b", 3), ("c", 5)):
        queue.add(_task(name, priority=priority))
    assert [queue.ahead_of(("n", name)) for name in "abcx"] == [0, 1, 2, -1]


def test_a_key_that_was_away_does_not_catch_up() -> None:
    level = FairLevel()
    for n in range(50):
        level.add(("n", f"a{n}"), "a", 1.0, 0.0, n)
    for _ in range(20):
        level.take()
    for n in range(10):
        level.add(("n", f"b{n}"), "b", 1.0, 0.0, 100 + n)
    served = Counter(str(level.take())[7] for _ in range(10))
    assert abs(served["a"] - served["b"]) <= 1


@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0, 5.0]), min_size=2, max_size=5),
    taken=st.integers(min_value=1, max_value=120),
)
def test_while_all_wait_each_key_is_served_in_proportion_to_its_weight(weights: list[float], taken: int) -> None:
    level = FairLevel()
    arrival = 0
    for n in range(200):
        for index, weight in enumerate(weights):
            arrival += 1
            level.add(("n", f"{index}/{n}"), str(index), weight, 0.0, arrival)
    served = [0] * len(weights)
    for _ in range(taken):
        key = level.take()
        assert key is not None
        served[int(key[1].split("/")[0])] += 1
    # Start-time fair queueing: by its own virtual time no key is more than one task ahead of or behind another.
    for one, (count, weight) in enumerate(zip(served, weights, strict=True)):
        for other, (count2, weight2) in enumerate(zip(served, weights, strict=True)):
            assert one == other or abs(count / weight - count2 / weight2) <= 1 / weight + 1 / weight2


@given(seed=st.integers(min_value=0, max_value=2**32))
def test_every_task_is_served_exactly_once_and_in_age_within_its_key(seed: int) -> None:
    dice = random.Random(seed)
    level = FairLevel()
    waiting: set[Key] = set()
    served: list[Key] = []
    arrival = 0
    for _ in range(dice.randint(5, 150)):
        step = dice.random()
        if step < 0.5:
            arrival += 1
            key = ("n", f"{dice.choice('abc')}{arrival:04}")
            level.add(key, key[1][0], dice.choice([0.5, 1.0, 4.0]), float(arrival), arrival)
            waiting.add(key)
        elif step < 0.6 and waiting:
            key = dice.choice(sorted(waiting))
            level.discard(key)
            waiting.discard(key)
        else:
            head, taken = level.head(), level.take()
            assert (taken is None) == (not waiting)
            if taken is not None:
                assert head is not None
                assert head[3] == taken
                waiting.discard(taken)
                served.append(taken)
        assert len(level) == len(waiting)
    while (taken := level.take()) is not None:
        waiting.discard(taken)
        served.append(taken)
    assert not waiting
    assert len(served) == len(set(served))
    for name in "abc":
        assert all(one < other for one, other in pairwise(k for k in served if k[1][0] == name))
