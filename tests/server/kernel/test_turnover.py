"""Streams end at an age: sessions are told to go on elsewhere, each at its own time, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from agenthive_server.kernel.agents import AgentSpec
from agenthive_server.kernel.session_items import Accept, Beat, Hello, HostedAgent, LeaseRef, Reconnect
from agenthive_server.kernel.tasks import TaskState
from agenthive_server.kernel.turnover import Turnover
from agenthive_server.testing.hive import NAMESPACE, Hive, PlayedWorker, open_hive

AGE = 300.0


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        turnover = Turnover(hive.kernel.contacts, hive.clock, random.Random(7).random, AGE)
        running = asyncio.create_task(turnover.run())
        yield hive
        running.cancel()


def _sent_away(worker: PlayedWorker) -> int:
    return worker.link.told.count(Reconnect(0.0))


async def _beat_until(hive: Hive, seconds: float, *workers: PlayedWorker) -> None:
    """Let time pass with workers that beat, or they would count as silent."""
    while hive.clock.monotonic() < seconds:
        await hive.advance(1.0)
        for worker in workers:
            hive.kernel.sessions.heard(NAMESPACE, worker.session_id, worker.welcome.epoch)


async def test_sessions_are_sent_away_within_ten_percent_of_the_age_and_not_all_at_once(hive: Hive) -> None:
    began = hive.clock.monotonic()
    workers = [await hive.worker(f"a{n}") for n in range(30)]
    await _beat_until(hive, began + 0.9 * AGE - 1, *workers)
    assert not any(map(_sent_away, workers))
    moments = set()
    while hive.clock.monotonic() < began + 1.1 * AGE + 1:
        before = sum(map(_sent_away, workers))
        await _beat_until(hive, hive.clock.monotonic() + 1, *workers)
        if sum(map(_sent_away, workers)) > before:
            moments.add(hive.clock.monotonic())
    assert [_sent_away(worker) for worker in workers] == [1] * 30
    assert len(moments) > 10


async def test_a_task_is_held_across_and_the_next_stream_has_an_age_of_its_own(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    epoch = worker.assignments()[0].task.lease_epoch
    await worker.say(Accept("t", epoch))

    async def age(worker: PlayedWorker) -> float:
        beat = [Beat(task_id="t", epoch=epoch)]
        began = hive.clock.monotonic()
        while not _sent_away(worker):
            assert hive.clock.monotonic() < began + 1.1 * AGE + 1, "it was never sent away"
            await hive.advance(1.0)
            hive.kernel.sessions.beat(NAMESPACE, worker.session_id, worker.welcome.epoch, beat)
        return hive.clock.monotonic() - began

    await age(worker)
    await worker.lose("it was told to go on elsewhere")
    hello = Hello(
        session_id=worker.session_id,
        agents=(HostedAgent(agent_id="a", spec=AgentSpec()),),
        leases=(LeaseRef("t", epoch),),
    )
    again = await hive.worker(hello=hello)
    assert again.welcome.valid_leases == (LeaseRef("t", epoch),)
    assert await age(again) >= 0.9 * AGE
    task = await hive.task("t")
    assert (task.state, task.attempt, task.lease_epoch) == (TaskState.RUNNING, 1, epoch)


async def test_without_an_age_streams_live_for_ever() -> None:
    async with open_hive() as hive:
        turnover = Turnover(hive.kernel.contacts, hive.clock, random.Random(7).random, 0.0)
        worker = await hive.worker("a")
        await _beat_until(hive, hive.clock.monotonic() + 20, worker)
        turnover.look()
        assert turnover.longest() is None
        assert not _sent_away(worker)
