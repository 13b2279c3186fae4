"""One server at a time writes to a database; the next may when it is gone, and one that was replaced may not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable

import pytest
from agenthive_server.kernel.changes import COMMITTED
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.ports import StoreUnusable
from agenthive_server.kernel.records import Kind, RoleRecord
from agenthive_server.storage.postgres.clock import DatabaseClock
from agenthive_server.storage.postgres.roles import RENEWED_EVERY, SPAN
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.store_model import changing, task
from agenthive_server.testing.waiting import eventually

NewStore = Callable[..., PostgresStore]


def gone(store: PostgresStore) -> None:
    """What is left of a server that was killed: its lease."""
    assert store.tenure._renewing is not None
    store.tenure._renewing.cancel()
    store.tenure._role = None


async def advance_until(clock: ManualClock, what: asyncio.Task[None]) -> float:
    """Move the clock by small steps until something is done; returns by how much."""
    moved = 0.0
    while not what.done():
        await eventually(lambda: what.done() or clock.next_wake is not None)
        if not what.done():
            clock.move(0.25)
            moved += 0.25
            await settle()
    return moved


async def test_a_second_server_is_refused_and_the_first_goes_on(store: PostgresStore, new_store: NewStore) -> None:
    second = new_store()
    with pytest.raises(StoreUnusable, match=r"postgresql://127.0.0.1:\d+/postgres: the database is in use by another"):
        await second.open()
    assert await store.commit([changing(task("a"))]) == [COMMITTED]
    with pytest.raises(StoreUnavailable, match="closed"):
        await second.commit([changing(task("b"))])


async def test_a_server_that_was_stopped_leaves_its_place_at_once(store: PostgresStore, new_store: NewStore) -> None:
    await store.commit([changing(task("a"))])
    await store.close()
    clock = ManualClock()
    again = new_store(clock=clock)
    # On a clock that stands still nobody waits.
    await again.open()
    assert await again.commit([changing(task("b"))]) == [COMMITTED]


async def test_the_place_of_a_server_that_was_killed_is_free_when_its_lease_has_ended(
    new_store: NewStore,
) -> None:
    clock = ManualClock(1_000.0)
    killed = new_store(clock=clock, now=clock.now)
    await killed.open()
    gone(killed)
    again = new_store(clock=clock, now=clock.now)
    opening = asyncio.create_task(again.open())
    moved = await advance_until(clock, opening)
    await opening
    assert SPAN <= moved < 2 * SPAN
    assert await again.commit([changing(task("b"))]) == [COMMITTED]


async def test_a_server_that_was_replaced_commits_nothing_and_says_so(new_store: NewStore) -> None:
    clock = ManualClock(1_000.0)
    asleep = new_store(clock=clock, now=clock.now)
    await asleep.open()
    await asleep.commit([changing(task("a"))])
    # Its time stands still, as that of a process that is suspended; that of the database goes on.
    late = ManualClock(2_000.0)
    second = new_store(clock=late, now=late.now)
    await second.open()
    with pytest.raises(StoreUnavailable, match="taken over"):
        await asleep.commit([changing(task("b"), events=1)])
    assert "taken over" in asleep.writable
    assert await second.commit([changing(task("c"))]) == [COMMITTED]
    assert await second.get(Kind.TASK, [("default", name) for name in "abc"]) == [task("a"), None, task("c")]
    clock.move(RENEWED_EVERY)
    assert "taken over" in await asleep.replaced()
    with pytest.raises(StoreUnavailable, match="start this one again"):
        await asleep.ping()
    await asleep.close()
    # It gave up nothing that is not its own.
    assert await second.commit([changing(task("d"))]) == [COMMITTED]


async def test_a_lease_that_could_not_be_renewed_for_long_is_held_on(new_store: NewStore) -> None:
    clock = ManualClock(1_000.0)
    store = new_store(clock=clock, now=clock.now)
    await store.open()
    clock.move(100 * SPAN)
    (role,) = await store.scan(Kind.ROLE)
    await eventually(lambda: _renewed(store, 1_000.0 + 100 * SPAN))
    assert (await store.scan(Kind.ROLE))[0].revision == role.revision
    assert await store.commit([changing(task("a"))]) == [COMMITTED]


async def _renewed(store: PostgresStore, since: float) -> bool:
    (role,) = await store.scan(Kind.ROLE)
    return bool(getattr(role, "expire_time", 0.0) > since)


async def test_a_servers_clock_follows_the_databases(new_store: NewStore) -> None:
    own, databases = ManualClock(5_000.0), ManualClock(1_000.0)
    clock = DatabaseClock(own)
    store = new_store(clock=clock, now=databases.now)
    await store.open()
    assert clock.now() == 1_000.0
    databases.move(8)
    own.move(RENEWED_EVERY)
    await eventually(lambda: clock.now() == 1_008.0)


async def test_without_a_database_a_store_closes_soon(distant: PostgresStore, network: object) -> None:
    network.down = True  # type: ignore[attr-defined] # the network of this folder's conftest
    network.cut()  # type: ignore[attr-defined] # the network of this folder's conftest
    async with asyncio.timeout(5):
        await distant.close()


_SERVER = """
import asyncio, sys
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.storage.postgres.store import PostgresStore

async def main():
    await PostgresStore(sys.argv[1], clock=SystemClock()).open()
    print("open", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("looked_after", [False, True])
def test_a_server_killed_on_this_machine_is_replaced_at_once(url: str, looked_after: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", _SERVER, url], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"open\n"
        server.kill()
        if looked_after:
            server.wait()
        # Else it is there still, and has ended all the same.
        asyncio.run(_opens_at_once(url))


async def _opens_at_once(url: str) -> None:
    # On a clock that stands still nobody waits.
    store = PostgresStore(url, clock=ManualClock())
    async with asyncio.timeout(20):
        await store.open()
    await store.close()


@pytest.mark.parametrize("place", ["", "another boot/1", None])
async def test_a_process_of_another_machine_or_one_that_lives_is_not_taken_for_dead(
    new_store: NewStore, place: str | None
) -> None:
    held = new_store(clock=ManualClock(1_000.0), now=lambda: 1_000.0)
    await held.open()
    host, pid, own, name = held.tenure.holder.split(":")
    if place is not None:
        # The process may be gone here; it never was here.
        pid, own = "4194304", place
    gone(held)
    (role,) = await held.scan(Kind.ROLE)
    assert isinstance(role, RoleRecord)
    left = role.evolve(holder=f"{host}:{pid}:{own}:{name}", revision=role.revision + 1)
    assert await held.leases._link.call(lambda db: held.leases._put(db, left, role.revision))
    clock = ManualClock(1_000.0)
    second = new_store(clock=clock, now=clock.now)
    opening = asyncio.create_task(second.open())
    assert await advance_until(clock, opening) >= SPAN
    await opening
