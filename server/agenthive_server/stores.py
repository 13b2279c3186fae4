"""The store and the archive the settings ask for; bringing a database up to date."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.ports import Store, StoreUnusable
from agenthive_server.lifecycle import StartError
from agenthive_server.settings import Settings, SettingsError, database_path

if TYPE_CHECKING:
    from agenthive_server.storage.backup.archive import Archive


def open_store(settings: Settings, clock: Clock) -> Store:
    """Return the store the settings name, not opened yet. Raises `StartError` for a URL of no known kind."""
    path = _database_path(settings)
    if path is None:
        from agenthive_server.storage.memory import MemoryStore

        return MemoryStore(clock)
    from agenthive_server.storage.sqlite import SqliteStore

    return SqliteStore(path, clock=clock, synchronous=settings.server.synchronous)


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
        raise StartError(f"archive_dir {server.archive_dir!r}: a store in memory cannot be archived")
    making = Making(clock=clock, software=software, minimum_free=server.minimum_free_disk_bytes)
    keeping = Keeping(backup_every=server.archive_backup_seconds, keep=server.archive_keep_seconds)
    return Archive(store, Path(server.archive_dir), making, keeping)


def migrate(settings: Settings) -> str:
    """Bring the database of the settings up to this version; returns a sentence. Raises `StartError`."""
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
