"""A role is one holder's at a time, by the database's clock; what is committed under it checks its epoch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from agenthive_server.kernel.changes import COMMITTED, ChangeSet, Conflicted
from agenthive_server.kernel.clock import ManualClock, SystemClock
from agenthive_server.kernel.records import Kind, RoleRecord
from agenthive_server.storage.postgres.roles import SPAN, Leases
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.store_model import changing, task


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000.0)


@pytest.fixture
async def timed(new_store: Callable[..., PostgresStore], clock: ManualClock) -> PostgresStore:
    """A store whose database has the test's clock."""
    store = new_store(now=clock.now)
    await store.open()
    return store


@pytest.fixture
def leases(timed: PostgresStore) -> Leases:
    return timed.leases


async def test_a_role_that_is_free_is_taken_for_a_span(leases: Leases) -> None:
    told = await leases.take("dispatcher", "a")
    expected = RoleRecord(namespace="", id="dispatcher", revision=1, holder="a", epoch=1, expire_time=1_000.0 + SPAN)
    assert (told.role, told.now) == (expected, 1_000.0)


async def test_a_role_that_is_held_is_told_and_not_taken(leases: Leases, clock: ManualClock) -> None:
    held = (await leases.take("dispatcher", "a")).role
    clock.move(SPAN - 0.1)
    assert (await leases.take("dispatcher", "b")).role == held
    assert (await leases.take("reaper", "b")).role.holder == "b"


async def test_a_lease_that_has_ended_is_anybodys(leases: Leases, clock: ManualClock) -> None:
    old = (await leases.take("dispatcher", "a")).role
    clock.move(SPAN + 0.1)
    taken = (await leases.take("dispatcher", "b")).role
    assert (taken.holder, taken.epoch, taken.revision) == ("b", 2, 2)
    assert await leases.renew(old) is None
    await leases.give_up(old)
    assert (await leases.take("dispatcher", "c")).role == taken


async def test_renewing_moves_the_end_and_nothing_else(
    leases: Leases, clock: ManualClock, timed: PostgresStore
) -> None:
    role = (await leases.take("dispatcher", "a")).role
    clock.move(3)
    renewed = await leases.renew(role)
    assert renewed is not None
    assert renewed.role == role.evolve(expire_time=1_003.0 + SPAN)
    assert await timed.get(Kind.ROLE, [role.key]) == [renewed.role]
    clock.move(3)
    assert (await leases.take("dispatcher", "b")).role.holder == "a"


async def test_a_lease_that_has_ended_is_held_on_if_nobody_took_it(leases: Leases, clock: ManualClock) -> None:
    role = (await leases.take("dispatcher", "a")).role
    clock.move(100)
    renewed = await leases.renew(role)
    assert renewed is not None
    assert (await leases.take("dispatcher", "b")).role == renewed.role


async def test_a_clock_that_goes_back_ends_no_lease(leases: Leases, clock: ManualClock) -> None:
    role = (await leases.take("dispatcher", "a")).role
    clock.move(-500)
    renewed = await leases.renew(role)
    assert renewed is not None
    assert renewed.role.expire_time == role.expire_time


async def test_a_role_given_up_is_free_at_once_under_a_new_epoch(leases: Leases) -> None:
    role = (await leases.take("dispatcher", "a")).role
    await leases.give_up(role)
    assert await leases.renew(role) is None
    taken = (await leases.take("dispatcher", "b")).role
    assert (taken.holder, taken.epoch) == ("b", 2)


async def test_of_many_who_want_a_role_one_gets_it(
    leases: Leases, url: str, new_store: Callable[..., PostgresStore]
) -> None:
    told = await asyncio.gather(*(leases.take("dispatcher", f"holder-{number}") for number in range(10)))
    assert len({each.role.holder for each in told}) == 1
    assert {each.role.epoch for each in told} == {1}


async def test_a_holder_that_was_stopped_and_wakes_commits_nothing(
    timed: PostgresStore, leases: Leases, clock: ManualClock
) -> None:
    role = (await leases.take("dispatcher", "a")).role
    under_it = {role.ref: role.revision}
    assert await timed.commit([ChangeSet(puts=changing(task("a")).puts, checks=under_it)]) == [COMMITTED]
    clock.move(1)
    await leases.renew(role)
    assert await timed.commit([ChangeSet(puts=changing(task("b")).puts, checks=under_it)]) == [COMMITTED]
    clock.move(100)
    await leases.take("dispatcher", "b")
    late = [ChangeSet(puts=changing(task("c")).puts, checks=under_it), changing(task("d"))]
    assert await timed.commit(late) == [Conflicted((role.ref,)), COMMITTED]
    assert await timed.get(Kind.TASK, [("default", "c")]) == [None]


async def test_without_another_clock_the_databases_counts(store: PostgresStore) -> None:
    told = await store.leases.take("dispatcher", "a")
    assert abs(told.now - SystemClock().now()) < 60
    assert told.role.expire_time == told.now + SPAN
