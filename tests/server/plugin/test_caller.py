"""One handler, one event: until it goes well, or is given up."""

from __future__ import annotations

import asyncio

import pytest
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.plugin.caller import Caller, LeftOut
from agenthive_server.plugin.occasion import present


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def caller(clock: ManualClock) -> Caller:
    return Caller("p", clock, lambda: 1.0)


async def stall() -> None:
    await asyncio.Event().wait()


async def test_it_calls_on_the_occasion_of_the_event(caller: Caller) -> None:
    ids: list[str] = []

    async def call() -> None:
        assert not caller.at_rest.is_set()
        occasion = present()
        assert occasion is not None
        ids.append(occasion.request_id("d"))

    await caller.insist(call, 7, "X")
    assert ids == ["7-d-1"]
    assert present() is None
    assert caller.at_rest.is_set()


async def test_what_is_given_up_is_left_out_and_the_next_is_not(caller: Caller) -> None:
    calling = asyncio.create_task(caller.insist(stall, 1, "X"))
    await settle()
    caller.give_up()
    caller.give_up()
    with pytest.raises(LeftOut):
        await calling
    caller.give_up()
    await caller.insist(settle, 2, "X")


async def test_giving_up_works_between_two_tries_too(caller: Caller) -> None:
    async def fail() -> None:
        raise LookupError

    calling = asyncio.create_task(caller.insist(fail, 1, "X"))
    await settle()
    assert caller.failing == "X fails at event 1 and is tried again: LookupError"
    assert caller.at_rest.is_set()
    caller.give_up()
    with pytest.raises(LeftOut):
        await calling
    assert caller.failing == ""


async def test_a_handler_that_takes_no_notice_of_it_counts_and_does_no_harm_to_the_next(caller: Caller) -> None:
    done = asyncio.Event()

    async def stubborn() -> None:
        while not done.is_set():
            try:
                await done.wait()
            except asyncio.CancelledError:
                continue

    calling = asyncio.create_task(caller.insist(stubborn, 1, "X"))
    await settle()
    caller.give_up()
    await settle()
    done.set()
    await calling

    async def both() -> None:
        await caller.insist(stubborn, 2, "X")
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    await asyncio.create_task(both())


async def test_being_cancelled_is_stronger_than_being_given_up(caller: Caller) -> None:
    calling = asyncio.create_task(caller.insist(stall, 1, "X"))
    await settle()
    caller.give_up()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert calling.cancelled()


async def test_a_cancellation_of_the_handlers_own_is_a_failure_like_any_other(
    caller: Caller, clock: ManualClock
) -> None:
    calls = 0

    async def cancels_itself() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            inner = asyncio.create_task(stall())
            inner.cancel()
            await inner

    calling = asyncio.create_task(caller.insist(cancels_itself, 1, "X"))
    await settle()
    assert caller.failing.endswith("it was cancelled")
    await clock.advance(1)
    await calling
    assert calls == 2
