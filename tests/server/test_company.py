"""Replicas of one database as each of them sees them, over real ports."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from agenthive.client import Client
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive_server import company
from agenthive_server.app import App
from agenthive_server.company import Pace
from agenthive_server.exposition import CATALOGUE
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.members import LARGEST
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.storage.postgres.tenure import Tenure
from agenthive_server.testing.harness import open_served, open_worker
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.waiting import eventually

_PLACES = itertools.count()


class Served(NamedTuple):
    app: App
    client: Client

    @property
    def tenure(self) -> Tenure:
        assert isinstance(self.app.store, PostgresStore)
        return self.app.store.tenure

    async def seen(self, other: Served) -> pb.Replica | None:
        """Return another replica as this one sees it."""
        replicas = (await self.client.health()).replicas
        return next((each for each in replicas if each.replica_id == other.tenure.me), None)

    async def said(self) -> pb.ComponentHealth:
        """Return what its health says of the replicas."""
        return next(each for each in (await self.client.health()).components if each.name == "replicas")


@pytest.fixture
async def two(postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[tuple[Served, Served]]:
    url = postgres.url(f"company{next(_PLACES)}")
    async with AsyncExitStack() as stack:
        one, two = [
            Served(*await stack.enter_async_context(open_served(tmp_path / name, server__store=url))) for name in "ab"
        ]
        await eventually(lambda: _serves(one, two))
        yield one, two


async def _serves(here: Served, there: Served) -> bool:
    seen = await here.seen(there)
    return seen is not None and seen.state == pb.REPLICA_STATE_SERVING


async def test_each_tells_of_all(two: tuple[Served, Served], tmp_path: Path) -> None:
    one, other = two
    async with open_worker(f"127.0.0.1:{one.app.port}", "w", folder=tmp_path):
        await other.client.delegate("until", {"file": str(tmp_path / "never")})

        async def told() -> bool:
            seen, back = await other.seen(one), await one.seen(other)
            if seen is None or back is None or not back.last_sequence:
                return False
            return (seen.sessions, seen.agents_in_contact, seen.held_tasks) == (1, 1, 1)

        await eventually(told)
        for asked, unasked in ((one, other), (other, one)):
            health = await asked.client.health()
            assert health.replica_id == asked.tenure.me
            assert {each.replica_id: each.address for each in health.replicas} == {
                served.tenure.me: f"127.0.0.1:{served.app.port}" for served in two
            }
            assert {each.state for each in health.replicas} == {pb.REPLICA_STATE_SERVING}
            assert (health.agents_in_contact, health.held_tasks) == (1, 1)
            [role] = [each for each in health.roles if each.role == "dispatcher"]
            assert role.replica_id in {one.tenure.me, other.tenure.me}
            assert [each.replica_id for each in health.replicas if "dispatcher" in each.roles] == [role.replica_id]
            assert all(each.memory_bytes > 1_000_000 and each.last_sequence > 0 for each in health.replicas)
            assert all(each.version and each.HasField("start_time") for each in health.replicas)

            alone = await asked.client.health(this_replica_only=True)
            assert [each.replica_id for each in alone.replicas] == [asked.tenure.me]
            assert unasked.tenure.me not in str(alone)
            mine = 1 if asked is one else 0
            assert (alone.agents_in_contact, alone.held_tasks) == (mine, mine)
            assert "replicas" not in {each.name for each in alone.components}
        assert (await one.said()).reason == "2 are there"


async def test_one_that_is_silent_is_away_then_expelled_and_after_a_minute_forgotten(
    two: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    renewing, silent = other.tenure._renewing, other.tenure.me
    assert renewing is not None
    # As on another machine, where nobody sees its process; and there it is stopped.
    await one.tenure._leases.renew(other.tenure._own.evolve(holder="1:elsewhere"))  # type: ignore[union-attr]
    renewing.cancel()

    async def away() -> bool:
        seen = await one.seen(other)
        return seen is not None and seen.state == pb.REPLICA_STATE_AWAY

    await eventually(away)
    said = await one.said()
    assert said.status == pb.HEALTH_STATUS_DEGRADED
    assert said.reason.startswith(f"{silent} has said nothing for ")

    async def gone() -> bool:
        return await one.seen(other) is None

    await eventually(gone)
    said = await one.said()
    assert said.status == (await one.client.health()).status == pb.HEALTH_STATUS_DEGRADED
    assert said.reason.startswith(f"{silent} was expelled ")
    assert (await one.client.health(this_replica_only=True)).status == pb.HEALTH_STATUS_OK
    found = {metric.name: metric.value for metric in await one.client.metrics("agenthive_replica")}
    assert found["agenthive_replicas"] == found["agenthive_replicas_expelled_total"] == 1
    monkeypatch.setattr(company, "REMEMBERED", 0.0)
    assert (await one.said()).reason == "this is the only one"


async def test_one_that_stops_says_so_and_is_not_taken_to_be_lost(two: tuple[Served, Served]) -> None:
    one, other = two
    await other.tenure.retire()

    async def draining() -> bool:
        seen = await one.seen(other)
        return seen is not None and seen.state == pb.REPLICA_STATE_DRAINING

    await eventually(draining)
    assert (await one.said()).status == pb.HEALTH_STATUS_OK
    await other.tenure.end()

    async def left() -> bool:
        return await one.seen(other) is None

    await eventually(left)
    assert (await one.said()).reason == "this is the only one"


async def test_what_is_told_is_small_and_every_metric_is_explained(two: tuple[Served, Served]) -> None:
    one, other = two
    assert one.app.company is not None
    assert 100 < len(one.app.company.tell()) < LARGEST / 4
    waits = one.app.kernel.following
    assert waits is not None
    before = sum(waits.waits.counts)
    await one.app.kernel.decisions.fresh()
    found = list(one.app.company.metrics())
    assert {sample.name.removesuffix(part) for sample in found for part in _parts(sample.name)} <= CATALOGUE.keys()
    assert {sample.name for sample in found if sample.labels} <= {"agenthive_following_wait_seconds_bucket"}
    values = {sample.name: sample.value for sample in found}
    assert values["agenthive_replicas"] == 2
    assert values["agenthive_replicas_away"] == 0
    assert values["agenthive_following_wait_seconds_count"] == before + 1
    roles = [len(served.tenure.roll().holders) for served in (one, other)]
    assert values["agenthive_replica_roles"] <= max(roles)


def _parts(name: str) -> list[str]:
    return [part for part in ("_bucket", "_sum", "_count") if name.endswith(part)] or [""]


async def test_one_that_follows_no_more_says_how_far_it_is_behind(two: tuple[Served, Served]) -> None:
    one, other = two
    following = other.app.kernel.following
    assert following is not None
    stuck = asyncio.Event()

    async def never(until: int) -> None:
        await stuck.wait()

    following.catch_up = never  # type: ignore[method-assign]  # a feed that hangs
    for _ in range(3):
        await one.client.delegate("any", role="nobody")

    async def behind() -> bool:
        seen = await one.seen(other)
        return seen is not None and seen.lag_events >= 3 and seen.lag_groups >= 3

    await eventually(behind)
    mine = await one.seen(one)
    assert mine is not None
    assert (mine.lag_events, mine.lag_groups) == (0, 0)


def test_pace_is_counted_over_a_second_at_least() -> None:
    clock, done = ManualClock(100.0), [10, 2.0]
    pace = Pace(clock, lambda: int(done[0]), lambda: done[1])
    done[:] = 30, 3.0
    clock.move(0.5)
    pace.measure()
    assert (pace.calls, pace.cores) == (0.0, 0.0)
    clock.move(1.5)
    pace.measure()
    assert (pace.calls, pace.cores) == (10.0, 0.5)
    clock.move(10.0)
    pace.measure()
    assert (pace.calls, pace.cores) == (0.0, 0.0)
