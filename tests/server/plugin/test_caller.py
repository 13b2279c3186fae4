"""One handler, one event: until it goes well, or is given up."""

from __future__ import annotations

import asyncio

import pytest
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.plugin.api import Failure
from agenthive_server.plugin.caller import Caller, Deal, LeftOut
from agenthive_server.plugin.cell import Bounds, Cell, Running
from agenthive_server.plugin.isolation import guard_handler
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


class Asks:
    """A handler behind its wall, which asks for something twice, and waits or fails in between when it is told to."""

    def __init__(self, clock: ManualClock) -> None:
        cell = Cell("p", Failure.OPEN, Running(), Bounds(), clock, lambda *_: None)
        self.wall: Deal = guard_handler(self.handle, cell.act("HANDLER", "X"))
        self.event = Event(EventType.TASK_FAILED, "n", labels={"a": "b"}, data={"k": 1}, sequence=7)
        self.ids: list[str] = []
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None

    async def handle(self, event: Event) -> None:
        assert event == self.event
        event.data["k"] = event.labels = None  # type: ignore[assignment]  # it may do anything with its own
        self.ask()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.gate is not None:
            await self.gate.wait()
        self.ask()

    def ask(self) -> None:
        occasion = present()
        assert occasion is not None
        self.ids.append(occasion.request_id("d"))


async def test_what_does_not_wait_is_dealt_with_at_once(caller: Caller, clock: ManualClock) -> None:
    asks = Asks(clock)
    for _ in range(2):
        assert caller.deal(asks.wall, "X", asks.event) is None
    assert asks.ids == ["7-d-1", "7-d-2"] * 2
    assert present() is None
    assert caller.at_rest.is_set()


async def test_what_waits_goes_on_on_the_same_occasion_and_can_be_given_up(caller: Caller, clock: ManualClock) -> None:
    asks = Asks(clock)
    asks.gate = asyncio.Event()

    async def deal() -> None:
        waits = caller.deal(asks.wall, "X", asks.event)
        assert waits is not None
        await waits

    dealing = asyncio.create_task(deal())
    await settle()
    assert not caller.at_rest.is_set()
    asks.gate.set()
    await dealing
    assert asks.ids == ["7-d-1", "7-d-2"]
    assert caller.at_rest.is_set()
    asks.gate.clear()
    dealing = asyncio.create_task(deal())
    await settle()
    caller.give_up()
    with pytest.raises(LeftOut):
        await dealing


async def test_what_fails_at_once_is_tried_again_with_the_same_wishes(caller: Caller, clock: ManualClock) -> None:
    asks = Asks(clock)
    asks.error = LookupError()
    waits = caller.deal(asks.wall, "X", asks.event)
    assert waits is not None
    trying = asyncio.ensure_future(waits)
    await settle()
    assert caller.failing == "X fails at event 7 and is tried again: LookupError"
    await clock.advance(1)
    await trying
    assert (asks.ids, caller.failing) == (["7-d-1", "7-d-1", "7-d-2"], "")
