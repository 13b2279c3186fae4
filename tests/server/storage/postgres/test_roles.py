"""Memberships end by the database's clock; a role is one replica's at a time; what is committed rests on both."""

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

START = 1_000.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
async def timed(new_store: Callable[..., PostgresStore], clock: ManualClock) -> PostgresStore:
    """A store whose database has the test's clock, while its own stands still: it renews nothing."""
    store = new_store(clock=ManualClock(START), now=clock.now)
    await store.open()
    return store


@pytest.fixture
def leases(timed: PostgresStore) -> Leases:
    return timed.leases


async def test_a_replica_that_joins_is_there_for_a_span(leases: Leases, timed: PostgresStore) -> None:
    row = await leases.join("a", "1:here", 1, "{}")
    expected = RoleRecord(
        namespace="", id="replica/a", revision=1, holder="1:here", epoch=1, expire_time=START + SPAN, facts="{}"
    )
    assert row == expected
    assert await timed.get(Kind.ROLE, [row.key]) == [row]
    # Asked for again, because the answer was lost.
    assert await leases.join("a", "1:here", 2, "{}") == expected.evolve(revision=2, epoch=2)


async def test_renewing_moves_the_end_and_what_is_said_and_shows_everybody(leases: Leases, clock: ManualClock) -> None:
    a, b = await leases.join("a", "", 1), await leases.join("b", "", 1)
    clock.move(3)
    renewed, roster = await leases.renew(a.evolve(facts="busy"))
    assert renewed == a.evolve(expire_time=START + 3 + SPAN, facts="busy")
    assert roster.now == START + 3
    assert {name: row for name, row in roster.members().items() if name in "ab"} == {"a": renewed, "b": b}


async def test_a_clock_that_goes_back_ends_no_membership(leases: Leases, clock: ManualClock) -> None:
    row = await leases.join("a", "", 1)
    clock.move(-100)
    renewed, _ = await leases.renew(row)
    assert renewed is not None
    assert renewed.expire_time == row.expire_time


async def test_only_one_whose_time_is_over_is_expelled_or_one_that_is_known_to_be_gone(
    leases: Leases, clock: ManualClock
) -> None:
    a, b = await leases.join("a", "", 1), await leases.join("b", "", 1)
    clock.move(SPAN - 0.1)
    assert not await leases.expel(a)
    assert await leases.expel(b, gone=True)
    clock.move(0.2)
    assert await leases.expel(a)
    assert not await leases.expel(a)
    assert (await leases.renew(a))[0] is None


async def test_one_that_renewed_meanwhile_is_not_expelled(leases: Leases, clock: ManualClock) -> None:
    row = await leases.join("a", "", 1)
    clock.move(SPAN + 1)
    # Late, but nobody has removed it.
    assert (await leases.renew(row))[0] is not None
    assert not await leases.expel(row)


async def test_a_role_is_one_replicas_until_that_is_gone(leases: Leases, clock: ManualClock) -> None:
    a, b = await leases.join("a", "", 1), await leases.join("b", "", 1)
    taken = await leases.take("dispatcher", a)
    assert taken == RoleRecord(namespace="", id="role/dispatcher", revision=1, holder="a", epoch=1, expire_time=0.0)
    assert await leases.take("dispatcher", b) is None
    assert (await leases.renew(b))[1].holder("dispatcher") == "a"
    other = await leases.take("reaper", b)
    assert other is not None
    await leases.leave(a)
    assert (await leases.renew(b))[1].holder("dispatcher") == ""
    mine = await leases.take("dispatcher", b)
    assert mine is not None
    assert (mine.holder, mine.epoch, mine.revision) == ("b", 2, 2)


async def test_a_role_given_up_is_anybodys_at_once_unless_it_is_anothers_already(leases: Leases) -> None:
    a, b = await leases.join("a", "", 1), await leases.join("b", "", 1)
    taken = await leases.take("dispatcher", a)
    assert taken is not None
    await leases.give_up(taken)
    mine = await leases.take("dispatcher", b)
    assert mine is not None
    await leases.give_up(taken)
    assert (await leases.renew(b))[1].holder("dispatcher") == "b"


async def test_one_that_was_expelled_takes_nothing(leases: Leases) -> None:
    a = await leases.join("a", "", 1)
    await leases.expel(a, gone=True)
    assert await leases.take("dispatcher", a) is None
    again = await leases.join("a", "", 2)
    assert await leases.take("dispatcher", a) is None
    assert await leases.take("dispatcher", again) is not None


async def test_of_many_who_want_a_role_at_once_one_gets_it(
    leases: Leases, timed: PostgresStore, new_store: Callable[..., PostgresStore], clock: ManualClock
) -> None:
    second = new_store(clock=ManualClock(START), now=clock.now)
    await second.open()
    for number in range(10):
        rows = [await leases.join(f"{number}-{name}", "", 1) for name in "ab"]
        both = ((leases, rows[0]), (second.leases, rows[1]))
        taken = await asyncio.gather(*(by.take(f"role{number}", row) for by, row in both))
        assert [each is None for each in taken].count(True) == 1


async def test_what_was_decided_under_a_role_stands_only_while_it_is_held(leases: Leases, timed: PostgresStore) -> None:
    a, b = await leases.join("a", "", 1), await leases.join("b", "", 1)
    old = await leases.take("dispatcher", a)
    assert old is not None
    under = ChangeSet(puts={task("a").ref: task("a")}, checks={old.ref: old.revision})
    assert await timed.commit([under]) == [COMMITTED]
    await leases.leave(a)
    await leases.take("dispatcher", b)
    late = ChangeSet(puts={task("b").ref: task("b")}, checks={old.ref: old.revision})
    assert await timed.commit([late, changing(task("c"))]) == [Conflicted((old.ref,)), COMMITTED]


async def test_without_a_clock_of_a_test_the_time_is_the_databases(store: PostgresStore) -> None:
    row = await store.leases.join("a", "", 1)
    renewed, roster = await store.leases.renew(row)
    assert abs(roster.now - SystemClock().now()) < 60
    assert renewed is not None
    assert renewed.expire_time == roster.now + SPAN
