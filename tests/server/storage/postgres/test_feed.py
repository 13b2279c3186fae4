"""What replicas follow: every group in order, what it did to which records, what it told; and when that is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from agenthive_server.kernel.changes import COMMITTED, ChangeSet, Conflicted, Outcome, Rejected
from agenthive_server.kernel.ports import Touched
from agenthive_server.kernel.records import Kind, Record, Ref
from agenthive_server.kernel.tasks import TaskState
from agenthive_server.storage.postgres import feed
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.store_model import changing, sample, task

NewStore = Callable[..., PostgresStore]
REF: Ref = task().ref


async def touched(store: PostgresStore, after: int = 0) -> list[list[tuple[str, int]]]:
    """Return names and revisions of what each group touched."""
    return [[(each.ref[1][1], each.revision) for each in change.touched] for change in await store.changes(after)]


async def commit(store: PostgresStore, *group: ChangeSet) -> Sequence[Outcome]:
    return await store.commit(group)


async def test_the_groups_of_all_replicas_are_in_one_order_without_holes(
    store: PostgresStore, new_store: NewStore
) -> None:
    other = new_store()
    await other.open()
    for number in range(3):
        await commit(store, changing(task(f"a{number}"), events=2))
        await commit(other, changing(task(f"b{number}"), events=1))
    found = await other.changes(0)
    assert [change.number for change in found] == [1, 2, 3, 4, 5, 6]
    assert [change.head for change in found] == [2, 3, 5, 6, 8, 9]
    assert [event.sequence for change in found for event in change.events] == list(range(1, 10))
    assert [event for change in found for event in change.events] == await store.read_events(0, 100)
    assert store.written == (4, 5)
    assert other.written == (5, 6)
    assert await store.position() == (6, 9)
    assert [change.number for change in await store.changes(2, {3, 5})] == [4, 6]
    assert await store.changes(6) == []


async def test_what_stands_is_noted_and_what_does_not_is_not(store: PostgresStore) -> None:
    await commit(store, changing(task()))
    outcomes = await commit(store, changing(task(revision=3)), changing(task("b")), changing(task("b")))
    assert [type(outcome) for outcome in outcomes] == [Conflicted, type(COMMITTED), Conflicted]
    assert await touched(store) == [[("t", 1)], [("b", 1)]]
    await commit(store, changing(task(revision=3)))
    assert store.written == (2, 2)
    await commit(store, ChangeSet(checks={REF: 1}))
    assert store.written == (2, 2)
    assert await store.position() == (2, 0)


async def test_what_is_removed_over_or_made_anew_is_told_apart(store: PostgresStore) -> None:
    await commit(store, changing(task()), changing(task(revision=2)))
    await commit(store, changing(deletes=(task(revision=2),)), changing(task(priority=1)))
    await commit(store, changing(task(revision=2, state=TaskState.SUCCEEDED)))
    await commit(store, changing(deletes=(task(revision=2),)))
    await commit(store, changing(task("brief")), changing(deletes=(task("brief"),)))
    assert await touched(store) == [[("t", 2)], [("t", 0), ("t", 1)], [("t", -2)], [("t", 0)], []]
    made_anew = (await store.changes(1))[0].touched[-1]
    assert store.record(made_anew, None) == task(priority=1)


async def test_a_record_is_as_the_group_wrote_it_whatever_came_later(store: PostgresStore) -> None:
    kinds = [kind for kind in feed.FOLLOWED if kind is not Kind.TASK]
    first = [sample(kind, ("default", "x"), 1, 4) for kind in kinds] + [task(priority=2)]
    later = [sample(kind, ("default", "x"), 2, 7) for kind in kinds] + [task(revision=2, priority=2, update_time=9.0)]
    for records in (first, later):
        assert await commit(store, changing(*records)) == [COMMITTED]
    groups = [change.touched for change in await store.changes(0)]
    known: dict[Ref, Record] = {}
    for touched_, records in zip(groups, (first, later), strict=True):
        found = {each.ref: store.record(each, known.get(each.ref)) for each in touched_ if each.revision > 0}
        wanted = {record.ref: record for record in records if record.ref in found}
        assert found == wanted
        assert REF in found
        known.update(wanted)
    # A task's specification is written once; without it the rest says nothing.
    of_task = next(each for each in groups[1] if each.ref == REF)
    assert store.record(of_task, None) is None


async def test_a_long_record_is_only_named(store: PostgresStore) -> None:
    long = task(title="x" * feed.LONGEST)
    await commit(store, changing(long, task("short")))
    found = {each.ref[1][1]: store.record(each, None) for each in (await store.changes(0))[0].touched}
    assert found == {"t": None, "short": task("short")}


async def test_what_nobody_keeps_in_memory_is_not_in_it(store: PostgresStore) -> None:
    request = sample(Kind.REQUEST, ("default", "r"), 1, 1)
    await commit(store, changing(request, events=1))
    assert await touched(store) == [[]]


async def test_a_group_with_data_that_are_refused_is_several(store: PostgresStore) -> None:
    bad = changing(task("bad", role="\ud800"))
    outcomes = await commit(store, changing(task("a"), events=1), bad, changing(task("b"), events=1))
    assert [type(outcome) for outcome in outcomes] == [type(COMMITTED), Rejected, type(COMMITTED)]
    assert store.written == (0, 2)
    found = await store.changes(0)
    assert [(change.number, change.head, len(change.events)) for change in found] == [(1, 1, 1), (2, 2, 1)]
    assert await touched(store) == [[("a", 1)], [("b", 1)]]


async def test_who_comes_too_late_sees_a_gap_and_not_the_end(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "KEPT", 3)
    for number in range(8):
        await commit(store, changing(task(str(number))))
    await store.compact(1)
    assert [change.number for change in await store.changes(0)] == [5, 6, 7, 8]
    assert [change.number for change in await store.changes(7)] == [8]
    assert await store.changes(0, {5, 6, 7, 8}) == []
    assert await store.position() == (8, 0)


def test_a_record_without_a_body_has_to_be_read() -> None:
    assert feed.record(Touched(REF, 3), task(revision=2)) is None
    assert feed.record(Touched(REF, 3), None) is None
