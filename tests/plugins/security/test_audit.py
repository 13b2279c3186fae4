"""What is noted gets written, in order, and durable when it should be; what cannot be written is not forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
import pytest
from agenthive_plugins.security.audit import QUEUED, Folds, Trail
from agenthive_plugins.security.records import Act, Category, Ending
from agenthive_plugins.security.trail import Reader
from agenthive_server.kernel.clock import settle
from agenthive_server.plugin.api import HookState, StoreUnavailable
from agenthive_server.plugin.state import PluginState
from agenthive_server.testing.hive import Hive

T = TypeVar("T")


class FlakyState(PluginState):
    """The real state, which a test can make unavailable."""

    __slots__ = ("down",)

    def __init__(self, hive: Hive) -> None:
        super().__init__(hive.kernel.state, "security")
        self.down = False

    async def change(self, change: Callable[[HookState], T]) -> T:
        if self.down:
            raise StoreUnavailable("the disk is gone")
        return await super().change(change)


@pytest.fixture
def flaky(hive: Hive) -> FlakyState:
    return FlakyState(hive)


def act(text: str, **fields: object) -> Act:
    made = Act(time=0, category=Category.DATA_MODIFICATION, outcome=Ending.OK, text=text)
    return msgspec.structs.replace(made, **fields)


def denied(text: str, reason: str = "UNAUTHENTICATED", time: int = 0) -> Act:
    return act(text, outcome=Ending.DENIED, reason=reason, time=time)


async def texts(state: PluginState) -> list[str]:
    found = [record async for block in Reader(state).export() for record in block]
    assert not (await Reader(state).verify()).faults
    return [record.text or record.method for record in found]


async def pass_time(hive: Hive, seconds: float) -> None:
    """Let what is due begin, move the clock, and let what it sets going come to its end."""
    await settle()
    await hive.clock.advance(seconds)
    await settle(200)


@asynccontextmanager
async def running(trail: Trail) -> AsyncIterator[None]:
    task = asyncio.create_task(trail.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_acts_are_written_within_a_moment_in_their_order(hive: Hive, state: PluginState) -> None:
    trail = Trail(state, hive.clock, "c", flush_seconds=0.1)
    assert await trail.open()
    async with running(trail):
        await settle()
        trail.note(act("one"))
        trail.note(act("two"))
        await pass_time(hive, 0.05)
        assert await texts(state) == ["audit.began"]
        await pass_time(hive, 0.05)
        assert await texts(state) == ["audit.began", "one", "two"]
        trail.note(act("three"))
        await pass_time(hive, 0.1)
        assert await texts(state) == ["audit.began", "one", "two", "three"]
    assert (trail.queued, trail.written, trail.failing) == (0, 3, "")


async def test_who_waits_for_his_record_is_answered_at_once_when_it_is_durable(hive: Hive, state: PluginState) -> None:
    trail = Trail(state, hive.clock, "c", flush_seconds=60.0)
    await trail.open()
    async with running(trail):
        trail.note(act("gathered"))
        await settle()
        await trail.note_durably(act("durable"))
        assert await texts(state) == ["audit.began", "gathered", "durable"]


async def test_closing_writes_what_is_left_and_says_that_it_ended(hive: Hive, state: PluginState) -> None:
    trail = Trail(state, hive.clock, "c")
    await trail.open()
    for n in range(2_500):
        trail.note(act(str(n)))
    for _ in range(5):
        trail.note_refusal(denied("no"))
    await trail.close()
    found = await texts(state)
    assert found[1:2501] == [str(n) for n in range(2_500)]
    assert found[2501:] == ["no", "no", "audit.ended"]


async def test_the_next_writer_knows_whether_the_last_one_was_killed(hive: Hive, state: PluginState) -> None:
    first = Trail(state, hive.clock, "c")
    assert await first.open()
    # Opened anew beside it, as when settings change.
    second = Trail(state, hive.clock, "c")
    assert await second.open(alone=False)
    await first.close()
    await second.close()
    third = Trail(state, hive.clock, "c")
    assert await third.open()
    # Killed: it never closes.
    fourth = Trail(state, hive.clock, "c")
    assert not await fourth.open()
    await fourth.close()
    assert await Trail(state, hive.clock, "c").open()
    records = [record async for block in Reader(state).export() for record in block]
    reasons = [record.reason for record in records if record.method == "audit.began"]
    assert reasons == ["", "", "", "NOT_ENDED", ""]


async def test_two_writers_of_one_chain_never_break_it(hive: Hive, state: PluginState) -> None:
    one, two = Trail(state, hive.clock, "c"), Trail(state, hive.clock, "c")
    await one.open()
    await two.open(alone=False)
    for n in range(20):
        one.note(act(f"one {n}"))
        two.note(act(f"two {n}"))
        await asyncio.gather(one.flush(), two.flush())
    found = await texts(state)
    for name in ("one", "two"):
        assert [text for text in found if text.startswith(name)] == [f"{name} {n}" for n in range(20)]


async def test_what_cannot_be_written_waits_and_is_written_later(hive: Hive, flaky: FlakyState) -> None:
    trail = Trail(flaky, hive.clock, "c", flush_seconds=0.1)
    await trail.open()
    async with running(trail):
        flaky.down = True
        waiting = asyncio.create_task(trail.note_durably(act("waits")))
        await pass_time(hive, 0.1)
        assert trail.failing == "the disk is gone"
        assert not waiting.done()
        flaky.down = False
        await pass_time(hive, 5.0)
        await waiting
        assert trail.failing == ""
    assert await texts(flaky) == ["audit.began", "waits"]


async def test_a_full_queue_refuses_what_must_be_recorded_and_counts_what_is_lost(
    hive: Hive, flaky: FlakyState
) -> None:
    trail = Trail(flaky, hive.clock, "c")
    await trail.open()
    flaky.down = True
    for n in range(QUEUED):
        trail.note(act(str(n)))
    assert trail.full
    with pytest.raises(StoreUnavailable) as caught:
        await trail.note_durably(act("too much"))
    assert caught.value.retry_after
    trail.note(act("lost"))
    trail.note(act("lost"))
    assert trail.lost == 2
    with pytest.raises(StoreUnavailable):
        await trail.flush()
    flaky.down = False
    await trail.close()
    assert trail.lost == 0
    records = [record async for block in Reader(flaky).export() for record in block]
    assert [record.count for record in records if record.method == "audit.lost"] == [2]
    assert len(records) == QUEUED + 3


async def test_refusals_that_repeat_are_one_record_with_their_count(hive: Hive, state: PluginState) -> None:
    trail = Trail(state, hive.clock, "c", flush_seconds=0.1, fold_seconds=10.0)
    await trail.open()
    async with running(trail):
        for _ in range(1_000):
            trail.note_refusal(denied("guess", time=trail.now()))
        trail.note_refusal(denied("other", reason="PERMISSION_DENIED", time=trail.now()))
        await pass_time(hive, 0.2)
        assert await texts(state) == ["audit.began", "guess", "other"]
        await pass_time(hive, 11.0)
    records = [record async for block in Reader(state).export() for record in block]
    assert [(record.text, record.count) for record in records[1:]] == [("guess", 1), ("other", 1), ("guess", 999)]


def test_kinds_of_refusals_are_bounded() -> None:
    folds, found = Folds(10.0), []
    for n in range(3_000):
        assert folds.fold(denied("x", reason=str(n))) is not None
        assert folds.fold(denied("x", reason=str(n))) is None
        found += folds.due(0)
    assert len(folds) <= 1_000
    assert len(found) + len(folds.rest()) == 3_000


async def test_a_flush_that_is_cancelled_loses_nothing_and_writes_nothing_twice(hive: Hive, state: PluginState) -> None:
    trail = Trail(state, hive.clock, "c")
    await trail.open()
    trail.note(act("once"))
    task = asyncio.create_task(trail.flush())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await trail.close()
    assert sorted(set(await texts(state))) == ["audit.began", "audit.ended", "once"]
