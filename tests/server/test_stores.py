"""The store the settings ask for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from agenthive_server.events.output import OutputHub
from agenthive_server.events.postgres import PostgresNotifier
from agenthive_server.events.redis.notifier import RedisNotifier
from agenthive_server.kernel.clock import ManualClock, SystemClock
from agenthive_server.lifecycle import StartError
from agenthive_server.settings import SettingsError, database_path, load
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.storage.postgres.clock import DatabaseClock
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.stores import build_archive, build_clock, build_listener, build_sharing, migrate, open_store
from agenthive_server.testing.postgres import PostgresServer


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


def test_a_database_url_has_its_store_and_its_clock(tmp_path: Path) -> None:
    url = "postgresql://hive:secret@127.0.0.1:1/hive"
    settings = load(flags={"server.store": url}, environ={})
    clock = build_clock(settings)
    assert isinstance(clock, DatabaseClock)
    assert isinstance(build_clock(load(flags={}, environ={})), SystemClock)
    store = open_store(settings, clock)
    assert isinstance(store, PostgresStore)
    assert isinstance(build_listener(store, clock, print, None), PostgresNotifier)
    with pytest.raises(StartError, match="cannot be opened") as caught:
        migrate(settings)
    assert "secret" not in str(caught.value)
    with pytest.raises(SettingsError, match="tools of its own for copies") as told:
        database_path(settings)
    assert "secret" not in str(told.value)
    archived = load(flags={"server.store": url, "server.archive_dir": str(tmp_path)}, environ={})
    with pytest.raises(StartError, match="archives its own log"):
        build_archive(archived, open_store(archived, clock), clock, "1")


def test_a_database_is_made_by_migrate_and_found_up_to_date(postgres: PostgresServer) -> None:
    settings = load(flags={"server.store": postgres.url("by_hand")}, environ={})
    for _ in range(2):
        assert migrate(settings) == f"postgresql://127.0.0.1:{postgres.port}/postgres is up to date"


_WITHOUT = """
import sys
sys.modules["asyncpg"] = None
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.lifecycle import StartError
from agenthive_server.settings import load
from agenthive_server.stores import migrate, open_store
settings = load(flags={"server.store": "postgresql://h/d"}, environ={})
for ask in (lambda: open_store(settings, SystemClock()), lambda: migrate(settings)):
    try:
        ask()
    except StartError as error:
        print(error)
"""


def test_without_the_driver_one_is_told_how_to_get_it() -> None:
    told = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.count("needs the package asyncpg: pip install 'agenthive[postgres]'") == 2


_WITHOUT_REDIS = """
import sys
sys.modules["redis.asyncio.connection"] = None
from agenthive_server.app import App
from agenthive_server.lifecycle import StartError
from agenthive_server.settings import load
try:
    App(load(flags={"server.store": "postgresql://h/d", "server.redis": "redis://h"}, environ={}))
except StartError as error:
    print(error)
"""


def test_without_the_package_of_redis_one_is_told_how_to_get_it() -> None:
    command = [sys.executable, "-c", _WITHOUT_REDIS]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "Redis needs the package redis" in told.stdout
    assert "pip install 'agenthive[redis]'" in told.stdout


def test_with_redis_servers_tell_each_other_and_the_database_does_not() -> None:
    clock = ManualClock()
    flags = {"server.store": "postgresql://h/d", "server.redis": "redis://:secret@h:1/0"}
    settings = load(flags=flags, environ={})
    hub = OutputHub(clock)
    sharing = build_sharing(settings, clock, hub, "one")
    assert hub.exchange is not None
    store = open_store(settings, clock)
    assert isinstance(store, PostgresStore)
    assert isinstance(build_listener(store, clock, print, sharing), RedisNotifier)
    assert build_sharing(load(environ={}), clock, hub, "one") is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://:secret@h:port/0", "Port could not be cast"),
        ("redis://:secret@h/first", "/first: expected the number of a database"),
        ("redis://:secret@h/0?what=1", "what"),
        ("redis://:secret@h/0?socket_timeout=soon", "socket_timeout"),
    ],
)
def test_a_redis_url_that_cannot_be_understood_is_a_sentence(url: str, why: str) -> None:
    clock = ManualClock()
    settings = load(flags={"server.store": "postgresql://h/d", "server.redis": url}, environ={})
    with pytest.raises(StartError, match=why) as caught:
        build_sharing(settings, clock, OutputHub(clock), "one")
    assert "secret" not in str(caught.value)
    assert "***" in str(caught.value)


_BASE = """
import asyncio, sys
from agenthive_server.app import App
from agenthive_server.settings import load

async def main():
    app = App(load(flags={"server.listen": "127.0.0.1:0", "server.data_dir": sys.argv[1]}, environ={}))
    await app.open()
    await app.close()

asyncio.run(main())
loaded = [name for name in sys.modules if name.startswith(("asyncpg", "sqlalchemy.dialects.postgresql", "greenlet"))]
loaded += [name for name in sys.modules if name.startswith("agenthive_server.storage.postgres.")]
loaded += [name for name in sys.modules if "redis" in name or name == "agenthive_server.sharing"]
assert not loaded, loaded
"""


def test_a_server_on_sqlite_loads_nothing_of_postgresql_or_redis(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _BASE, str(tmp_path)], check=True, timeout=60)


def test_what_is_only_in_memory_cannot_be_archived(tmp_path: Path) -> None:
    settings = load(flags={"server.store": "memory:", "server.archive_dir": str(tmp_path)}, environ={})
    clock = ManualClock()
    with pytest.raises(StartError, match="cannot be archived"):
        build_archive(settings, open_store(settings, clock), clock, "1")
