"""What every store must do. A test module subclasses `StoreSuite` and says how a store is made.

class TestMyStore(StoreSuite):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import combinations

import pytest
from hypothesis import given, settings

from agenthive_server.kernel.changes import COMMITTED, ChangeSet, Conflicted
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.ports import Query, Store
from agenthive_server.kernel.records import Key, Kind, Record, StateRecord
from agenthive_server.kernel.tasks import TERMINAL, TaskState

from .store_log import BlobSuite, LogSuite
from .store_model import changing, full_records, sample, task
from .store_script import PageCase, Step, check_groups, check_pages, groups, page_cases

Place = Callable[[ManualClock], Callable[[], Store]]
"""Makes an empty place for data; what it returns makes a store on that place, time and again, never two at once."""


async def put(store: Store, *records: Record) -> None:
    """Commit records, each in a change set of its own."""
    assert set(await store.commit([changing(record) for record in records])) <= {COMMITTED}


class StoreSuite(LogSuite, BlobSuite):
    """The behaviour of `Store`."""

    examples = 60
    """How many random cases a property is tried with."""

    @pytest.fixture
    def place(self) -> Place:
        """How a place for data is made; a subclass says."""
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The clock of the store."""
        return ManualClock(1_000.0)

    @pytest.fixture
    def new_store(self, place: Place, clock: ManualClock) -> Callable[[], Store]:
        """Makes stores on one place."""
        return place(clock)

    @pytest.fixture
    async def store(self, new_store: Callable[[], Store]) -> AsyncIterator[Store]:
        """An open, empty store."""
        store = new_store()
        await store.open()
        yield store
        await store.close()

    # Records

    async def test_what_was_committed_is_found_by_its_key(self, store: Store) -> None:
        first, second = task("a"), task("b")
        await put(store, first, second)
        keys: list[Key] = [second.key, ("default", "none"), first.key, second.key]
        assert await store.get(Kind.TASK, keys) == [second, None, first, second]
        assert await store.get(Kind.TASK, []) == []
        assert await store.get(Kind.AGENT, [first.key]) == [None]

    async def test_many_keys_are_found_at_once(self, store: Store) -> None:
        tasks = [task(f"t{number}") for number in range(200)]
        await put(store, *tasks)
        assert await store.get(Kind.TASK, [record.key for record in tasks]) == tasks

    async def test_every_field_comes_back(self, store: Store, new_store: Callable[[], Store]) -> None:
        records = full_records()
        await put(store, *records)
        await store.close()
        store = new_store()
        await store.open()
        for record in records:
            assert await store.get(record.kind, [record.key]) == [record]
        await store.close()

    async def test_an_insert_of_a_key_in_use_writes_nothing(self, store: Store) -> None:
        await put(store, task("a"))
        outcomes = await store.commit([changing(task("b"), task("a", state=TaskState.PAUSED), events=1)])
        assert outcomes == [Conflicted((task("a").ref,))]
        assert await store.get(Kind.TASK, [("default", "a"), ("default", "b")]) == [task("a"), None]
        assert (await store.bounds()).head == 0

    @pytest.mark.parametrize("revision", [1, 2, 4])
    async def test_an_update_of_another_revision_writes_nothing(self, store: Store, revision: int) -> None:
        await put(store, task("a"), task("a", revision=2))
        stale = task("a", revision=revision if revision != 2 else 2, state=TaskState.PAUSED)
        assert await store.commit([changing(stale)]) == [Conflicted((stale.ref,))]
        assert await store.get(Kind.TASK, [stale.key]) == [task("a", revision=2)]

    async def test_a_delete_wants_the_revision_it_knows(self, store: Store) -> None:
        await put(store, task("a"), task("a", revision=2))
        assert await store.commit([changing(deletes=(task("a"),))]) == [Conflicted((task("a").ref,))]
        assert await store.commit([changing(deletes=(task("a", revision=2),))]) == [COMMITTED]
        assert await store.get(Kind.TASK, [("default", "a")]) == [None]
        assert await store.commit([changing(deletes=(task("a", revision=2),))]) == [Conflicted((task("a").ref,))]

    @pytest.mark.parametrize(
        ("there", "wanted", "stands"), [(1, 1, True), (1, 2, False), (0, 0, True), (1, 0, False), (0, 1, False)]
    )
    async def test_a_check_of_a_row_decides_over_the_others(
        self, store: Store, there: int, wanted: int, stands: bool
    ) -> None:
        if there:
            await put(store, task("a"))
        changes = ChangeSet(puts=changing(task("b")).puts, checks={task("a").ref: wanted})
        assert await store.commit([changes]) == [COMMITTED if stands else Conflicted((task("a").ref,))]
        assert (await store.get(Kind.TASK, [("default", "b")]) == [task("b")]) is stands

    async def test_checks_alone_are_judged_and_leave_no_trace(self, store: Store) -> None:
        await put(store, task("a"))
        group = [ChangeSet(checks={task("a").ref: 1}), ChangeSet(checks={task("a").ref: 3}), ChangeSet()]
        assert await store.commit(group) == [COMMITTED, Conflicted((task("a").ref,)), COMMITTED]

    async def test_every_row_that_is_not_as_expected_is_named(self, store: Store) -> None:
        await put(store, task("a"))
        changes = changing(task("a"), task("b", revision=3), task("c"))
        changes.checks[task("d").ref] = 1
        outcome = (await store.commit([changes]))[0]
        assert isinstance(outcome, Conflicted)
        assert set(outcome.refs) == {task(name).ref for name in "abd"}

    async def test_members_of_a_group_see_those_before_and_fall_alone(self, store: Store) -> None:
        group = [
            changing(task("a"), events=1),
            changing(task("a", revision=2), events=2),
            changing(task("a", revision=2, state=TaskState.PAUSED), task("b"), events=1),
            changing(task("b"), events=1),
            ChangeSet(puts=changing(task("c")).puts, checks={task("a").ref: 2, task("b").ref: 1}),
        ]
        outcomes = await store.commit(group)
        assert outcomes == [COMMITTED, COMMITTED, Conflicted((task("a").ref,)), COMMITTED, COMMITTED]
        assert await store.get(Kind.TASK, [("default", name) for name in "abc"]) == [
            task("a", revision=2),
            task("b"),
            task("c"),
        ]
        assert [(event.sequence, event.last) for event in await store.read_events(0, 10)] == [
            (1, 1),
            (2, 3),
            (3, 3),
            (4, 4),
        ]

    async def test_what_was_built_on_a_state_that_never_was_does_not_stand_although_its_revision_is_there(
        self, store: Store
    ) -> None:
        await put(store, task("a"), task("a", revision=2, state=TaskState.SUCCEEDED), task("b"))
        paused = changing(task("a", revision=2, state=TaskState.PAUSED), events=1)
        resumed = changing(task("a", revision=3, state=TaskState.RUNNING), events=1)
        resting = ChangeSet(puts=changing(task("c")).puts, checks={task("a").ref: 2}, events=changing(events=1).events)
        resumed.built_on = resting.built_on = (paused,)
        other = changing(task("b", revision=2))
        wrong = Conflicted((task("a").ref,))
        assert await store.commit([paused, resumed, resting, other]) == [wrong, wrong, wrong, COMMITTED]
        # Nor in a later group, once it is known what became of the first.
        paused.void = True
        assert await store.commit([resumed]) == [wrong]
        assert await store.get(Kind.TASK, [("default", "a")]) == [task("a", revision=2, state=TaskState.SUCCEEDED)]
        assert await store.read_events(0, 10) == []

    async def test_a_key_may_go_and_come_back_within_a_group(self, store: Store) -> None:
        await put(store, task("a", type="old"))
        again = task("a", type="new", labels={"x": "y"})
        assert await store.commit([changing(deletes=(task("a"),)), changing(again)]) == [COMMITTED, COMMITTED]
        assert await store.get(Kind.TASK, [again.key]) == [again]
        assert await store.query(Kind.TASK, Query(namespace="default", type="new")) == [again]
        gone = [changing(task("z")), changing(deletes=(task("z"),))]
        assert await store.commit(gone) == [COMMITTED, COMMITTED]
        assert await store.get(Kind.TASK, [("default", "z")]) == [None]
        assert await store.commit([changing(task("a")), changing(deletes=(again,))]) == [
            Conflicted((again.ref,)),
            COMMITTED,
        ]

    async def test_a_cancelled_caller_does_not_stop_its_commit(self, store: Store) -> None:
        commit = asyncio.ensure_future(store.commit([changing(task("a"))]))
        await asyncio.sleep(0)
        commit.cancel()
        await asyncio.wait([commit])
        await put(store, task("b"))
        assert await store.get(Kind.TASK, [("default", "a")]) == [task("a")]

    # Questions

    async def test_a_scan_finds_all_or_the_open_tasks(self, store: Store) -> None:
        records = [sample(Kind.TASK, (f"n{number % 2}", f"t{number}"), 1, number) for number in range(30)]
        await put(store, *records, sample(Kind.AGENT, ("n0", "a"), 1, 1))
        assert {record.key for record in await store.scan(Kind.TASK)} == {record.key for record in records}
        opened = {record.key for record in await store.scan(Kind.TASK, open_only=True)}
        assert opened == {record.key for record in records if getattr(record, "terminal", None) is False}
        assert len(await store.scan(Kind.AGENT, open_only=True)) == 1

    async def test_states_ask_for_any_of_them(self, store: Store) -> None:
        states = (TaskState.QUEUED, TaskState.SUCCEEDED, TaskState.RUNNING, TaskState.FAILED)
        tasks = {state: task(state.value, state=state, end_time=5.0 if state in TERMINAL else 0.0) for state in states}
        await put(store, *tasks.values())
        for count in range(1, len(states) + 1):
            for asked in combinations(states, count):
                found = await store.query(Kind.TASK, Query(namespace="default", states=frozenset(asked)))
                assert found == sorted((tasks[state] for state in asked), key=lambda found: found.id, reverse=True)

    async def test_labels_ask_for_all_of_them(self, store: Store) -> None:
        both = task("a", labels={"team": "red", "odd 'name\".$": "x"})
        await put(store, both, task("b", labels={"team": "red"}), task("c", labels={"team": "blue"}), task("d"))

        async def found(**labels: str) -> list[str]:
            return [record.id for record in await store.query(Kind.TASK, Query(namespace="default", labels=labels))]

        assert await found(team="red") == ["b", "a"]
        assert await found(**{"team": "red", "odd 'name\".$": "x"}) == ["a"]
        assert await found(team="green") == []

    async def test_a_condition_on_what_a_kind_does_not_have_finds_nothing(self, store: Store) -> None:
        await put(store, sample(Kind.CURSOR, ("default", "c"), 1, 1))
        assert len(await store.query(Kind.CURSOR, Query(namespace="default"))) == 1
        assert await store.query(Kind.CURSOR, Query(namespace="default", role="coder")) == []
        assert await store.query(Kind.CURSOR, Query(namespace="default", states=frozenset({"OPEN"}))) == []
        assert await store.query(Kind.CURSOR, Query(namespace="default", labels={"a": "b"})) == []

    async def test_a_prefix_asks_for_what_begins_with_it_in_order_of_code_points(self, store: Store) -> None:
        keys = ["a", "a/", "a/1", "a/10", "a/2", "a/Z", "a/z", "a/é", "a/\uffee", "a/\N{ROCKET}", "a0", "b"]
        await put(store, *(sample(Kind.STATE, (plugin, key), 1, 1) for key in keys for plugin in ("p", "q")))

        async def found(prefix: str, after: str = "", limit: int = 50) -> list[str]:
            asked = Query(namespace="p", prefix=prefix, after=("", after) if after else None, limit=limit)
            return [record.id for record in await store.query(Kind.STATE, asked)]

        assert await found("") == keys
        assert await found("a/") == keys[1:10]
        assert await found("a/1") == ["a/1", "a/10"]
        assert await found("a/", after="a/2", limit=3) == ["a/Z", "a/z", "a/é"]
        assert await found("a/", after="a/\N{ROCKET}") == []
        assert await found("a/", after="A") == keys[1:10]
        assert await found("c") == []

    async def test_many_values_of_plugins_go_in_one_change_set_and_come_back(self, store: Store) -> None:
        many = [StateRecord(namespace="p", id=f"k{n:04}", revision=1, value=bytes([n % 256]) * n) for n in range(1_000)]
        assert await store.commit([changing(*many)]) == [COMMITTED]
        assert await store.query(Kind.STATE, Query(namespace="p", limit=2_000)) == many
        later = [record.evolve(revision=2, value=b"new") for record in many]
        assert await store.commit([changing(*later[:500], deletes=tuple(many[500:]))]) == [COMMITTED]
        assert await store.scan(Kind.STATE) == later[:500]

    async def test_what_is_past_its_time_is_found_oldest_first(self, store: Store) -> None:
        done = task("done", state=TaskState.SUCCEEDED, end_time=5.0)
        await put(store, done, task("open"), task("late", state=TaskState.FAILED, end_time=9.0))
        await put(store, *(sample(Kind.REQUEST, ("n", f"r{time}"), 1, time) for time in range(5)))
        assert await store.expired(Kind.TASK, 9.0, 10) == [done]
        assert [record.id for record in await store.expired(Kind.REQUEST, 3.0, 2)] == ["r0", "r1"]
        assert [record.id for record in await store.expired(Kind.REQUEST, 99.0, 9)] == [f"r{n}" for n in range(5)]
        assert await store.expired(Kind.AGENT, 99.0, 10) == []

    # Anything

    def test_random_groups_come_to_what_the_model_says(self, place: Place) -> None:
        @settings(max_examples=self.examples, deadline=None)
        @given(groups())
        def check(script: list[Step]) -> None:
            clock = ManualClock(1_000.0)
            asyncio.run(check_groups(place(clock), clock, script))

        check()

    def test_pages_one_after_the_other_are_the_whole_sorted_list(self, place: Place) -> None:
        @settings(max_examples=self.examples, deadline=None)
        @given(page_cases())
        def check(case: PageCase) -> None:
            asyncio.run(check_pages(place(ManualClock(1_000.0)), case))

        check()

    # How it is doing

    async def test_it_says_that_it_is_well(self, store: Store) -> None:
        assert await store.ping() >= 0
        assert store.writable == ""
        assert store.free_bytes is None or store.free_bytes > 0
