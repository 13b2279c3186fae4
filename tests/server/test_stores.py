"""The store the settings ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.lifecycle import StartError
from agenthive_server.settings import load
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.stores import build_archive, migrate, open_store


def test_each_url_has_its_store(tmp_path: Path) -> None:
    clock = ManualClock()
    memory = load(flags={"server.store": "memory:"}, environ={})
    assert isinstance(open_store(memory, clock), MemoryStore)
    assert "anew every time" in migrate(memory)
    here = load(flags={"server.store": f"sqlite:///{tmp_path}/x.db"}, environ={})
    store = open_store(here, clock)
    assert isinstance(store, SqliteStore)
    assert build_archive(here, store, clock, "1") is None
    with pytest.raises(StartError, match=r"expected sqlite:///PATH or memory:"):
        open_store(load(flags={"server.store": "mysql://x"}, environ={}), clock)


def test_what_is_only_in_memory_cannot_be_archived(tmp_path: Path) -> None:
    settings = load(flags={"server.store": "memory:", "server.archive_dir": str(tmp_path)}, environ={})
    clock = ManualClock()
    with pytest.raises(StartError, match="cannot be archived"):
        build_archive(settings, open_store(settings, clock), clock, "1")
