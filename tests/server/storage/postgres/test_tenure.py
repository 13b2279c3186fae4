"""Replicas of one database: each knows who is there, one that is gone is replaced, and one that was replaced knows."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest
from agenthive_server.kernel.changes import COMMITTED
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.records import Kind, RoleRecord
from agenthive_server.storage.postgres.clock import DatabaseClock
from agenthive_server.storage.postgres.roles import RENEWED_EVERY, SPAN
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.store_model import changing, task
from agenthive_server.testing.waiting import eventually

NewStore = Callable[..., PostgresStore]


async def tick(clock: ManualClock, seconds: float) -> None:
    """Move a clock by small steps, each of which is seen."""
    for _ in range(round(seconds / 0.2)):
        await eventually(lambda: clock.next_wake is not None)
        clock.move(0.2)
        await settle()


async def test_two_replicas_know_each_other_and_both_commit(new_store: NewStore) -> None:
    one, two = new_store(), new_store()
    await one.open()
    await two.open()
    assert await one.commit([changing(task("a"))]) == [COMMITTED]
    assert await two.commit([changing(task("b"))]) == [COMMITTED]
    await eventually(lambda: set(one.tenure.roster.members()) == {one.tenure.me, two.tenure.me})
    assert one.tenure.there(two.tenure.me)
    assert two.tenure.there(one.tenure.me)
    assert not one.tenure.there("")


async def test_one_that_leaves_is_gone_at_once_and_its_role_is_free(new_store: NewStore) -> None:
    one, two = new_store(), new_store()
    await one.open()
    await two.open()
    role, other = one.tenure.role("dispatcher"), two.tenure.role("dispatcher")
    await role.acquire()
    waiting = asyncio.create_task(other.acquire())
    await eventually(lambda: two.tenure.roster.holder("dispatcher") == one.tenure.me)
    assert not waiting.done()
    await one.close()
    await asyncio.wait_for(waiting, 10)
    assert other.held
    assert not two.tenure.there(one.tenure.me)


async def test_a_role_is_given_over_without_leaving(new_store: NewStore) -> None:
    one, two = new_store(), new_store()
    await one.open()
    await two.open()
    role, other = one.tenure.role("plugin"), two.tenure.role("plugin")
    await role.acquire()
    await role.release()
    assert not role.held
    await asyncio.wait_for(other.acquire(), 10)
    assert other.held


async def test_one_that_slept_too_long_commits_nothing_joins_again_and_knows_all_anew(new_store: NewStore) -> None:
    asleep_clock, clock = ManualClock(1_000.0), ManualClock(1_000.0)
    asleep, other = new_store(clock=asleep_clock, now=clock.now), new_store(clock=clock, now=clock.now)
    # As on two machines, where nobody sees the other's processes.
    asleep.tenure.process, other.tenure.process = "1:there", "2:elsewhere"
    told: list[str] = []

    async def recover() -> None:
        told.append("recovers")

    async def caught_up() -> None:
        pass

    asleep.follow(
        caught_up=caught_up,
        went=lambda: told.append("away"),
        recover=recover,
        facts=str,
        came=lambda: told.append("is back"),
    )
    await asleep.open()
    await other.open()
    await asleep.commit([changing(task("a"))])
    role = asleep.tenure.role("dispatcher")
    await role.acquire()
    await tick(clock, SPAN + RENEWED_EVERY)
    await eventually(lambda: not other.tenure.there(asleep.tenure.me))
    with pytest.raises(StoreUnavailable, match="others have taken its work over"):
        await asleep.commit([changing(task("b"), events=1)])
    assert await other.commit([changing(task("c"))]) == [COMMITTED]
    asleep_clock.move(RENEWED_EVERY)
    await eventually(lambda: told == ["away"])
    assert not role.held
    with pytest.raises(StoreUnavailable, match="joining again"):
        await asleep.ping()
    asleep_clock.move(RENEWED_EVERY)
    await eventually(lambda: told == ["away", "recovers", "is back"] and not asleep.tenure.lost)
    assert await asleep.commit([changing(task("d"))]) == [COMMITTED]
    assert await other.get(Kind.TASK, [("default", name) for name in "abcd"]) == [
        task("a"),
        None,
        task("c"),
        task("d"),
    ]


async def test_one_that_was_expelled_joins_again_and_knows_all_anew_although_the_database_was_away_meanwhile(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep_clock, clock = ManualClock(1_000.0), ManualClock(1_000.0)
    asleep, other = new_store(clock=asleep_clock, now=clock.now), new_store(clock=clock, now=clock.now)
    asleep.tenure.process, other.tenure.process = "1:there", "2:elsewhere"
    told: list[str] = []

    async def recover() -> None:
        told.append("recovers")
        if told.count("recovers") == 1:
            raise StoreUnavailable("the connection was lost")

    async def caught_up() -> None:
        pass

    asleep.follow(caught_up=caught_up, went=lambda: told.append("away"), recover=recover, facts=str)
    await asleep.open()
    await other.open()
    await tick(clock, SPAN + RENEWED_EVERY)
    await eventually(lambda: not other.tenure.there(asleep.tenure.me))
    join = asleep.tenure._leases.join

    async def not_yet(*given: str | int) -> NoReturn:
        told.append("joins in vain")
        monkeypatch.setattr(asleep.tenure._leases, "join", join)
        raise StoreUnavailable("the database system is shutting down")

    monkeypatch.setattr(asleep.tenure._leases, "join", not_yet)
    # It wakes late: its row would have ended by now, were it there.
    asleep_clock.move(2 * SPAN)
    await eventually(lambda: told == ["away"])
    await tick(asleep_clock, 3 * RENEWED_EVERY)
    await eventually(lambda: not asleep.tenure.lost)
    assert told == ["away", "joins in vain", "recovers", "recovers"]
    assert await asleep.commit([changing(task("a"))]) == [COMMITTED]


class Recovering:
    """A replica that was expelled, and that is reading everything anew until it is told to go on."""

    def __init__(self, store: PostgresStore, other: PostgresStore, own_clock: ManualClock) -> None:
        self.store = store
        self.other = other
        self.own_clock = own_clock
        self.began = 0
        self.go_on = asyncio.Event()
        store.tenure.process, other.tenure.process = "1:there", "2:elsewhere"
        store.follow(caught_up=_nothing, went=lambda: None, recover=self._recover, facts=str)

    async def _recover(self) -> None:
        self.began += 1
        await self.go_on.wait()

    async def expel(self) -> None:
        """Have it replaced, as if its time were over."""
        row = (await self.other.get(Kind.ROLE, [("", f"replica/{self.store.tenure.me}")]))[0]
        assert isinstance(row, RoleRecord)
        assert await self.other.leases.expel(row, gone=True)

    async def live(self, seconds: float) -> None:
        """Let its time go on."""
        await tick(self.own_clock, seconds)


async def _nothing() -> None:
    pass


@pytest.fixture
async def recovering(new_store: NewStore) -> Recovering:
    own, clock = ManualClock(1_000.0), ManualClock(1_000.0)
    scene = Recovering(new_store(clock=own, now=clock.now), new_store(clock=ManualClock(1_000.0), now=clock.now), own)
    await scene.store.open()
    await scene.other.open()
    return scene


async def test_one_that_takes_long_to_know_all_anew_keeps_its_place_meanwhile(recovering: Recovering) -> None:
    store = recovering.store
    await recovering.expel()
    await recovering.live(2 * RENEWED_EVERY)
    await eventually(lambda: recovering.began == 1)
    looks = store.tenure._looks
    await recovering.live(3 * RENEWED_EVERY)
    await eventually(lambda: store.tenure._looks > looks + 1)
    assert store.tenure.lost
    with pytest.raises(StoreUnavailable):
        await store.commit([changing(task("early"))])
    recovering.go_on.set()
    await recovering.live(RENEWED_EVERY)
    await eventually(lambda: not store.tenure.lost)
    assert await store.commit([changing(task("a"))]) == [COMMITTED]
    assert recovering.began == 1


async def test_one_that_is_replaced_again_at_once_commits_nothing_until_it_is_there(recovering: Recovering) -> None:
    store, join = recovering.store, recovering.store.leases.join
    recovering.go_on.set()

    async def join_in_vain(replica: str, process: str, revision: int, facts: str = "") -> RoleRecord:
        row = await join(replica, process, revision, facts)
        await recovering.expel()
        return row

    store.leases.join = join_in_vain  # type: ignore[method-assign] # as if it had stood still there
    await recovering.expel()
    await recovering.live(3 * RENEWED_EVERY)
    with pytest.raises(StoreUnavailable):
        await store.commit([changing(task("a"))])
    assert store.tenure.lost
    store.leases.join = join  # type: ignore[method-assign] # as it was
    await recovering.live(3 * RENEWED_EVERY)
    await eventually(lambda: not store.tenure.lost)
    assert await store.commit([changing(task("b"))]) == [COMMITTED]


async def test_one_that_could_not_renew_in_time_but_was_not_replaced_goes_on(new_store: NewStore) -> None:
    clock = ManualClock(1_000.0)
    store = new_store(clock=clock, now=clock.now)
    await store.open()
    fence = store.tenure.fence
    clock.move(100 * SPAN)
    await eventually(lambda: (own := store.tenure.own) is not None and own.expire_time > 1_000.0 + 100 * SPAN)
    assert store.tenure.fence == fence
    assert await store.commit([changing(task("a"))]) == [COMMITTED]


async def test_a_defect_in_what_a_replica_tells_of_itself_costs_it_its_place_for_no_longer_than_it_lasts(
    new_store: NewStore,
) -> None:
    clock = ManualClock(1_000.0)
    store = new_store(clock=clock, now=clock.now)
    await store.open()
    told: list[str] = []
    store.tenure.went = lambda: told.append("away")

    def broken() -> str:
        raise LookupError("a defect")

    store.tenure.facts = broken
    await tick(clock, SPAN + 2 * RENEWED_EVERY)
    await eventually(lambda: told == ["away"])
    store.tenure.facts = str
    await tick(clock, 2 * RENEWED_EVERY)
    await eventually(lambda: not store.tenure.lost)
    assert await store.commit([changing(task("a"))]) == [COMMITTED]


async def test_a_servers_clock_follows_the_databases(new_store: NewStore) -> None:
    own, databases = ManualClock(5_000.0), ManualClock(1_000.0)
    clock = DatabaseClock(own)
    store = new_store(clock=clock, now=databases.now)
    await store.open()
    assert clock.now() == 1_000.0
    databases.move(8)
    own.move(RENEWED_EVERY)
    await eventually(lambda: clock.now() == 1_008.0)


async def test_without_a_database_one_is_away_and_closes_soon(distant: PostgresStore, network: object) -> None:
    told: list[str] = []
    distant.tenure.went, distant.tenure.came = lambda: told.append("away"), lambda: told.append("back")
    network.down = True  # type: ignore[attr-defined] # the network of this folder's conftest
    network.cut()  # type: ignore[attr-defined] # the network of this folder's conftest
    await eventually(lambda: bool(distant.tenure.lost))
    assert told == ["away"]
    assert "could not keep its place" in distant.writable
    network.down = False  # type: ignore[attr-defined] # the network of this folder's conftest
    await eventually(lambda: not distant.tenure.lost)
    assert told == ["away", "back"]
    network.down = True  # type: ignore[attr-defined] # the network of this folder's conftest
    network.cut()  # type: ignore[attr-defined] # the network of this folder's conftest
    async with asyncio.timeout(5):
        await distant.close()


async def test_a_database_that_says_nothing_is_noticed_when_the_row_ends(
    distant: PostgresStore, network: object
) -> None:
    away = asyncio.Event()
    distant.tenure.went = away.set
    began = asyncio.get_running_loop().time()
    network.mute()  # type: ignore[attr-defined] # the network of this folder's conftest
    await asyncio.wait_for(away.wait(), 30)
    # Not after the 15 seconds that any other question may take.
    assert asyncio.get_running_loop().time() - began < SPAN + 3 * RENEWED_EVERY + 2
    # Over new connections it is back.
    await eventually(lambda: not distant.tenure.lost)
    network.cut()  # type: ignore[attr-defined] # the network of this folder's conftest


_SERVER = """
import asyncio, sys
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.storage.postgres.store import PostgresStore

async def main():
    store = PostgresStore(sys.argv[1], clock=SystemClock())
    await store.open()
    await store.tenure.role("dispatcher").acquire()
    print("open", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("looked_after", [False, True])
def test_one_that_was_killed_on_this_machine_is_replaced_at_once(url: str, looked_after: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", _SERVER, url], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"open\n"
        server.kill()
        if looked_after:
            server.wait()
        # Else it is there still, and has ended all the same.
        asyncio.run(_takes_over_at_once(url))


async def _takes_over_at_once(url: str) -> None:
    # On a clock that stands still nobody waits.
    store = PostgresStore(url, clock=ManualClock())
    async with asyncio.timeout(20):
        await store.open()
        await store.tenure.role("dispatcher").acquire()
    await store.close()


@pytest.mark.parametrize("process", ["4194304:another boot/1", "4194304:", ""])
async def test_a_process_of_another_machine_is_not_taken_for_dead(new_store: NewStore, process: str) -> None:
    clock = ManualClock(1_000.0)
    held, other = new_store(clock=ManualClock(1_000.0), now=clock.now), new_store(clock=clock, now=clock.now)
    held.tenure.process = process
    await held.open()
    await other.open()
    await tick(clock, SPAN - 1)
    assert other.tenure.there(held.tenure.me)
    await tick(clock, 2)
    await eventually(lambda: not other.tenure.there(held.tenure.me))


async def test_to_wait_for_a_role_costs_the_database_nothing(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = new_store(), new_store()
    await one.open()
    await two.open()
    roles = [one.tenure.role(f"plugin/{number}") for number in range(20)]
    for role in roles:
        await role.acquire()
    await eventually(lambda: two.tenure.roster.holder("plugin/19") == one.tenure.me)
    asked: list[str] = []
    monkeypatch.setattr(two.tenure._leases, "take", lambda name, own: asked.append(name))
    waiting = [asyncio.create_task(two.tenure.role(role.name).acquire()) for role in roles]
    looks = two.tenure._looks
    await eventually(lambda: two.tenure._looks >= looks + 3)
    assert asked == []
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_whoever_has_a_role_is_told_when_it_is_lost_by_whatever_way(new_store: NewStore) -> None:
    store = new_store()
    await store.open()
    role, told = store.tenure.role("plugin/p"), list[str]()
    role.when_lost(lambda: told.append("lost"))
    await role.release()
    assert told == []
    for lose in (role.release, store.tenure.retire):
        await role.acquire()
        await lose()
        assert told.pop() == "lost"
        assert not role.held
