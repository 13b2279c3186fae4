"""The memory store does what every store does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.ports import Store
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.testing.store_suite import Place, StoreSuite


class TestMemoryStore(StoreSuite):
    examples = 200

    @pytest.fixture
    def place(self) -> Place:
        def make(clock: ManualClock) -> Callable[[], Store]:
            store = MemoryStore(clock)
            return lambda: store

        return make


async def test_two_memory_stores_are_two_logs() -> None:
    first, second = MemoryStore(ManualClock()), MemoryStore(ManualClock())
    assert (await first.bounds()).log_id != (await second.bounds()).log_id
