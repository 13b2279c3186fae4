"""A commit whose outcome is not known is looked up before anyone is answered."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from agenthive_server.kernel.changes import COMMITTED, Conflicted
from agenthive_server.kernel.errors import OutcomeUnknown, StoreUnavailable
from agenthive_server.kernel.records import Kind
from agenthive_server.storage.postgres.draft import Draft
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.store_model import changing, task
from agenthive_server.testing.waiting import eventually


async def there(store: PostgresStore, *names: str) -> list[bool]:
    return [record is not None for record in await store.get(Kind.TASK, [("default", name) for name in names])]


async def test_a_commit_whose_answer_is_lost_is_looked_up_and_told(distant: PostgresStore, network: Any) -> None:
    network.commits = ["unanswered"]
    group = [changing(task("a"), events=2), changing(task("a"), events=1)]
    assert await distant.commit(group) == [COMMITTED, Conflicted((task("a").ref,))]
    assert [event.sequence for event in group[0].events] == [1, 2]
    assert await distant.commit([changing(task("b"), events=1)]) == [COMMITTED]
    assert [event.sequence for event in await distant.read_events(0, 10)] == [1, 2, 3]
    assert distant.writable == ""


async def test_a_commit_that_never_arrived_is_looked_up_and_told(distant: PostgresStore, network: Any) -> None:
    network.commits = ["lost"]
    with pytest.raises(StoreUnavailable):
        await distant.commit([changing(task("a"), events=1)])
    assert "database failed" in distant.writable
    assert await distant.commit([changing(task("b"), events=1)]) == [COMMITTED]
    assert await there(distant, "a", "b") == [False, True]
    assert (await distant.bounds()).head == 1
    assert distant.writable == ""


async def test_a_commit_that_may_still_come_is_waited_for_until_the_database_ends_its_session(
    distant: PostgresStore, network: Any
) -> None:
    network.commits = ["stuck"]
    commit = asyncio.create_task(distant.commit([changing(task("a"), events=1)]))
    await eventually(lambda: "has not finished" in distant.writable)
    assert not commit.done()
    with pytest.raises(StoreUnavailable):
        await commit
    assert await distant.commit([changing(task("b"), events=1)]) == [COMMITTED]
    assert await there(distant, "a", "b") == [False, True]


async def test_a_store_that_is_closed_in_doubt_says_so(distant: PostgresStore, network: Any) -> None:
    await distant.commit([changing(task("before"))])
    network.commits, network.down = ["unanswered"], True
    commit = asyncio.create_task(distant.commit([changing(task("a"))]))
    await eventually(lambda: distant.writable != "")
    await distant.close()
    with pytest.raises(OutcomeUnknown):
        await commit


async def test_giving_up_ends_the_looking_up(distant: PostgresStore, network: Any) -> None:
    await distant.commit([changing(task("before"))])
    network.commits, network.down = ["unanswered"], True
    commit = asyncio.create_task(distant.commit([changing(task("a"))]))
    await eventually(lambda: distant.in_doubt != "")
    distant.give_up()
    with pytest.raises(OutcomeUnknown):
        await commit
    assert distant.in_doubt == ""


async def test_nobody_is_answered_while_the_database_cannot_be_asked(distant: PostgresStore, network: Any) -> None:
    await distant.commit([changing(task("before"))])
    network.commits, network.down = ["unanswered"], True
    commit = asyncio.create_task(distant.commit([changing(task("a"), events=1)]))
    await eventually(lambda: "cannot be reached" in distant.writable)
    assert not commit.done()
    network.down = False
    assert await commit == [COMMITTED]


async def test_many_spoiled_commits_come_to_exactly_what_was_told(distant: PostgresStore, network: Any) -> None:
    network.commits = ["unanswered", "lost", "lost", "unanswered", "unanswered"]
    told = {}
    for number in range(8):
        try:
            told[f"t{number}"] = await distant.commit([changing(task(f"t{number}"), events=1)]) == [COMMITTED]
        except StoreUnavailable:
            told[f"t{number}"] = False
    assert sorted(told.values()) == [False, False, *[True] * 6]
    assert await there(distant, *told) == list(told.values())
    assert [event.sequence for event in await distant.read_events(0, 99)] == list(range(1, 7))


async def test_a_transaction_the_database_has_never_heard_of_was_not_committed(store: PostgresStore) -> None:
    """As after a failover to a standby that lacks it."""
    await store.commit([changing(task("a"), events=1)])
    draft = Draft(transaction=str(2**40 + 999), group_count=1, log_id=store._writer.log_id)
    assert await store._writer._doubt.settle(draft, ConnectionResetError()) is False


async def test_another_database_with_a_transaction_by_that_id_is_not_believed(store: PostgresStore) -> None:
    await store.commit([changing(task("a"), events=1)])
    row = await store._keeper.call(
        lambda db: db.fetchrow("SELECT task.xmin::text, change.time, change.touched FROM task, change")
    )
    assert row is not None
    known = Draft(
        transaction=row[0], group_count=1, log_id=store._writer.log_id, time=float(row[1]), touched=bytes(row[2])
    )
    settle = store._writer._doubt.settle
    assert await settle(known, ConnectionResetError()) is True
    assert await settle(replace(known, log_id="another"), ConnectionResetError()) is False
    assert await settle(replace(known, group_count=2), ConnectionResetError()) is False
    # A database that was killed gave the id, and the number of the group, to another replica's.
    assert await settle(replace(known, time=known.time - 1), ConnectionResetError()) is False
    assert await settle(replace(known, touched=b"others"), ConnectionResetError()) is False
    # What it kept of groups that long ago it has forgotten; then the id has to do.
    await store._keeper.call(lambda db: db.execute("DELETE FROM change"))
    assert await settle(known, ConnectionResetError()) is True
