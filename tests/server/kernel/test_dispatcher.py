"""The dispatcher: waves of assignments, also when a commit fails."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pytest
from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.errors import Overloaded, StoreUnavailable
from agenthive_server.kernel.events import EventType
from agenthive_server.kernel.pending import Pending
from agenthive_server.kernel.records import Kind
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import TaskSpec, TaskState
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.testing.faults import FaultyStore, no_fault
from agenthive_server.testing.hive import open_hive


async def test_one_wave_may_empty_a_queue() -> None:
    async with open_hive() as hive:
        for name in ("t1", "t2", "t3"):
            await hive.delegate(name)
        worker = await hive.worker("a", slots=3)
        await hive.settle()
        assert [a.task.id for a in worker.assignments()] == ["t1", "t2", "t3"]
        await hive.delegate("t4")
        await worker.finish(worker.assignments()[0])
        await hive.settle()
        assert (await hive.task("t4")).state is TaskState.ASSIGNED


async def test_more_tasks_than_a_wave_holds_are_all_assigned() -> None:
    async with open_hive() as hive:
        await hive.kernel.tasks.delegate(
            hive.caller(), [NewTask(id=f"t{n:03}", spec=TaskSpec(type="work")) for n in range(300)]
        )
        worker = await hive.worker("a", slots=300)
        await hive.settle()
        assert [a.task.id for a in worker.assignments()] == [f"t{n:03}" for n in range(300)]
        assert hive.kernel.dispatcher.assigned == 300


async def test_tasks_of_a_wave_that_failed_keep_their_age() -> None:
    faulty: list[FaultyStore] = []

    def store(clock: object) -> FaultyStore:
        faulty.append(FaultyStore(MemoryStore(clock)))  # type: ignore[arg-type]  # the hive passes its clock
        return faulty[0]

    async def down(group: Sequence[ChangeSet]) -> None:
        if any(event.type is EventType.TASK_ASSIGNED for changes in group for event in changes.events):
            raise StoreUnavailable("down")

    async with open_hive(store=store) as hive:
        worker = await hive.worker("a", slots=1)
        await hive.delegate("busy")
        for name in ("old", "young"):
            await hive.advance(1.0)
            await hive.delegate(name)
        faulty[0].before = down
        with suppress(StoreUnavailable):
            # The result may stand in the same group as the wave.
            await worker.finish(worker.assignments()[0])
        await hive.settle()
        assert hive.kernel.dispatcher.failing == "down"
        faulty[0].before = no_fault
        await worker.finish(worker.assignments()[0])
        await hive.advance(1.0)
        assert [a.task.id for a in worker.assignments()] == ["busy", "old"]
        assert hive.kernel.dispatcher.failing == ""


async def test_a_wave_that_collides_while_the_store_cannot_be_read_is_tried_again() -> None:
    stores: list[MemoryStore] = []
    faulty: list[FaultyStore] = []

    def store(clock: object) -> FaultyStore:
        stores.append(MemoryStore(clock))  # type: ignore[arg-type]  # the hive passes its clock
        faulty.append(FaultyStore(stores[0]))
        return faulty[0]

    async def down() -> None:
        raise StoreUnavailable("down")

    async def changed_elsewhere(group: Sequence[ChangeSet]) -> None:
        if any(event.type is EventType.TASK_ASSIGNED for changes in group for event in changes.events):
            faulty[0].before, faulty[0].reading = no_fault, down
            tasks = stores[0]._tables[Kind.TASK]
            for key, task in tasks.items():
                tasks[key] = task.evolve(revision=task.revision + 1)

    async with open_hive(store=store) as hive:
        await hive.delegate("t")
        faulty[0].before = changed_elsewhere
        worker = await hive.worker("a")
        await hive.settle()
        assert hive.kernel.dispatcher.failing == "down"
        faulty[0].reading = None
        await hive.advance(1.0)
        assert [a.task.id for a in worker.assignments()] == ["t"]
        assert hive.kernel.dispatcher.failing == ""


async def test_after_an_overload_every_queue_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_hive() as hive:
        worker = await hive.worker("a", role="r", capabilities=("c",))
        await hive.delegate("busy")
        await hive.delegate("x", role="r")
        await hive.delegate("y", required_capabilities=("c",), priority=5)
        submit = hive.kernel.decisions._submit

        def full(changes: ChangeSet) -> Pending:
            if any(event.type is EventType.TASK_ASSIGNED for event in changes.events):
                raise Overloaded("full")
            return submit(changes)

        with monkeypatch.context() as patch:
            patch.setattr(hive.kernel.decisions, "_submit", full)
            await worker.finish(worker.assignments()[0])
            await hive.settle()
            assert hive.kernel.dispatcher.failing == "full"
            pool = hive.kernel.pool
            assert not any(map(pool.closed, pool.queues.values()))
            assert len(pool.queues) == 2
        await hive.advance(0.5)
        assert [a.task.id for a in worker.assignments()] == ["busy", "x"]
