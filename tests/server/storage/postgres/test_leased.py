"""A role is taken once, when all is known, and nothing is committed under it once it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from agenthive_server.kernel.changes import COMMITTED, ChangeSet, Conflicted
from agenthive_server.kernel.decide import View
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.memory import Memory
from agenthive_server.kernel.records import Kind, RoleRecord
from agenthive_server.storage.postgres.leased import LeasedRole
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.store_model import task
from agenthive_server.testing.waiting import eventually

NewStore = Callable[..., PostgresStore]


@pytest.fixture
async def other(new_store: NewStore) -> PostgresStore:
    store = new_store()
    await store.open()
    return store


def under(role: LeasedRole, name: str) -> ChangeSet:
    """Return a change set that stands only under a role."""
    view = View(Memory(), {})
    role.check(view)
    view.put(task(name, revision=0))
    return view.changes


async def stored(store: PostgresStore) -> RoleRecord:
    row = (await store.get(Kind.ROLE, [("", "role/dispatcher")]))[0]
    assert isinstance(row, RoleRecord)
    return row


async def test_several_loops_that_want_a_role_take_it_once(store: PostgresStore) -> None:
    role = store.tenure.role("dispatcher")
    await asyncio.gather(*(role.acquire() for _ in range(5)))
    assert (await stored(store)).epoch == 1
    assert await store.commit([under(role, "a")]) == [COMMITTED]


async def test_it_is_held_only_once_everything_is_known(store: PostgresStore) -> None:
    gate = asyncio.Event()
    store.tenure.caught_up = _waits(gate)
    role = store.tenure.role("dispatcher")
    acquiring = asyncio.create_task(role.acquire())
    await eventually(lambda: store.tenure.roster.holder("dispatcher") == store.tenure.me)
    assert not role.held
    with pytest.raises(StoreUnavailable):
        under(role, "a")
    gate.set()
    await acquiring
    assert role.held


def _waits(gate: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def wait() -> None:
        await gate.wait()

    return wait


async def test_who_cannot_catch_up_tries_again(store: PostgresStore) -> None:
    fails = [StoreUnavailable("not now"), StoreUnavailable("not yet")]

    async def caught_up() -> None:
        if fails:
            raise fails.pop()

    store.tenure.caught_up = caught_up
    role = store.tenure.role("dispatcher")
    await asyncio.wait_for(role.acquire(), 10)
    assert not fails
    assert await store.commit([under(role, "a")]) == [COMMITTED]


async def test_one_that_is_lost_while_catching_up_is_not_taken(store: PostgresStore, other: PostgresStore) -> None:
    gate = asyncio.Event()
    store.tenure.caught_up = _waits(gate)
    role = store.tenure.role("dispatcher")
    acquiring = asyncio.create_task(role.acquire())
    await eventually(lambda: other.tenure.roster.holder("dispatcher") == store.tenure.me)
    assert await other.leases.expel(other.tenure.roster.members()[store.tenure.me], gone=True)
    await eventually(lambda: bool(store.tenure.lost))
    gate.set()
    await asyncio.sleep(0)
    # It has it under its next row, if the other did not come first.
    await asyncio.wait_for(acquiring, 10)
    assert not store.tenure.lost
    assert (await stored(store)).epoch > 1
    assert await store.commit([under(role, "a")]) == [COMMITTED]


async def test_what_was_decided_under_a_role_that_another_took_does_not_stand(
    store: PostgresStore, other: PostgresStore
) -> None:
    role, others = store.tenure.role("dispatcher"), other.tenure.role("dispatcher")
    lost: list[str] = []
    role.when_lost(lambda: lost.append("lost"))
    await role.acquire()
    late = under(role, "late")
    await role.release()
    await role.release()
    assert lost == ["lost"]
    await asyncio.wait_for(others.acquire(), 10)
    assert await store.commit([late]) == [Conflicted(((Kind.ROLE, ("", "role/dispatcher")),))]
    assert await other.commit([under(others, "a")]) == [COMMITTED]


async def test_giving_up_waiting_takes_nothing(store: PostgresStore, other: PostgresStore) -> None:
    role, others = store.tenure.role("dispatcher"), other.tenure.role("dispatcher")
    await role.acquire()
    waiting = asyncio.create_task(others.acquire())
    await eventually(lambda: other.tenure.roster.holder("dispatcher") == store.tenure.me)
    waiting.cancel()
    await asyncio.wait([waiting])
    await role.release()
    await eventually(lambda: other.tenure.roster.holder("dispatcher") == "")
    assert not others.held
    assert (await stored(store)).holder == ""
