"""Records in memory: latest and committed states, falling back, and what happens around failed commits."""

from __future__ import annotations

from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.memory import RECENT, Memory
from agenthive_server.kernel.pending import Pending
from agenthive_server.kernel.records import CursorRecord, Kind, Record, Ref
from agenthive_server.kernel.tasks import Task, TaskSpec, TaskState

REF: Ref = (Kind.CURSOR, ("n", "c"))


def _cursor(revision: int, sequence: int = 0) -> CursorRecord:
    return CursorRecord(namespace="n", id="c", revision=revision, sequence=sequence)


def _put(*records: Record) -> ChangeSet:
    return ChangeSet(puts={record.ref: record for record in records})


def _delete(record: Record) -> ChangeSet:
    return ChangeSet(deletes={record.ref: record})


def _task(state: TaskState, revision: int = 1, task_id: str = "t") -> Task:
    return Task(namespace="n", id=task_id, revision=revision, spec=TaskSpec(type="work"), state=state)


class _Flying:
    """A memory with change sets in flight."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.changes: list[tuple[Ref, Record | None, Record | None]] = []
        self.memory.listeners.append(self.changes.extend)
        self._outcome = Pending()

    def apply(self, changes: ChangeSet) -> ChangeSet:
        self.memory.apply(changes, self._outcome)
        return changes

    def states(self, ref: Ref = REF) -> tuple[Record | None, Record | None]:
        return self.memory.latest(ref), self.memory.committed(ref)


async def test_a_change_in_flight_is_latest_but_not_committed() -> None:
    flying = _Flying()
    one = flying.apply(_put(_cursor(1)))
    assert flying.states() == (_cursor(1), None)
    two = flying.apply(_put(_cursor(2)))
    flying.memory.settle(one)
    assert flying.states() == (_cursor(2), _cursor(1))
    flying.memory.settle(two)
    assert flying.states() == (_cursor(2), _cursor(2))
    assert flying.memory.flight(REF) is None


async def test_a_failed_change_takes_what_was_built_on_it_along() -> None:
    flying = _Flying()
    flying.memory.load([_cursor(1)])
    one, two = flying.apply(_put(_cursor(2))), flying.apply(_put(_cursor(3)))
    flying.memory.revert(one)
    assert flying.states() == (_cursor(1), _cursor(1))
    again = flying.apply(_put(_cursor(2, sequence=7)))
    flying.memory.revert(two)
    assert flying.states() == (_cursor(2, sequence=7), _cursor(1))
    flying.memory.settle(again)
    assert flying.states() == (_cursor(2, sequence=7), _cursor(2, sequence=7))


async def test_a_change_names_those_in_flight_it_was_decided_on() -> None:
    flying = _Flying()
    one = flying.apply(_put(_cursor(1)))
    two = flying.apply(_put(_cursor(2), _task(TaskState.QUEUED)))
    checking = flying.apply(ChangeSet(checks={REF: 2, _task(TaskState.QUEUED).ref: 1}))
    alone = flying.apply(_put(_task(TaskState.QUEUED, task_id="other")))
    assert [each.built_on for each in (one, two, checking, alone)] == [(), (one,), (two,), ()]
    assert not checking.undermined()
    two.void = True
    assert checking.undermined() == (REF, _task(TaskState.QUEUED).ref)
    flying.memory.revert(two)
    assert flying.apply(_put(_cursor(2))).built_on == (one,)


async def test_a_removal_that_failed_does_not_take_a_later_one_along() -> None:
    flying = _Flying()
    flying.memory.load([_cursor(1)])
    touch = flying.apply(_put(_cursor(2)))
    first = flying.apply(_delete(_cursor(2)))
    flying.memory.revert(touch)
    second = flying.apply(_delete(_cursor(1)))
    flying.memory.revert(first)
    assert flying.states() == (None, _cursor(1))
    flying.memory.settle(second)
    assert flying.states() == (None, None)


async def test_a_change_written_after_all_is_taken_over() -> None:
    flying = _Flying()
    one, two = flying.apply(_put(_cursor(1))), flying.apply(_put(_cursor(2)))
    flying.memory.revert(one)
    flying.memory.settle(two)
    assert flying.states() == (_cursor(2), _cursor(2))


async def test_a_task_that_is_over_leaves_the_open_ones_and_is_known_for_a_while() -> None:
    flying = _Flying()
    flying.memory.load([_task(TaskState.RUNNING)])
    flying.memory.settle(flying.apply(_put(_task(TaskState.SUCCEEDED, 2))))
    assert flying.memory.all(Task) == []
    assert flying.memory.task(("n", "t")) == _task(TaskState.SUCCEEDED, 2)
    flying.memory.revert(flying.apply(_put(_task(TaskState.QUEUED, 3))))
    assert flying.memory.all(Task) == []
    assert flying.memory.task(("n", "t")) == _task(TaskState.SUCCEEDED, 2)


async def test_of_closed_tasks_only_so_many_are_kept() -> None:
    flying = _Flying()
    for n in range(RECENT + 10):
        flying.memory.settle(flying.apply(_put(_task(TaskState.SUCCEEDED, task_id=str(n)))))
    assert flying.memory.task(("n", "9")) is None
    assert flying.memory.task(("n", "10")) is not None


async def test_what_is_read_does_not_replace_what_is_in_flight() -> None:
    flying = _Flying()
    one = flying.apply(_put(_cursor(1)))
    flying.memory.learn(REF, None, flying.memory.moves)
    assert flying.memory.latest(REF) == _cursor(1)
    flying.memory.settle(one)
    flying.memory.learn(REF, _cursor(5), flying.memory.moves)
    assert flying.memory.latest(REF) == _cursor(5)
    flying.memory.learn(REF, None, flying.memory.moves)
    assert flying.memory.latest(REF) is None


async def test_listeners_hear_every_step_forward_and_back() -> None:
    flying = _Flying()
    flying.memory.revert(flying.apply(_put(_cursor(1))))
    assert flying.changes == [(REF, None, _cursor(1)), (REF, _cursor(1), None)]


# What others committed -----------------------------------------------------------------------------------------------


def test_an_answer_that_was_overtaken_does_not_bring_back_what_has_ended() -> None:
    memory = Memory()
    ref: Ref = (Kind.TASK, ("n", "t"))
    asked = memory.moves
    # The feed tells that it is over before the answer arrives, which says that it is not.
    memory.follow(ref, _task(TaskState.SUCCEEDED, 2))
    memory.followed()
    memory.learn(ref, _task(TaskState.QUEUED), asked)
    assert memory.task(ref[1]) is None
    memory.learn(ref, _task(TaskState.QUEUED, 3), memory.moves)
    assert memory.task(ref[1]) == _task(TaskState.QUEUED, 3)
    memory.learn(ref, None, asked)
    assert memory.task(ref[1]) == _task(TaskState.QUEUED, 3)


def test_a_change_in_flight_that_is_doomed_falls_back_on_what_another_committed() -> None:
    flying = _Flying()
    flying.memory.load([_cursor(1)])
    doomed = flying.apply(_put(_cursor(2, sequence=7)))
    flying.memory.follow(REF, _cursor(2, sequence=8))
    assert flying.states() == (_cursor(2, sequence=7), _cursor(2, sequence=8))
    flying.memory.revert(doomed)
    assert flying.states() == (_cursor(2, sequence=8), _cursor(2, sequence=8))
