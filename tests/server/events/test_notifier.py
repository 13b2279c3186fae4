"""Waking: rings are not lost, timeouts come on time, and nobody who went away stays behind."""

from __future__ import annotations

import asyncio

from agenthive_server.events.notifier import BATCH, TICK, LocalNotifier
from agenthive_server.kernel.clock import ManualClock, settle


async def test_a_ring_wakes_those_it_concerns() -> None:
    notifier = LocalNotifier(ManualClock(), max_pace=0)
    near = asyncio.ensure_future(notifier.wait(4, 10))
    far = asyncio.ensure_future(notifier.wait(5, 10))
    await settle()
    notifier.ring(5)
    await settle()
    assert near.done()
    assert near.result() is True
    assert not far.done()
    notifier.ring(6)
    assert await far is True


async def test_who_comes_after_the_ring_does_not_wait() -> None:
    notifier = LocalNotifier(ManualClock())
    notifier.ring(7)
    assert await notifier.wait(6, 10) is True


async def test_a_ring_that_is_being_gathered_reaches_who_comes_meanwhile() -> None:
    notifier = LocalNotifier(ManualClock(), max_pace=0)
    early = asyncio.ensure_future(notifier.wait(0, 10))
    await settle()
    notifier.ring(1)
    assert notifier.gathering(0)
    late = asyncio.ensure_future(notifier.wait(0, 10))
    assert await early
    assert await late


async def test_a_wait_ends_when_its_time_is_up() -> None:
    clock = ManualClock()
    notifier = LocalNotifier(clock)
    wheel = asyncio.ensure_future(notifier.run())
    long = asyncio.ensure_future(notifier.wait(0, 20))
    await settle()
    short = asyncio.ensure_future(notifier.wait(0, 3))
    await settle()
    await clock.advance(2.9)
    assert not short.done()
    await clock.advance(0.1 + TICK)
    assert short.done()
    assert short.result() is False
    assert not long.done()
    await clock.advance(17)
    assert await long is False
    wheel.cancel()


async def test_nobody_waits_means_no_timer() -> None:
    clock = ManualClock()
    notifier = LocalNotifier(clock)
    wheel = asyncio.ensure_future(notifier.run())
    await settle()
    assert clock.next_wake is None
    wheel.cancel()


async def test_a_cancelled_wait_leaves_no_trace() -> None:
    notifier = LocalNotifier(ManualClock())
    for _ in range(1_000):
        wait = asyncio.ensure_future(notifier.wait(0, 10))
        await asyncio.sleep(0)
        wait.cancel()
        await asyncio.sleep(0)
    assert notifier.waiting <= 65


async def test_a_crowd_is_given_time_to_write() -> None:
    notifier = LocalNotifier(ManualClock())
    crowd = [asyncio.ensure_future(notifier.wait(0, 10)) for _ in range(100)]
    await settle()
    notifier.ring(1)
    await asyncio.gather(*crowd)
    one = asyncio.ensure_future(notifier.wait(1, 10))
    notifier.ring(2)
    await asyncio.sleep(0)
    assert notifier.gathering(1)
    assert not one.done()
    assert await one


async def test_a_large_crowd_is_let_go_batch_by_batch() -> None:
    notifier = LocalNotifier(ManualClock(), max_pace=0)
    crowd = [asyncio.ensure_future(notifier.wait(0, 10)) for _ in range(3 * BATCH)]
    await settle()
    notifier.ring(1)
    for _ in range(3):
        await asyncio.sleep(0)
    woken = sum(wait.done() for wait in crowd)
    assert 0 < woken < len(crowd)
    notifier.ring(2)
    assert all(await asyncio.gather(*crowd))
