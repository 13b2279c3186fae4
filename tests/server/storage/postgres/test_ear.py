"""An ear hears of every commit with events, and says when it has gone deaf."""

from __future__ import annotations

from typing import Any

import pytest
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.store_model import changing, task
from agenthive_server.testing.waiting import eventually


async def test_it_hears_of_commits_with_events_once_each(store: PostgresStore) -> None:
    heard: list[int] = []
    ear = await store.listen(heard.append)
    assert await ear.look() == 0
    await store.commit([changing(task("a"), events=2), changing(events=1)])
    await store.commit([changing(task("b"))])
    await store.commit([changing(task("a"), events=5)])
    await store.commit([changing(events=1)])
    await eventually(lambda: len(heard) >= 2)
    assert heard == [3, 4]
    assert await ear.look() == 4
    ear.close()
    await store.commit([changing(events=1)])
    assert heard == [3, 4]


async def test_an_ear_whose_connection_is_gone_says_so(distant: PostgresStore, network: Any) -> None:
    ear = await distant.listen(lambda _: None)
    network.down = True
    network.cut()
    with pytest.raises(StoreUnavailable):
        await ear.look()
    ear.close()
    with pytest.raises(StoreUnavailable):
        await distant.listen(lambda _: None)
