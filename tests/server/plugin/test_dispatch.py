"""Handlers: in order, at least once, each plugin from its own cursor, whoever else is slow, fails or is killed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agenthive_server.events.log import EventLog
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.limits import Limits
from agenthive_server.kernel.ports import Query
from agenthive_server.kernel.records import Kind
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import TaskSpec, Timeouts
from agenthive_server.plugin.dispatch import Dispatcher
from agenthive_server.plugin.follower import MOST
from agenthive_server.plugin.verbs import PluginVerbs
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.testing.faults import FaultyStore, no_fault
from agenthive_server.testing.hive import Hive, open_hive
from agenthive_server.testing.waiting import eventually

DELEGATED = EventType.TASK_DELEGATED
PATIENT = Timeouts(schedule_to_start=1e9, schedule_to_close=1e9)


class Stage:
    """A hive with a dispatcher, which can be taken away and replaced by another as a restart would."""

    def __init__(self, hive: Hive, store: FaultyStore) -> None:
        self.hive = hive
        self.store = store
        self.seen: list[str] = []

    async def open(self) -> None:
        hive = self.hive
        self.dispatcher = Dispatcher(hive.log, hive.notifier, hive.kernel.decisions, hive.clock, lambda: 1.0)
        hive.kernel.reaper.release = self.dispatcher.release
        self._loop = asyncio.create_task(self.dispatcher.run())
        await settle()

    async def crash(self) -> None:
        """Stop without a word: no cursor is stored any more."""
        tasks = [self._loop, *(task for task in asyncio.all_tasks() if task.get_name().endswith("/handlers"))]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def see(self, event: Event) -> None:
        self.seen.append(event.task_id)

    async def attach(self, handler: Callable[[Event], Awaitable[None]] | None = None, **options: Any) -> None:
        await self.dispatcher.attach("p", {DELEGATED: handler or self.see}, **options)

    async def delegate(self, *names: str) -> None:
        for name in names:
            await self.hive.delegate(name, required_capabilities=("none",), timeouts=PATIENT)

    async def pass_time(self, seconds: float = 0.1) -> None:
        await self.hive.advance(seconds)

    async def stored(self, plugin: str = "p") -> int:
        (found,) = await self.hive.store.get(Kind.CURSOR, [("", f"plugin/{plugin}")])
        return found.sequence if found else -1  # type: ignore[attr-defined]  # a cursor


@asynccontextmanager
async def open_stage(**limits: float) -> AsyncIterator[Stage]:
    made: list[FaultyStore] = []

    def store(clock: ManualClock) -> FaultyStore:
        made.append(FaultyStore(MemoryStore(clock)))
        return made[0]

    async with open_hive(store=store, limits=Limits(**limits)) as hive:  # type: ignore[arg-type]  # numbers
        stage = Stage(hive, made[0])
        await stage.open()
        yield stage
        await stage.crash()


@pytest.fixture(name="stage")
async def make_stage() -> AsyncIterator[Stage]:
    async with open_stage() as made:
        yield made


# In order, from where it was


async def test_a_new_plugin_begins_with_what_happens_next(stage: Stage) -> None:
    await stage.delegate("before")
    await stage.attach()
    assert await stage.stored() == 1
    await stage.delegate("a", "b", "c")
    await stage.pass_time()
    assert stage.seen == ["a", "b", "c"]
    assert stage.dispatcher.lag("p") == 0


async def test_a_handler_gets_the_events_of_its_type_and_may_do_with_them_what_it_likes(stage: Stage) -> None:
    async def spoil(event: Event) -> None:
        stage.seen.append(f"{event.type.name} {event.sequence}")
        event.data.clear()
        event.task_id = "spoiled"
        event.labels["x"] = "y"  # type: ignore[index]  # that is the point

    await stage.dispatcher.attach("p", {EventType.TASK_PAUSED: spoil, EventType.TASK_CANCELED: spoil})
    await stage.dispatcher.attach("q", {DELEGATED: spoil})
    await stage.delegate("t")
    await stage.hive.kernel.tasks.pause(stage.hive.caller(), "t")
    await stage.hive.kernel.tasks.cancel(stage.hive.caller(), "t", "")
    await stage.pass_time()
    assert sorted(stage.seen) == ["TASK_CANCELED 3", "TASK_DELEGATED 1", "TASK_PAUSED 2"]
    first = (await stage.hive.log.read(0, 1))[0]
    assert (first.task_id, first.labels, first.data["type"]) == ("t", {}, "work")


async def test_switched_off_and_on_again_it_goes_on_where_it_was(stage: Stage) -> None:
    await stage.attach()
    await stage.delegate("a")
    await stage.pass_time()
    await stage.dispatcher.detach("p")
    await stage.delegate("b", "c")
    await stage.pass_time(5)
    assert stage.seen == ["a"]
    await stage.attach()
    await stage.delegate("d")
    await stage.pass_time()
    assert stage.seen == ["a", "b", "c", "d"]
    await stage.dispatcher.detach("nobody")


async def test_other_handlers_take_the_place_of_those_before(stage: Stage) -> None:
    await stage.attach()
    await stage.delegate("a")
    await stage.pass_time()

    async def other(event: Event) -> None:
        stage.seen.append(f"other {event.task_id}")

    await stage.attach(other)
    await stage.delegate("b")
    await stage.pass_time()
    assert stage.seen == ["a", "other b"]


async def test_two_hundred_switches_under_load_lose_nothing_and_leave_nothing(stage: Stage) -> None:
    await stage.attach()
    for number in range(200):
        await stage.delegate(f"{number:03}")
        await stage.dispatcher.detach("p")
        await stage.attach()
        if number % 7 == 0:
            await stage.pass_time(0.01)
    await stage.pass_time(1)
    assert list(dict.fromkeys(stage.seen)) == [f"{number:03}" for number in range(200)]
    assert [task.get_name() for task in asyncio.all_tasks()].count("p/handlers") == 1


# Slow and failing ones


async def test_a_handler_that_fails_is_called_again_before_the_next_event(stage: Stage) -> None:
    failures = 3

    async def fail(event: Event) -> None:
        nonlocal failures
        stage.seen.append(event.task_id)
        if event.task_id == "a" and failures:
            failures -= 1
            raise LookupError("not yet")

    await stage.attach(fail)
    await stage.dispatcher.attach("q", {DELEGATED: stage.see})
    await stage.delegate("a", "b")
    await stage.pass_time(0.1)
    # Once by the one that fails; the other plugin has had both.
    assert sorted(stage.seen) == ["a", "a", "b"]
    assert stage.dispatcher.failing("p") == "TASK_DELEGATED fails at event 1 and is tried again: LookupError"
    assert stage.dispatcher.lag("p") == 2
    assert (stage.dispatcher.failing("q"), stage.dispatcher.lag("q")) == ("", 0)
    await stage.pass_time(0.5)
    await stage.pass_time(1.0)
    assert stage.seen.count("a") == 4
    await stage.pass_time(2.0)
    assert stage.seen[-2:] == ["a", "b"]
    assert stage.dispatcher.failing("p") == ""


@pytest.mark.parametrize("error", [asyncio.CancelledError(), SystemExit(1), StoreUnavailable("away"), TimeoutError()])
async def test_whatever_a_handler_raises_it_is_called_again(stage: Stage, error: BaseException) -> None:
    async def fail(event: Event) -> None:
        stage.seen.append(event.task_id)
        if len(stage.seen) == 1:
            raise error

    await stage.attach(fail)
    await stage.delegate("a")
    await stage.pass_time(1)
    assert stage.seen == ["a", "a"]


async def test_pauses_grow_to_a_minute(stage: Stage) -> None:
    times: list[float] = []

    async def fail(event: Event) -> None:
        times.append(stage.hive.clock.now())
        raise LookupError

    await stage.attach(fail)
    await stage.delegate("a")
    await stage.pass_time(600)
    pauses = [round(after - before, 3) for before, after in itertools.pairwise(times)]
    assert pauses[:9] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


async def test_a_slow_handler_delays_itself_only_and_catches_up_in_order(stage: Stage) -> None:
    gate = asyncio.Event()
    slow: list[str] = []

    async def wait(event: Event) -> None:
        await gate.wait()
        slow.append(event.task_id)

    await stage.attach(wait)
    await stage.dispatcher.attach("q", {DELEGATED: stage.see})
    await stage.pass_time()
    names = [f"t{number:04}" for number in range(2 * MOST)]
    specs = [NewTask(id=name, spec=TaskSpec(type="w", required_capabilities=("none",))) for name in names]
    for start in range(0, len(specs), 500):
        await stage.hive.kernel.tasks.delegate(stage.hive.caller(), specs[start : start + 500])
        await stage.pass_time()
    assert stage.seen == names
    assert slow == []
    assert stage.dispatcher.lag("p") == len(names)
    gate.set()
    await stage.pass_time()
    assert slow == names


# Cursors


async def test_cursors_are_stored_once_a_second_all_together(stage: Stage) -> None:
    await stage.attach()
    await stage.dispatcher.attach("q", {DELEGATED: stage.see})
    await stage.pass_time(2)
    writes: list[int] = []

    async def watch(group: Any) -> None:
        writes.extend(
            len(c.puts)
            for c in group
            if any(kind is Kind.CURSOR and key[1] != "kernel/followups" for kind, key in c.puts)
        )

    stage.store.before = watch
    for number in range(100):
        await stage.delegate(f"t{number}")
        await stage.pass_time(0.05)
    stage.store.before = no_fault
    assert len(stage.seen) == 200
    assert 4 <= len(writes) <= 7
    assert set(writes) == {2}
    await stage.pass_time(2)
    assert await stage.stored() == await stage.stored("q") == 100


async def test_where_nothing_concerned_it_the_cursor_is_not_stored(stage: Stage) -> None:
    await stage.dispatcher.attach("p", {EventType.AGENT_LOST: stage.see})
    await stage.delegate(*(f"t{number}" for number in range(100)))
    await stage.pass_time(10)
    assert await stage.stored() == 0
    assert stage.dispatcher.lag("p") == 0
    await stage.dispatcher.detach("p")
    assert await stage.stored() == 0


# Kills


async def test_killed_between_a_call_and_the_cursor_it_repeats_the_call_harmlessly(stage: Stage) -> None:
    verbs = PluginVerbs(stage.hive.kernel, "p")
    stuck = asyncio.Event()

    async def react(event: Event) -> None:
        if not event.task_id.startswith("root"):
            return
        await verbs.delegate_tasks([NewTask(spec=TaskSpec(type="reaction", title=event.task_id))])
        stage.seen.append(event.task_id)
        await stuck.wait()
        await verbs.cancel_task(event.task_id, "done")

    await stage.attach(react)
    await stage.delegate("root-1", "root-2")
    await stage.pass_time()
    assert stage.seen == ["root-1"]
    await stage.crash()
    assert await stage.stored() == 0
    await stage.open()
    stuck.set()
    await stage.attach(react)
    await stage.pass_time()
    assert stage.seen == ["root-1", "root-1", "root-2"]
    tasks = await verbs.list_tasks(Query(namespace="default"))
    assert sorted(task.spec.title for task in tasks if task.spec.type == "reaction") == ["root-1", "root-2"]
    assert {task.id: task.state.value for task in tasks if task.spec.type == "work"} == {
        "root-1": "CANCELED",
        "root-2": "CANCELED",
    }


async def test_switched_off_in_the_middle_of_an_event_it_begins_with_it_again(stage: Stage) -> None:
    ends: list[str] = []

    async def stall(event: Event) -> None:
        stage.seen.append(event.task_id)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append(event.task_id)
            raise

    await stage.attach()
    await stage.delegate("a")
    await stage.pass_time(2)
    await stage.attach(stall)
    await stage.delegate("b", "c")
    await stage.pass_time()
    await stage.dispatcher.detach("p")
    assert (stage.seen, ends) == (["a", "b"], ["b"])
    assert await stage.stored() == 1
    await stage.attach()
    await stage.pass_time()
    assert stage.seen == ["a", "b", "b", "c"]


async def test_a_handler_that_is_about_to_end_may_do_so(stage: Stage) -> None:
    async def nearly(event: Event) -> None:
        await asyncio.sleep(0.05)
        stage.seen.append(event.task_id)

    await stage.attach(nearly)
    await stage.delegate("a", "b")
    await stage.pass_time()
    await stage.dispatcher.detach("p")
    assert stage.seen == ["a"]
    assert await stage.stored() == 1


async def test_a_handler_that_does_not_end_is_left_behind(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agenthive_server.plugin.dispatch.GRACE", 0.05)
    release = asyncio.Event()

    async def stubborn(event: Event) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    await stage.attach(stubborn)
    await stage.delegate("a")
    await stage.pass_time()
    await stage.dispatcher.detach("p")
    await stage.attach()
    await stage.pass_time()
    assert stage.seen == ["a"]
    release.set()
    await settle()


async def test_trouble_with_the_store_delays_and_loses_nothing(stage: Stage) -> None:
    await stage.attach()

    async def broken(*_: Any) -> None:
        raise StoreUnavailable("no disk")

    await stage.delegate("a")
    stage.store.before = broken
    await stage.pass_time(3)
    assert stage.seen == ["a"]
    stage.store.before = no_fault
    await stage.pass_time(3)
    assert await stage.stored() == 1
    stage.store.before = broken
    with pytest.raises(StoreUnavailable):
        await stage.dispatcher.attach("new", {DELEGATED: stage.see})
    await stage.dispatcher.detach("p")
    stage.store.before = no_fault
    await stage.attach()
    await stage.delegate("b")
    await stage.pass_time()
    assert stage.seen == ["a", "b"]


async def test_what_has_left_the_memory_is_read_from_the_store_when_that_can_be_read(stage: Stage) -> None:
    await stage.attach()
    await stage.dispatcher.detach("p")
    names = [f"t{number:04}" for number in range(1_200)]
    specs = [NewTask(id=name, spec=TaskSpec(type="w", required_capabilities=("none",))) for name in names]
    for start in range(0, len(specs), 400):
        await stage.hive.kernel.tasks.delegate(stage.hive.caller(), specs[start : start + 400])
    reads = 0

    async def away() -> None:
        nonlocal reads
        reads += 1
        if reads < 4:
            raise StoreUnavailable("away")

    hive = stage.hive
    log = EventLog(stage.store, lambda _: b"")
    await log.open()
    stage.store.reading = away
    other = Dispatcher(log, hive.notifier, hive.kernel.decisions, hive.clock, lambda: 1.0)
    await other.attach("p", {DELEGATED: stage.see})
    await stage.pass_time(0.5)
    assert stage.seen == []
    assert other.failing("p") == "away"
    await stage.pass_time(5)
    assert stage.seen == names
    await other.detach("p")


# Compaction

DAY = 86_400.0
KEEP = {"retention_events": 7 * DAY, "retention_tasks": 1_000 * DAY}


async def sweep(stage: Stage, days: float) -> int:
    """Let time pass at once, and look after what is past its retention; returns the oldest event kept."""
    followups, log = stage.hive.kernel.followups, stage.hive.log
    # What they have not come to is kept whatever its age; readers are paced by the time of the machine.
    await eventually(lambda: followups.position >= log.head)
    stage.hive.clock.move(days * DAY)
    for _ in range(3):
        await stage.hive.settle()
        await stage.hive.kernel.reaper.sweep()
        stage.hive.clock.move(1.5)
        await stage.hive.settle()
    return (await stage.store.bounds()).oldest


async def test_compaction_waits_for_a_handler_that_is_behind_and_not_for_ever() -> None:
    gaps: list[tuple[int, int]] = []
    gate = asyncio.Event()

    async def gap(first: int, last: int) -> None:
        # What it is told of is still there.
        assert (await stage.store.bounds()).oldest == 1
        gaps.append((first, last))

    async def wait(event: Event) -> None:
        await gate.wait()
        stage.seen.append(event.task_id)

    async with open_stage(**KEEP) as stage:
        await stage.attach(wait, gap=gap)
        await stage.delegate("a", "b", "c")
        assert await sweep(stage, 8) == 1
        await stage.delegate("d")
        assert await sweep(stage, 5) == 1
        assert gaps == []
        # Twice the retention has passed for the first three, not for the last.
        assert await sweep(stage, 2) == 4
        assert gaps == [(1, 3)]
        gate.set()
        await stage.pass_time()
        assert stage.seen == ["d"]


async def test_compaction_does_not_wait_for_a_handler_that_nothing_concerned() -> None:
    async with open_stage(**KEEP) as stage:
        await stage.dispatcher.attach("p", {EventType.AGENT_LOST: stage.see})
        await stage.delegate("a", "b", "c")
        await stage.pass_time(2)
        assert await sweep(stage, 8) == 4
        assert await stage.stored() >= 3


async def test_a_handler_killed_right_after_compaction_knows_of_no_gap() -> None:
    gaps: list[tuple[int, int]] = []

    async def gap(first: int, last: int) -> None:
        gaps.append((first, last))

    async with open_stage(**KEEP) as stage:
        await stage.attach(gap=gap)
        await stage.delegate("a", "b", "c")
        await stage.pass_time(0.2)
        stage.hive.clock.move(8 * DAY)
        await stage.hive.kernel.reaper.sweep()
        await stage.crash()
        await stage.open()
        await stage.attach(gap=gap)
        await stage.delegate("d")
        await stage.pass_time()
        assert list(dict.fromkeys(stage.seen)) == ["a", "b", "c", "d"]
        assert gaps == []


async def test_what_was_compacted_while_it_was_off_it_is_told_when_it_comes_back() -> None:
    told: list[str] = []
    refusals = 2

    async def gap(first: int, last: int) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise LookupError
        told.append(f"gap {first} {last}")

    async def see(event: Event) -> None:
        told.append(event.task_id)

    async with open_stage(**KEEP) as stage:
        await stage.attach(see, gap=gap)
        await stage.delegate("a")
        await stage.pass_time(2)
        await stage.dispatcher.detach("p")
        await stage.delegate("b", "c")
        assert await sweep(stage, 8) == 4
        await stage.delegate("d")
        await stage.attach(see, gap=gap)
        await stage.pass_time(3)
        assert told == ["a", "gap 2 3", "d"]


async def test_a_gap_nobody_wants_to_hear_of_holds_up_neither_compaction_nor_what_follows() -> None:
    async def deaf(first: int, last: int) -> None:
        stage.seen.append(f"gap {first} {last}")
        await asyncio.Event().wait()

    async def stall(_: Event) -> None:
        await asyncio.Event().wait()

    async with open_stage(**KEEP) as stage:
        await stage.attach(stall, gap=deaf)
        await stage.delegate("a", "b")
        assert await sweep(stage, 15) == 1
        assert stage.seen == ["gap 1 2"]
        # It had a minute to take note of it.
        assert await sweep(stage, 0.001) == 3
        await stage.delegate("c")
        await stage.attach()
        await stage.pass_time(2)
        assert stage.seen == ["gap 1 2", "c"]
