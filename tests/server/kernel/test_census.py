"""What is counted along is what counting would find, whatever is changed and taken back."""

from __future__ import annotations

from collections import Counter

from agenthive_server.kernel.agents import Agent
from agenthive_server.kernel.census import Census
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.events import EventType
from agenthive_server.kernel.session_items import Accept
from agenthive_server.kernel.tasks import Task, TaskState
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.testing.faults import FaultyStore
from agenthive_server.testing.hive import Hive, open_hive


def take(hive: Hive) -> Census:
    """A census that begins with what there is."""
    census = Census(hive.kernel.memory, hive.kernel.agents.shown, hive.clock)
    hive.kernel.observers.append(census.observe)
    return census


def counted(hive: Hive) -> Counter[TaskState]:
    return Counter(task.state for task in hive.kernel.memory.all(Task) if not task.terminal)


async def test_open_tasks_are_counted_by_state() -> None:
    async with open_hive() as hive:
        census = take(hive)
        await hive.delegate("a")
        await hive.delegate("b")
        await hive.delegate("blocked", depends_on=("a",))
        worker = await hive.worker("w")
        await hive.settle()
        assert (
            +census.tasks
            == counted(hive)
            == {
                TaskState.QUEUED: 1,
                TaskState.ASSIGNED: 1,
                TaskState.BLOCKED: 1,
            }
        )
        (assign,) = worker.assignments()
        await worker.say(Accept(assign.task.id, assign.task.lease_epoch))
        assert census.tasks[TaskState.RUNNING] == 1
        await worker.finish(assign)
        await hive.settle()
        assert +census.tasks == counted(hive)
        assert census.events[EventType.TASK_DELEGATED] == 3
        assert census.events[EventType.TASK_SUCCEEDED] == 1


async def test_what_could_not_be_committed_is_not_counted() -> None:
    async with open_hive(store=lambda clock: FaultyStore(MemoryStore(clock))) as hive:
        census = take(hive)
        await hive.delegate("a")

        async def fail(group: object) -> None:
            raise StoreUnavailable("as arranged")

        hive.store.before = fail  # type: ignore[attr-defined]  # a faulty store
        for call in (hive.delegate("b"), hive.kernel.tasks.cancel(hive.caller(), "a", "no more")):
            try:
                await call
            except StoreUnavailable:
                continue
        assert +census.tasks == counted(hive) == {TaskState.QUEUED: 1}
        assert census.events[EventType.TASK_DELEGATED] == 1


async def test_agents_are_counted_as_callers_see_them_at_most_once_a_second() -> None:
    async with open_hive() as hive:
        census = take(hive)
        looks = 0

        def shown(agent: Agent) -> object:
            nonlocal looks
            looks += 1
            return hive.kernel.agents.shown(agent)

        census._shown = shown  # type: ignore[assignment]  # counts the looks
        await hive.worker("a")
        await hive.worker("b")
        assert census.agents() == {"IDLE": 2}
        await hive.delegate("t")
        assert census.agents() == {"IDLE": 2}
        assert looks == 2
        await hive.advance(1.0)
        assert census.agents() == {"IDLE": 1, "BUSY": 1}
