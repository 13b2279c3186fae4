"""The PostgreSQL store does what every store does."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.ports import Store
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.store_suite import Place, StoreSuite

_SCHEMAS = itertools.count()


def place_in(server: PostgresServer) -> Place:
    def make(clock: ManualClock) -> Callable[[], Store]:
        url = server.url(f"suite{next(_SCHEMAS)}")
        return lambda: PostgresStore(url, clock=clock, now=clock.now)

    return make


class TestPostgresStore(StoreSuite):
    examples = 25

    @pytest.fixture
    def place(self, postgres: PostgresServer) -> Place:
        return place_in(postgres)
