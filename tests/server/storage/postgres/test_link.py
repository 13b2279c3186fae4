"""One connection for many: calls are finished, repeated where that is harmless, refused when all is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.kernel.errors import NotFound, StoreUnavailable
from agenthive_server.storage.postgres.dial import Connection, Dialer
from agenthive_server.storage.postgres.link import FIRST_REPLAN, Link, Links
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.waiting import eventually


@pytest.fixture
def dialer(postgres: PostgresServer) -> Dialer:
    return Dialer(postgres.url(), SystemClock())


@pytest.fixture
async def link(dialer: Dialer) -> AsyncIterator[Link]:
    link = Link(dialer, "test")
    link.start()
    yield link
    await link.stop()


async def one(db: Connection) -> int:
    row = await db.fetchrow("SELECT 1")
    assert row is not None
    return int(row[0])


async def pid(db: Connection) -> int:
    row = await db.fetchrow("SELECT pg_backend_pid()")
    assert row is not None
    return int(row[0])


async def nap(db: Connection) -> None:
    await db.execute("SELECT pg_sleep(60)")


async def test_a_connection_is_made_when_it_is_needed_and_kept(link: Link) -> None:
    assert not link.connected
    assert await link.call(pid) == await link.call(pid)
    assert link.connected


async def test_before_and_after_it_is_open_it_refuses(dialer: Dialer) -> None:
    link = Link(dialer, "test")
    with pytest.raises(StoreUnavailable, match="closed"):
        await link.call(one)
    link.post(one)
    link.start()
    assert await link.call(one) == 1
    await link.stop()
    await link.stop()
    with pytest.raises(StoreUnavailable, match="closed"):
        await link.call(one)


async def test_a_session_that_was_ended_meanwhile_is_replaced(link: Link, dialer: Dialer) -> None:
    first = await link.call(pid)
    other = await dialer.dial()
    await other.execute(f"SELECT pg_terminate_backend({first})")
    other.terminate()
    assert await link.call(pid) != first


async def test_a_session_that_is_ended_by_its_own_work_is_not_tried_for_ever(link: Link) -> None:
    with pytest.raises(StoreUnavailable, match="terminating connection"):
        await link.call(lambda db: db.execute("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert await link.call(one) == 1


async def test_what_is_called_is_finished_whoever_stops_waiting(link: Link) -> None:
    await link.call(lambda db: db.execute("CREATE TEMPORARY TABLE notes (n int)"))
    call = asyncio.create_task(
        link.call(lambda db: db.execute("INSERT INTO notes SELECT 1 FROM pg_sleep(0.1)")),
    )
    await eventually(link._lock.locked)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    row = await link.call(lambda db: db.fetchrow("SELECT count(*) FROM notes"))
    assert row is not None
    assert row[0] == 1


async def test_what_is_posted_is_done_before_the_link_closes(dialer: Dialer, caplog: pytest.LogCaptureFixture) -> None:
    link = Link(dialer, "test")
    link.start()
    done: list[int] = []

    async def work(db: Connection) -> None:
        done.append(await one(db))

    link.post(work)
    link.post(lambda db: db.execute("SELECT 1 / 0"))
    await asyncio.sleep(0)
    await link.stop()
    assert done == [1]
    assert "store_housekeeping_failed" in caplog.text


async def test_a_database_that_does_not_answer_is_given_up(link: Link) -> None:
    with pytest.raises(StoreUnavailable, match="did not answer in time"):
        await link.call(nap, limit=0.05)
    assert await link.call(one) == 1


async def test_an_error_of_the_work_itself_is_passed_on_and_costs_no_connection(link: Link) -> None:
    before = await link.call(pid)

    async def work(db: Connection) -> None:
        raise NotFound("nothing here")

    with pytest.raises(NotFound):
        await link.call(work)
    with pytest.raises(StoreUnavailable, match="22012"):
        await link.call(lambda db: db.execute("SELECT 1 / 0"))
    assert await link.call(pid) == before


async def test_statements_are_planned_anew_so_that_tables_may_grow(link: Link) -> None:
    async def plan(db: Connection) -> str:
        return "\n".join([str(row[0]) for row in await db.fetch("EXPLAIN EXECUTE find(1)")])

    await link.call(lambda db: db.execute("SET plan_cache_mode = force_generic_plan"))
    await link.call(lambda db: db.execute("CREATE TEMPORARY TABLE notes (n int PRIMARY KEY, t text)"))
    await link.call(lambda db: db.execute("INSERT INTO notes VALUES (1, ''); ANALYZE notes"))
    await link.call(lambda db: db.execute("PREPARE find (int) AS SELECT * FROM notes WHERE n = $1"))
    assert "Seq Scan" in await link.call(plan)
    await link.call(lambda db: db.execute("INSERT INTO notes SELECT n, '' FROM generate_series(2, 50000) AS n"))
    plans = [await link.call(plan) for _ in range(FIRST_REPLAN)]
    assert "Index" in plans[-1]


async def test_links_are_used_side_by_side_and_no_more_than_needed(dialer: Dialer) -> None:
    links = Links(dialer, "test", 3)
    links.start()
    for _ in range(5):
        await links.call(one)
    assert sum(link.connected for link in links._links) == 1
    both = [asyncio.create_task(links.call(lambda db: db.execute("SELECT pg_sleep(0.05)"))) for _ in range(6)]
    await asyncio.gather(*both)
    assert sum(link.connected for link in links._links) == 3
    await links.stop()
    with pytest.raises(StoreUnavailable, match="closed"):
        await links.call(one)


async def test_a_link_is_free_again_after_a_failure_and_a_cancel(dialer: Dialer) -> None:
    links = Links(dialer, "test", 1)
    links.start()
    with pytest.raises(StoreUnavailable):
        await links.call(lambda db: db.execute("SELECT 1 / 0"))
    waiting = asyncio.create_task(links.call(lambda db: db.execute("SELECT pg_sleep(0.05)")))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await links.call(one) == 1
    await links.stop()
