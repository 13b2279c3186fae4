"""What a crowd shows: the cost of a task grows no faster than the logarithm of agents and tasks.

Counted are the steps of Python's machine, comparisons in heaps included: the same in every run, whatever else the
machine does. `server/deploy/CAPACITY.md` rests on it, and `make bench ARGS=scale` measures the same in seconds.
"""

from __future__ import annotations

import gc
import heapq
import math
import sys
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from agenthive_server.events.filter import EventFilter
from agenthive_server.events.frames import Framer
from agenthive_server.testing.crowd import Crowd, Shape, open_crowd

TOLERANCE = 1.15
"""The steps for a task depend a little on which tasks and agents a seed happens to make."""

SIZES = (312, 1_250, 5_000)
LARGE = 20_000
TASKS = 5
"""Tasks for each agent."""

ROUND = 64
ROUNDS = 4


class _Entry(tuple[object, ...]):
    """A heap's entry that is compared by Python code, so that a comparison is a number of steps."""

    __slots__ = ()

    def __lt__(self, other: object) -> bool:
        return tuple.__lt__(self, other)  # type: ignore[operator]  # entries are only compared with entries


@pytest.fixture(autouse=True)
def _uncollected() -> Iterator[None]:
    # Hundreds of thousands of records that stay: looking through them again and again is most of the time.
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(autouse=True)
def _visible_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    push, replace, heapify = heapq.heappush, heapq.heapreplace, heapq.heapify

    def _heapify(heap: list[Any]) -> None:
        heap[:] = [entry if isinstance(entry, int) else _Entry(entry) for entry in heap]
        heapify(heap)

    def wrapped(entry: Any) -> Any:
        return _Entry(entry) if isinstance(entry, tuple) else entry

    monkeypatch.setattr(heapq, "heappush", lambda heap, entry: push(heap, wrapped(entry)))
    monkeypatch.setattr(heapq, "heapreplace", lambda heap, entry: replace(heap, wrapped(entry)))
    monkeypatch.setattr(heapq, "heapify", _heapify)


async def _steps(act: Callable[[], Awaitable[object]]) -> int:
    """Return how many bytecodes are executed until something is done, by whoever is running meanwhile."""
    count = 0

    def tracer(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            count += 1
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        await act()
    finally:
        sys.settrace(before)
    return count


async def _costs(shape: Shape, agents: int, tasks: int) -> dict[str, float]:
    """Return the steps for one task: when agents have just come, when each waits for the next, and for its result."""
    following = result = 0
    async with open_crowd(shape) as crowd:
        crowd.add_agents(agents)
        crowd.add_tasks(tasks)
        # What is set up once for a kind of agents is not a task's cost.
        await crowd.assign(1)
        first = await _cost_of_assigning(crowd)
        while crowd.kernel.pool.open:
            await crowd.assign(agents)
        for _ in range(ROUNDS):
            result += await _steps(lambda: crowd.finish(ROUND))
            following += await _steps(lambda: crowd.assign(ROUND))
    return {"first": first, "next": following / (ROUND * ROUNDS), "result": result / (ROUND * ROUNDS)}


async def _cost_of_assigning(crowd: Crowd) -> float:
    before = crowd.kernel.dispatcher.assigned
    steps = await _steps(lambda: crowd.assign(ROUND))
    return steps / (crowd.kernel.dispatcher.assigned - before)


SHAPES: dict[str, Callable[[int], Shape]] = {
    "mixed": lambda agents: Shape(),
    "many fairness keys": lambda agents: Shape(fairness_keys=agents // 10),
    "many pinned tasks": lambda agents: Shape(pinned=0.1),
    "many agents avoided": lambda agents: Shape(avoiding=0.1),
    "many namespaces": lambda agents: Shape(namespaces=agents // 50),
}


def _faster_than_log(costs: dict[int, float]) -> list[int]:
    """Return the sizes at which a cost is beyond what the smallest one and the logarithm of the size say."""
    least = min(costs)
    return [n for n, cost in costs.items() if cost > TOLERANCE * costs[least] * math.log(n) / math.log(least)]


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_task_costs_no_more_than_the_logarithm_of_agents_and_tasks(shape: str) -> None:
    found = {n: await _costs(SHAPES[shape](n), n, TASKS * n) for n in SIZES}
    for part in ("first", "next", "result"):
        costs = {n: cost[part] for n, cost in found.items()}
        assert not _faster_than_log(costs), f"{part}: {costs}"


async def test_from_thousands_to_a_hundred_thousand_tasks_hardly_anything_is_added() -> None:
    shape = Shape()
    small, large = await _costs(shape, SIZES[-1], TASKS * SIZES[-1]), await _costs(shape, LARGE, TASKS * LARGE)
    for part in small:
        assert large[part] <= TOLERANCE * small[part], part


async def test_what_does_grow_with_the_number_is_noticed() -> None:
    # Kinds of agents are looked at one by one, by a task that any of them can do.
    found = {n: (await _costs(Shape(kinds=n // 10), n, TASKS * n))["first"] for n in SIZES}
    assert _faster_than_log(found) == [*SIZES[1:]]


async def test_the_log_costs_the_same_however_long_it_is() -> None:
    costs: list[float] = []
    async with open_crowd(Shape()) as crowd:
        crowd.add_agents(500)
        crowd.add_tasks(12_000)
        framer, everything = Framer(crowd.log), EventFilter()
        for events in (1_000, 10_000):
            while crowd.log.head < events:
                await crowd.assign(128)
                await crowd.finish(crowd.held)
            await crowd.assign(ROUND)
            after = crowd.log.head - ROUND

            async def read(after: int = after) -> None:
                assert await crowd.log.read(after, ROUND)
                assert await framer.frame(everything, after)

            costs.append(await _steps(read))
    assert costs[1] <= TOLERANCE * costs[0]
