"""The SQLite store does what every store does, and what only a file can."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.ports import Store
from agenthive_server.storage.database import Synchronous
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.testing.store_suite import Place, StoreSuite


def place_in(folder: Path, synchronous: Synchronous) -> Place:
    count = itertools.count()

    def make(clock: ManualClock) -> Callable[[], Store]:
        path = folder / f"{next(count)}" / "hive.db"
        return lambda: SqliteStore(path, clock=clock, synchronous=synchronous)

    return make


class TestSqliteStore(StoreSuite):
    examples = 30

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return place_in(tmp_path, "FULL")


class TestSqliteStoreWithNormalSync(StoreSuite):
    examples = 30

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return place_in(tmp_path, "NORMAL")
