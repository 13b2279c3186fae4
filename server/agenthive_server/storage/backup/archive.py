"""The archive: a backup now and then, and the journal from there, so that a hive can go back to any event in between.

What is promised: what was acknowledged is in the archive's folder a moment later (milliseconds; the end of the server
process alone loses no more than that), and on its disk within a second. When the archive fails (its disk is full,
gone, or too slow) the hive goes on without it, health says so, and as soon as it can, a new backup closes the hole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agenthive_server import telemetry
from agenthive_server.kernel.errors import KernelError
from agenthive_server.kernel.health import Reading, Status
from agenthive_server.storage.columns import REVISION
from agenthive_server.telemetry import Sample

from .create import Making, create_backup
from .journal import FOLDER, Begin, ended_with, number_of, segments
from .manifest import FORMAT, Manifest
from .place import Found, backup_name, failures, list_backups
from .prune import prune
from .recorder import Recorder
from .work import Token, run

if TYPE_CHECKING:
    from agenthive_server.storage.sqlite import SqliteStore

_LOOK_EVERY = 1.0
_TRY_EVERY = 10.0
_LATE = 10.0
_ALMOST_NOTHING = 4096

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """How often a backup is made, and how long what is needed to go back is kept. Seconds, and bytes of journal."""

    backup_every: float = 86_400.0
    keep: float = 604_800.0
    # A backup is also made when the journal is longer than this and than the database.
    journal_bytes: int = 256 * 2**20
    # However often a server is killed, and a backup made afterwards: no more are kept.
    most_backups: int = 14


class Archive:
    """Records what a store commits, in a folder. Opened after the store, before its first commit."""

    def __init__(self, store: SqliteStore, place: Path, making: Making, keeping: Keeping | None = None) -> None:
        self._store = store
        self._place = place
        self._making = making
        self._clock = making.clock
        self._keeping = keeping or Keeping()
        self._log_id = ""
        self._last_backup: float | None = None
        self._recorder: Recorder | None = None
        self._failure = ""
        self.backups = 0
        self.backup_seconds = 0.0

    async def open(self) -> None:
        """Begin to record. A folder that cannot be used is no reason not to serve: it is tried again by `run`."""
        self._log_id, group_count = self._store.position
        self._recorder = self._store.recorder = Recorder(self._folder, self._clock)
        self._recorder.start(group_count)
        try:
            self._last_backup = await run(lambda _: self._continued(group_count))
            await self._turn()
        except (OSError, KernelError) as error:
            self._fail(error)

    @property
    def _folder(self) -> Path:
        return self._place / FOLDER / self._log_id

    def _continued(self, group_count: int) -> float | None:
        """Return when the last backup was made, if the journal leads from it to where the store stands.

        After a kill something that was committed may not be in it, so that it is not gone on with.
        """
        with failures(f"archive in {self._place}"):
            backups = [found.manifest for found in self._backups() if found.manifest is not None]
            written = segments(self._folder)
            if not backups or not written or backups[-1].schema != REVISION:
                return None
            return backups[-1].create_time if ended_with(written[-1]) == group_count else None

    def _backups(self) -> list[Found]:
        return [found for found in list_backups(self._place) if _of(found.manifest, self._log_id)]

    async def _turn(self) -> None:
        recorder = self._require_recorder()
        written = await run(lambda _: segments(self._folder))
        begin = Begin(
            format=FORMAT,
            software=self._making.software,
            schema=REVISION,
            log_id=self._log_id,
            segment=number_of(written[-1]) + 1 if written else 1,
            group_count=recorder.group_count,
            time=self._clock.now(),
        )
        await recorder.turn(begin)

    def _require_recorder(self) -> Recorder:
        if self._recorder is None:
            raise RuntimeError("the archive is not open")
        return self._recorder

    async def run(self) -> None:
        """Make backups when they are due and remove what is not needed any more, until cancelled."""
        while True:
            try:
                if self._due():
                    await self._back_up()
                self._failure = ""
            except (OSError, KernelError) as error:
                self._fail(error)
                await self._clock.sleep(_TRY_EVERY)
            await self._clock.sleep(_LOOK_EVERY)

    def _due(self) -> bool:
        recorder, keeping = self._require_recorder(), self._keeping
        if self._last_backup is None or not recorder.on:
            return True
        if self._clock.now() - self._last_backup >= keeping.backup_every:
            return True
        return recorder.size > max(keeping.journal_bytes, self._store.size)

    async def _back_up(self) -> None:
        self._last_backup = None
        recorder = self._require_recorder()
        # First the segment, then the backup: what is committed in between is in both, and skipped when it is replayed.
        if not recorder.on or recorder.size > _ALMOST_NOTHING:
            await self._turn()
        manifest = await run(self._create, self._clock)
        self._last_backup = manifest.create_time
        self.backups += 1
        self.backup_seconds = manifest.seconds
        horizon = self._clock.now() - self._keeping.keep
        await run(lambda token: prune(self._place, self._log_id, horizon, self._keeping.most_backups, token))

    def _create(self, token: Token) -> Manifest:
        folder = self._place / backup_name(self._clock.now())
        with self._store.visitors.present(token):
            return create_backup(self._store.path, folder, self._making, token, automatic=True)

    def _fail(self, error: Exception) -> None:
        self._failure = error.message if isinstance(error, KernelError) else str(error)
        _log.warning("the archive cannot be used", extra={"reason": self._failure})

    async def close(self) -> None:
        """Write and sync what waits; called after the last commit."""
        if self._recorder is not None:
            self._store.recorder = None
            await self._recorder.stop()

    def probe(self) -> list[tuple[str, Reading]]:
        """Return how the archive is: DEGRADED when something committed is not in it, or is late."""
        recorder = self._recorder
        why = self._failure or (recorder.failure if recorder else "")
        lag = recorder.lag if recorder else None
        if not why and lag is not None and lag > _LATE:
            why = f"{lag:.0f} s behind"
        return [("archive", Reading(Status.DEGRADED if why else Status.OK, why, lag))]

    def metrics(self) -> Iterator[Sample]:
        """Yield what there is to measure."""
        recorder = self._recorder
        if recorder is not None:
            yield Sample(telemetry.ARCHIVE_RECORDING, (), recorder.on)
            yield Sample(telemetry.ARCHIVE_LAG, (), recorder.lag)
            yield Sample(telemetry.ARCHIVE_SEQUENCE, (), recorder.sequence)
            yield Sample(telemetry.ARCHIVE_JOURNAL, (), recorder.size)
        yield Sample(telemetry.ARCHIVE_BACKUPS, (), self.backups)
        yield Sample(telemetry.ARCHIVE_BACKUP_SECONDS, (), self.backup_seconds)


def _of(manifest: Manifest | None, log_id: str) -> bool:
    return manifest is not None and manifest.log_id == log_id
