"""A group stands or falls as its rows say, whatever becomes of the connection on which it is committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agenthive_server.kernel.changes import COMMITTED, ChangeSet, Conflicted, Rejected
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.records import Kind
from agenthive_server.storage.postgres import statements
from agenthive_server.storage.postgres.dial import Connection
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.store_model import changing, task
from agenthive_server.testing.waiting import eventually


async def there(store: PostgresStore, *names: str) -> list[bool]:
    return [record is not None for record in await store.get(Kind.TASK, [("default", name) for name in names])]


# Connections that are lost otherwise


async def test_a_connection_that_was_lost_in_between_is_nobodys_business(distant: PostgresStore, network: Any) -> None:
    await distant.commit([changing(task("a"))])
    network.cut()
    assert await distant.commit([changing(task("b"))]) == [COMMITTED]
    network.cut()
    assert await there(distant, "a", "b") == [True, True]


async def test_without_a_database_commits_and_questions_fail_at_once_and_go_on_with_it(
    distant: PostgresStore, network: Any
) -> None:
    network.down = True
    network.cut()
    for work in (distant.commit([changing(task("a"))]), distant.ping(), distant.bounds(), distant.scan(Kind.TASK)):
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await work
    assert "cannot be reached" in distant.writable
    network.down = False

    async def again() -> bool:
        try:
            return await distant.commit([changing(task("b"))]) == [COMMITTED]
        except StoreUnavailable:
            return False

    await eventually(again)
    assert distant.writable == ""


async def test_the_head_is_free_again_when_who_held_it_stalls(store: PostgresStore) -> None:
    stalled = await store._dialer.dial()
    await stalled.execute(statements.BEGIN)
    clock = SystemClock()
    began = clock.monotonic()
    assert await store.commit([changing(task("a"), events=1)]) == [COMMITTED]
    assert 0.5 < clock.monotonic() - began < 8
    await eventually(stalled.is_closed)


async def test_a_commit_that_waits_too_long_for_the_head_has_changed_nothing(
    store: PostgresStore, admin: Connection, schema: str
) -> None:
    await admin.execute(f"ALTER ROLE hive SET statement_timeout = '10s'; {statements.BEGIN}")
    connection = await store._writing.connection()
    await connection.execute("SET statement_timeout = '100ms'")
    with pytest.raises(StoreUnavailable, match="57014"):
        await store.commit([changing(task("a"))])
    await admin.execute("ROLLBACK")
    assert await store.commit([changing(task("b"))]) == [COMMITTED]
    assert await there(store, "a", "b") == [False, True]


# What the database refuses


async def test_of_a_group_only_those_are_refused_whose_data_the_database_refuses(store: PostgresStore) -> None:
    long_id = "".join(f"{number:x}" for number in range(8_000))
    group = [
        changing(task("a"), events=1),
        changing(task("nul", labels={"a": "\x00"}), events=1),
        changing(task("lone", role="\ud800"), events=1),
        changing(task("a", revision=2), task("b"), events=2),
        changing(task(long_id), events=1),
        changing(task("odd", title=object()), events=1),
        changing(task("a"), events=1),
        ChangeSet(checks={task("b").ref: 1}),
        changing(task("c"), events=1),
    ]
    outcomes = await store.commit(group)
    refused = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, Rejected)]
    assert refused == [1, 2, 4, 5]
    assert outcomes[6] == Conflicted((task("a").ref,))
    assert [outcomes[number] for number in (0, 3, 7, 8)] == [COMMITTED] * 4
    assert await there(store, "a", "b", "c", "nul", "lone", "odd") == [True] * 3 + [False] * 3
    assert [event.sequence for event in await store.read_events(0, 99)] == [1, 2, 3, 4]
    assert [event.sequence for event in group[3].events] == [2, 3]
    assert store.writable == ""


async def test_a_group_of_which_nothing_can_be_stored_leaves_no_trace(store: PostgresStore) -> None:
    outcomes = await store.commit([changing(task("\x00"), events=1)])
    assert [type(outcome) for outcome in outcomes] == [Rejected]
    assert (await store.bounds()).head == 0
    assert await store.scan(Kind.TASK) == []


async def test_a_database_that_has_forgotten_commits_is_not_written_any_more(
    store: PostgresStore, admin: Connection, new_store: Callable[..., PostgresStore]
) -> None:
    await store.commit([changing(task("a"), events=1)])
    await store.commit([changing(task("b"), events=1)])
    await admin.execute("UPDATE meta SET group_count = group_count - 1; DELETE FROM change WHERE group_count = 2")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="start the server again"):
            await store.commit([changing(task("c"))])
    assert await there(store, "c") == [False]
    await store.close()
    again = new_store()
    await again.open()
    assert await again.commit([changing(task("c"))]) == [COMMITTED]


async def test_a_database_without_its_head_is_not_written(store: PostgresStore, admin: Connection) -> None:
    await admin.execute("DELETE FROM meta")
    with pytest.raises(StoreUnavailable, match="start the server again"):
        await store.commit([changing(task("a"), events=1)])


async def test_groups_of_every_make_are_written_by_few_statements(store: PostgresStore, admin: Connection) -> None:
    connection = await store._writing.connection()
    await store.commit([changing(task("a"))])
    row = await connection.fetchrow("SELECT count(*) FROM pg_prepared_statements")
    before = row[0] if row else 0
    for number in range(20):
        await store.commit([changing(task(f"b{number}-{n}")) for n in range(number + 1)])
    row = await connection.fetchrow("SELECT count(*) FROM pg_prepared_statements")
    assert row is not None
    assert row[0] <= before + 1
