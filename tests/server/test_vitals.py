"""What the server says of itself is measured."""

from __future__ import annotations

import asyncio

import pytest
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive_server import vitals
from agenthive_server.testing.harness import open_served
from agenthive_server.testing.waiting import eventually
from agenthive_server.vitals import LATE_RING


def component(health: pb.HealthCheckResponse, name: str) -> pb.ComponentHealth:
    return next(each for each in health.components if each.name == name)


async def test_the_notifier_tells_how_long_its_last_ring_took() -> None:
    async with open_served() as (app, client):
        assert not component(await client.health(), "notifier").HasField("latency")
        waiting = asyncio.ensure_future(app.notifier.wait(app.log.head, 30.0))
        await asyncio.sleep(0)
        await client.delegate("work", task_id="t")
        assert await waiting
        measured = component(await client.health(), "notifier")
        assert measured.status == pb.HEALTH_STATUS_OK
        assert 0 <= measured.latency.ToNanoseconds() < LATE_RING * 1e9


async def test_a_notifier_that_was_late_makes_the_server_degraded_not_down() -> None:
    async with open_served() as (app, client):
        app.notifier.latency = LATE_RING * 2
        health = await client.health()
        assert component(health, "notifier").status == pb.HEALTH_STATUS_DEGRADED
        assert health.status == pb.HEALTH_STATUS_DEGRADED


async def test_facts_follow_what_happens() -> None:
    async with open_served() as (app, client):
        await client.delegate("work", task_id="t", required_capabilities=["none"])
        health = await client.health()
        assert (health.queued_tasks, health.held_tasks, health.last_sequence) == (1, 0, app.log.head)


async def test_a_server_that_is_away_serves_nobody_at_once_and_again_as_soon_as_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The next look would be too late.
    monkeypatch.setattr(vitals, "PING_EVERY", 3600.0)
    async with open_served() as (app, client):
        ping, gate, asked = app.store.ping, asyncio.Event(), asyncio.Event()

        async def slow() -> float:
            asked.set()
            await gate.wait()
            return await ping()

        app.store.ping = slow  # type: ignore[method-assign]  # a store that takes its time
        app.vitals.present(True)
        await asked.wait()
        app.vitals.present(False)
        assert not await client.serving("readiness")
        assert not await client.serving("")
        assert await client.serving("liveness")
        assert component(await client.health(), "store").status == pb.HEALTH_STATUS_DOWN
        asked.clear()
        gate.set()
        # The look that was under way does not bring it back, nor does the one that was asked for.
        await asked.wait()
        assert not await client.serving("")
        app.vitals.present(True)
        await eventually(lambda: client.serving("readiness"))
