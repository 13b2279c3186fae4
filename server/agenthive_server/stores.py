"""The store and the archive the settings ask for; bringing a database up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from agenthive_server.kernel.clock import Clock, SystemClock
from agenthive_server.kernel.health import Reading
from agenthive_server.kernel.ports import Feed, Store, StoreUnusable
from agenthive_server.kernel.replicas import Replicas, Roll
from agenthive_server.lifecycle import StartError
from agenthive_server.settings import Settings, SettingsError, database_path
from agenthive_server.storage.address import is_postgres, masked, shown

if TYPE_CHECKING:
    from agenthive_server.events.output import OutputHub
    from agenthive_server.events.postgres import Ear
    from agenthive_server.sharing import Sharing
    from agenthive_server.storage.backup.archive import Archive


def open_store(settings: Settings, clock: Clock) -> Store:
    """Return the store the settings name, not opened yet. Raises `StartError` for a URL of no known kind."""
    if is_postgres(settings.server.store):
        with _postgres_extra():
            from agenthive_server.storage.postgres.store import PostgresStore

        return PostgresStore(settings.server.store, clock=clock, notifies=not settings.server.redis)
    path = _database_path(settings)
    if path is None:
        from agenthive_server.storage.memory import MemoryStore

        return MemoryStore(clock)
    from agenthive_server.storage.sqlite import SqliteStore

    return SqliteStore(path, clock=clock, synchronous=settings.server.synchronous)


class Tenure(Replicas, Protocol):
    """The replicas, and the place of this one among them."""

    lost: str
    """Why this one must not act at present; empty while all is well."""
    expelled: list[tuple[str, float]]
    """The last replicas this one found to be gone, and when, in the order of time."""
    expelled_count: int
    rejoined_count: int

    @property
    def retired(self) -> bool:
        """Whether this one is about to stop."""

    def roll(self) -> Roll:
        """Return all replicas as they were last read."""


@runtime_checkable
class Shared(Feed, Protocol):
    """A store in a database that other replicas write as well."""

    @property
    def tenure(self) -> Tenure:
        """The replicas."""

    def follow(
        self,
        *,
        caught_up: Callable[[], Awaitable[None]],
        went: Callable[[], None],
        recover: Callable[[], Awaitable[None]],
        facts: Callable[[], str],
        came: Callable[[], None] = lambda: None,
    ) -> None:
        """Name who takes part; see `storage.postgres.store`."""

    async def listen(self, heard: Callable[[int], None]) -> Ear:
        """Call back with the head of the log after every commit, whoever made it."""


class Listener(Protocol):
    """Rings when anybody has committed to a store, and lets the others know when this server has."""

    async def run(self) -> None:
        """Listen until cancelled; go on by looking while that is not possible."""

    def announce(self, head: int) -> None:
        """Let the others know how far the log reaches. Returns at once and never fails."""

    def probe(self) -> list[tuple[str, Reading]]:
        """Return a reading: DEGRADED while readers are woken by a look a second only."""


def build_listener(store: Shared, clock: Clock, ring: Callable[[int], None], sharing: Sharing | None) -> Listener:
    """Return what rings when anybody has committed to a store that others reach as well."""

    async def head() -> int:
        return (await store.position())[1]

    if sharing is not None:
        return sharing.notifier(head, ring)
    from agenthive_server.events.postgres import PostgresNotifier

    return PostgresNotifier(store.listen, head, ring, clock)


def build_sharing(settings: Settings, clock: Clock, hub: OutputHub, server: str) -> Sharing | None:
    """Return what the servers of a hive share over Redis; None without it. `server` tells this one from the others.

    Raises `StartError` for a URL that cannot be understood, and when the package is missing.
    """
    url = settings.server.redis
    if not url:
        return None
    try:
        from agenthive_server.sharing import Sharing
    except ImportError as error:
        raise StartError(f"Redis needs the package {error.name}: pip install 'agenthive[redis]'") from None
    try:
        return Sharing(url, clock, hub, server)
    except ValueError as error:
        raise StartError(f"redis {masked(url)!r}: {error}") from None


def build_clock(settings: Settings) -> Clock:
    """Return the clock of a server: the machine's, or where a database is shared, the database's."""
    if is_postgres(settings.server.store):
        from agenthive_server.storage.postgres.clock import DatabaseClock

        return DatabaseClock(SystemClock())
    return SystemClock()


@contextmanager
def _postgres_extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise StartError(
            f"a PostgreSQL store needs the package {error.name}: pip install 'agenthive[postgres]'"
        ) from None


def _database_path(settings: Settings) -> Path | None:
    try:
        return database_path(settings)
    except SettingsError as error:
        raise StartError(str(error)) from None


def build_archive(settings: Settings, store: Store, clock: Clock, software: str) -> Archive | None:
    """Return the archive the settings ask for, not opened yet. Raises `StartError` when the store has none."""
    server = settings.server
    if not server.archive_dir:
        return None
    from agenthive_server.storage.backup.archive import Archive, Keeping
    from agenthive_server.storage.backup.create import Making
    from agenthive_server.storage.sqlite import SqliteStore

    if not isinstance(store, SqliteStore):
        why = "PostgreSQL archives its own log" if is_postgres(server.store) else "a store in memory cannot be archived"
        raise StartError(f"archive_dir {server.archive_dir!r}: {why}")
    making = Making(clock=clock, software=software, minimum_free=server.minimum_free_disk_bytes)
    keeping = Keeping(backup_every=server.archive_backup_seconds, keep=server.archive_keep_seconds)
    return Archive(store, Path(server.archive_dir), making, keeping)


def migrate(settings: Settings) -> str:
    """Bring the database of the settings up to this version; returns a sentence. Raises `StartError`."""
    if is_postgres(settings.server.store):
        return asyncio.run(_migrate_postgres(settings.server.store))
    from agenthive_server.storage.migrations import migrate as run

    path = _database_path(settings)
    if path is None:
        return "a store in memory is made anew every time"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        run(f"sqlite:///{path}")
    except StoreUnusable as error:
        raise StartError(str(error)) from None
    return f"{path} is up to date"


async def _migrate_postgres(url: str) -> str:
    with _postgres_extra():
        from agenthive_server.storage.postgres.database import Database
        from agenthive_server.storage.postgres.dial import Dialer

    try:
        clock = SystemClock()
        await Database(url, Dialer(url, clock).connect, clock).prepare()
    except StoreUnusable as error:
        raise StartError(str(error)) from None
    return f"{shown(url)} is up to date"
