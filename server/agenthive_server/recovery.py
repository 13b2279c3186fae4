"""Backups as verbs: what plugins call on a running server, and what they are told.

What does it is imported by the first call: most servers live without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import NotImplementedHere
from agenthive_server.kernel.ports import Store
from agenthive_server.plugin.ports import BackupReport

if TYPE_CHECKING:
    from agenthive_server.storage.backup.manifest import Manifest
    from agenthive_server.storage.backup.work import Token


class Recovery:
    """Backups of a server's store. Everything runs in threads of its own and may be cancelled; nothing is left then.

    Paths are those of the server's machine: whoever calls this says who may name them. All methods raise `KernelError`:
    `BadRequest` (no backup there, no such event in it), `Refused` (the folder exists, the target is not empty),
    `DataLoss` (damaged), `Overloaded` with DISK_LOW, `StoreUnavailable` (a disk failed).
    """

    def __init__(self, store: Store, clock: Clock, *, software: str, minimum_free: int) -> None:
        """`software`: the version that says it made a backup; `minimum_free`: bytes that stay free on every disk."""
        self._store = store
        self._clock = clock
        self._software = software
        self._minimum_free = minimum_free

    async def create_backup(self, path: Path) -> BackupReport:
        """Write a consistent backup of the live store to a new folder, without stopping anything.

        Raises `NotImplementedHere` where the store keeps nothing.
        """
        from agenthive_server.storage.backup.create import Making, create_backup
        from agenthive_server.storage.backup.work import run
        from agenthive_server.storage.sqlite import SqliteStore

        store = self._store
        if not isinstance(store, SqliteStore):
            raise NotImplementedHere(
                "there is nothing to back up here: this store keeps everything in memory only, or in a database server,"
                " which has means of its own"
            )

        making = Making(clock=self._clock, software=self._software, minimum_free=self._minimum_free)

        def create(token: Token) -> Manifest:
            with store.visitors.present(token):
                return create_backup(store.path, path, making, token)

        return _report(path, await run(create, self._clock))

    async def list_backups(self, place: Path) -> list[BackupReport]:
        """Return the complete backups in a folder, oldest first; those whose manifest is damaged are left out."""
        from agenthive_server.storage.backup.place import list_backups
        from agenthive_server.storage.backup.work import run

        found = await run(lambda _: list_backups(place))
        return [_report(each.path, each.manifest) for each in found if each.manifest is not None]

    async def verify_backup(self, path: Path) -> BackupReport:
        """Read a backup whole and compare; what is wrong is in `problems`."""
        from agenthive_server.storage.backup.verify import verify_backup
        from agenthive_server.storage.backup.work import run

        found = await run(lambda token: verify_backup(path, token, self._clock), self._clock)
        if found.manifest is None:
            return _unreadable(path, found.problems, found.seconds)
        return _report(path, found.manifest, problems=found.problems, seconds=found.seconds)

    async def restore_backup(self, path: Path, target: Path, *, until_sequence: int | None = None) -> BackupReport:
        """Restore a backup into a new data directory, as a new log; the running store is not touched.

        `path` may also be a folder of backups, of which the best is taken. With an archive beside the backup, all that
        was archived after it is restored as well, or, with `until_sequence`, what had happened by this event; without
        one, that can only be the backup's last event. `last_sequence` says how far it came, `log_id` is the new log's.
        """
        from agenthive_server.storage.backup.restore import restore_backup
        from agenthive_server.storage.backup.work import run

        restored = await run(
            lambda token: restore_backup(path, target, token, self._clock, until=until_sequence), self._clock
        )
        manifest = restored.manifest
        return BackupReport(
            path=restored.target,
            create_time=manifest.create_time,
            log_id=restored.renewal.log_id,
            last_sequence=restored.head,
            size=manifest.size,
            records=manifest.records,
            events=manifest.events + restored.head - manifest.head,
            blobs=manifest.blobs,
            digest=manifest.digest,
            seconds=restored.seconds,
            problems=(restored.missing,) if restored.missing else (),
        )


def _report(
    path: Path, manifest: Manifest, *, problems: tuple[str, ...] = (), seconds: float | None = None
) -> BackupReport:
    return BackupReport(
        path=path,
        create_time=manifest.create_time,
        log_id=manifest.log_id,
        last_sequence=manifest.head,
        size=manifest.size,
        records=manifest.records,
        events=manifest.events,
        blobs=manifest.blobs,
        digest=manifest.digest,
        seconds=manifest.seconds if seconds is None else seconds,
        problems=problems,
    )


def _unreadable(path: Path, problems: tuple[str, ...], seconds: float) -> BackupReport:
    return BackupReport(
        path=path,
        create_time=0.0,
        log_id="",
        last_sequence=0,
        size=0,
        records=0,
        events=0,
        blobs=0,
        digest="",
        seconds=seconds,
        problems=problems,
    )
