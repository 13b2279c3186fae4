"""Random histories for stores: groups of change sets, right and wrong ones, compared with the model after each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import strategies as st

from agenthive_server.kernel.changes import ChangeSet, Outcome
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import CursorCompacted
from agenthive_server.kernel.ports import Query, Store
from agenthive_server.kernel.records import Key, Kind, Record, Ref

from .store_model import Model, changing, fact, sample, unchanging

KINDS = (Kind.TASK, Kind.AGENT, Kind.MESSAGE, Kind.REQUEST, Kind.CURSOR, Kind.STATE)
KEYS: tuple[Key, ...] = (("n", "a"), ("n", "b"), ("m", "a"))
REFS: tuple[Ref, ...] = tuple((kind, key) for kind in KINDS for key in KEYS)


@dataclass(frozen=True)
class Deed:
    """What a change set does to one row; `off` is how far its idea of the revision is from the truth."""

    ref: Ref
    verb: str
    off: int
    number: int


@dataclass(frozen=True)
class Step:
    """One step of a history: a group (for each change set its deeds and its number of events), or something else."""

    group: tuple[tuple[tuple[Deed, ...], int], ...] = ()
    reopen: bool = False
    compact_to: int | None = None
    seconds: int = 0


def groups() -> st.SearchStrategy[list[Step]]:
    """Return histories; most of what they do fits, so that much is committed."""
    deed = st.builds(
        Deed,
        ref=st.sampled_from(REFS),
        verb=st.sampled_from(("put", "put", "put", "delete", "check")),
        off=st.sampled_from((0, 0, 0, 0, 0, 0, 1, -1)),
        number=st.integers(0, 30),
    )
    deeds = st.lists(deed, max_size=4, unique_by=lambda deed: deed.ref).map(tuple)
    group = st.lists(st.tuples(deeds, st.integers(0, 3)), min_size=1, max_size=6).map(tuple)
    step = st.one_of(
        st.builds(Step, group=group, seconds=st.integers(-3, 10)),
        st.builds(Step, group=group, seconds=st.integers(-3, 10)),
        st.just(Step(reopen=True)),
        st.builds(Step, compact_to=st.integers(0, 30)),
    )
    return st.lists(step, min_size=1, max_size=8)


async def check_groups(new_store: Callable[[], Store], clock: ManualClock, script: list[Step]) -> None:
    """Play a history on a new store and on the model; they must say and hold the same."""
    model, store, oldest = Model(), new_store(), 1
    await store.open()
    for step in script:
        clock.move(step.seconds)
        if step.reopen:
            await store.close()
            store = new_store()
            await store.open()
        elif step.compact_to is not None:
            oldest = _kept_from(model, step.compact_to, oldest)
            assert await store.compact(step.compact_to) == oldest
        else:
            made = _change_sets(model, step)
            assert await store.commit([changes for changes, _ in made]) == [outcome for _, outcome in made]
        await _compare(store, model, oldest)
    await store.close()


def _change_sets(model: Model, step: Step) -> list[tuple[ChangeSet, Outcome]]:
    made = []
    for deeds, events in step.group:
        changes = ChangeSet(events=[fact(number) for number in range(events)])
        for deed in deeds:
            _add(changes, model, deed)
        made.append((changes, model.commit(changes)))
    return made


def _add(changes: ChangeSet, model: Model, deed: Deed) -> None:
    there = model.records.get(deed.ref)
    revision = max(0, (there.revision if there else 0) + deed.off)
    kind, key = deed.ref
    if deed.verb == "check" or (deed.verb == "delete" and revision == 0):
        changes.checks[deed.ref] = revision
    elif deed.verb == "delete":
        changes.deletes[deed.ref] = sample(kind, key, revision, deed.number)
    else:
        record = sample(kind, key, revision + 1, deed.number)
        changes.puts[deed.ref] = unchanging(there, record) if there else record


def _kept_from(model: Model, before: int, oldest: int) -> int:
    for events in model.sets:
        if events[-1].sequence < before:
            oldest = max(oldest, events[-1].sequence + 1)
    return oldest


async def _compare(store: Store, model: Model, oldest: int) -> None:
    for kind in KINDS:
        expected = [model.records.get((kind, key)) for key in KEYS]
        assert await store.get(kind, KEYS) == expected
        there = {record.ref: record for record in expected if record}
        assert {record.ref: record for record in await store.scan(kind)} == there
        opened = {ref for ref, record in there.items() if not getattr(record, "terminal", False)}
        assert {record.ref for record in await store.scan(kind, open_only=True)} == opened
    bounds = await store.bounds()
    assert (bounds.oldest, bounds.head) == (oldest, model.head)
    await _compare_events(store, model, oldest)


async def _compare_events(store: Store, model: Model, oldest: int) -> None:
    told = [event for events in model.sets for event in events]
    assert [event.sequence for event in told] == list(range(1, model.head + 1))
    assert all(event.last == events[-1].sequence for events in model.sets for event in events)
    assert all(earlier.time <= later.time for earlier, later in pairwise(told))
    assert await store.read_events(oldest - 1, 1_000) == told[oldest - 1 :]
    if oldest > 1:
        with pytest.raises(CursorCompacted) as caught:
            await store.read_events(oldest - 2, 1_000)
        assert caught.value.metadata["oldest_sequence"] == str(oldest)


@dataclass(frozen=True)
class PageCase:
    """Records of one kind and a question about them."""

    kind: Kind
    numbers: tuple[int, ...]
    query: Query


def page_cases() -> st.SearchStrategy[PageCase]:
    """Return questions of every kind of condition over records with many equal times."""
    query = st.builds(
        Query,
        namespace=st.just("n"),
        states=st.sampled_from(
            (frozenset(), frozenset(), frozenset({"QUEUED", "READ", "READY"}), frozenset({"SUCCEEDED", "RUNNING"}))
        ),
        role=st.sampled_from(("", "", "coder")),
        labels=st.sampled_from(({}, {}, {"team": "blue"}, {"team": "blue", "tier": "1"})),
        parent_task_id=st.sampled_from(("", "", "p")),
        type=st.sampled_from(("", "", "type-1")),
        agent_id=st.sampled_from(("", "", "a", "coder")),
        prefix=st.sampled_from(("", "", "r1", "r2", "x")),
        limit=st.integers(1, 7),
    )
    return st.builds(
        PageCase,
        kind=st.sampled_from((Kind.TASK, Kind.TASK, *Kind)),
        numbers=st.lists(st.integers(0, 60), max_size=25).map(tuple),
        query=query,
    )


_BY_ID = (Kind.AGENT, Kind.SESSION, Kind.PROGRESS, Kind.CURSOR, Kind.ROLE, Kind.STATE)


def _place(kind: Kind, record: Record) -> tuple[float | str, str]:
    return ("", record.id) if kind in _BY_ID else (getattr(record, "create_time", 0.0), record.id)


async def check_pages(new_store: Callable[[], Store], case: PageCase) -> None:
    """Ask page by page; all pages together must be what fits, in order, each but the last of full length."""
    store = new_store()
    await store.open()
    kind, query = case.kind, case.query
    records = [sample(kind, (("n", "m")[n % 5 == 4], f"r{at}"), 1, n) for at, n in enumerate(case.numbers)]
    await store.commit([changing(record) for record in records])
    expected = [record for record in records if _fits(record, query)]
    expected.sort(key=lambda record: _place(kind, record), reverse=kind not in _BY_ID)
    found: list[Record] = []
    while True:
        after = _place(kind, found[-1]) if found else None
        page = await store.query(kind, replace(query, after=after))
        found += page
        if len(page) < query.limit:
            break
    assert found == expected
    await store.close()


def _fits(record: Record, query: Query) -> bool:
    spec = getattr(record, "spec", record)
    lease = getattr(record, "lease", None)
    held_by = lease.agent_id if lease and not getattr(record, "terminal", False) else getattr(record, "agent_id", "")
    labels = getattr(spec, "labels", {})
    asked = [
        (query.role, getattr(spec, "role", "")),
        (query.parent_task_id, getattr(spec, "parent_task_id", "")),
        (query.type, getattr(spec, "type", "")),
        (query.agent_id, held_by),
    ]
    return (
        record.namespace == query.namespace
        and record.id.startswith(query.prefix)
        and (not query.states or getattr(record, "state", "") in query.states)
        and all(not wanted or wanted == value for wanted, value in asked)
        and all(labels.get(name) == value for name, value in query.labels.items())
    )
