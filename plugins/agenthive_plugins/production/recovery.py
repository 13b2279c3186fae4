"""Backups and the way back: made by the server's own verbs, checked, thinned out, restored, drilled with a clock."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Final

from agenthive_server.plugin.api import BackupReport, Clock, KernelError, NotImplementedHere, Refused, Verbs

from .alerts import CLEAR, AlertSeverity, AlertSource, Sighting, fingerprint_of
from .defaults import usual_plan
from .desk import Desk
from .ledger import Family, Ledger

DAY: Final = 86_400.0


class BackupState(IntEnum):
    """What is known of a backup; numbers as in the protos."""

    COMPLETE = 1
    VERIFIED = 2
    DAMAGED = 3


@dataclass(frozen=True, kw_only=True)
class BackupNote:
    """What this hive noted of a backup: that it made it, and what it was when it was last read whole."""

    made_here: bool = False
    verify_time: float = 0.0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RecoveryNote:
    """How long the last restore took, and why the last backup failed."""

    recovery_seconds: float | None = None
    last_failure: str = ""


NOTES: Final = Family("backup-note/", BackupNote, "backup", 10_000)
RECOVERY: Final = Family("recovery/", RecoveryNote, "recovery")
_ONE: Final = "last"


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup, and what is noted of it."""

    id: str
    report: BackupReport
    note: BackupNote

    @property
    def state(self) -> BackupState:
        """What is known of it."""
        if self.note.problems:
            return BackupState.DAMAGED
        return BackupState.VERIFIED if self.note.verify_time else BackupState.COMPLETE


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of a restore. `path` is None when it was only a drill."""

    backup: Backup
    path: Path | None
    sequence: int
    seconds: float
    lost_seconds: float
    lost_events: int
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Readiness:
    """How backups stand."""

    last: Backup | None
    can_recover: bool
    note: RecoveryNote


class Recovery:
    """Backups in one folder, one thing at a time."""

    def __init__(
        self,
        verbs: Verbs,
        ledger: Ledger,
        desk: Desk,
        clock: Clock,
        folder: Path,
        *,
        new_id: Callable[[], str],
        every: float,
        keep: float,
        last_sequence: Callable[[], int],
        prepare: Callable[[], Awaitable[None]],
    ) -> None:
        """`prepare` brings into the store what should be in a backup."""
        self._verbs = verbs
        self._ledger = ledger
        self._desk = desk
        self._clock = clock
        self._folder = folder
        self._new_id = new_id
        self._every = every
        self._keep = keep
        self._last_sequence = last_sequence
        self._prepare = prepare
        self._lock = asyncio.Lock()

    # What there is --------------------------------------------------------------------------------------------------

    async def all(self) -> list[Backup]:
        """Return the backups in the folder, newest first."""
        notes: dict[str, BackupNote] = {}
        found = []
        for report in await self._verbs.list_backups(self._folder):
            name = report.path.name
            notes[name] = await self._ledger.find(NOTES, name) or BackupNote()
            found.append(Backup(name, report, notes[name]))
        return sorted(found, key=lambda each: (each.report.create_time, each.id), reverse=True)

    async def get(self, backup_id: str) -> Backup:
        """Return a backup; raises `NotFound`."""
        for each in await self.all():
            if each.id == backup_id:
                return each
        raise NOTES.missing(backup_id)

    async def readiness(self) -> Readiness:
        """Return how backups stand."""
        found = await self.all()
        note = await self._ledger.find(RECOVERY, _ONE) or RecoveryNote()
        verified = any(each.state is BackupState.VERIFIED for each in found)
        return Readiness(found[0] if found else None, verified, note)

    # Making and reading ---------------------------------------------------------------------------------------------

    async def create(self, *, verify: bool) -> Backup:
        """Make a backup, and read it whole if asked to. Raises `KernelError`."""
        async with self._lock:
            made = await self._created()
            return await self._verified(made) if verify else made

    async def _created(self) -> Backup:
        stamp = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y%m%dT%H%M%SZ")
        name = f"{stamp}-{self._new_id()[-8:]}"
        note = BackupNote(made_here=True)
        await self._prepare()
        try:
            report = await self._verbs.create_backup(self._folder / name)
        except KernelError as error:
            if not isinstance(error, NotImplementedHere):
                await self._remember(last_failure=error.message)
            raise
        await self._ledger.change(lambda rows: rows.put(NOTES, name, note))
        await self._remember(last_failure="")
        return Backup(name, report, note)

    async def _remember(self, **changes: object) -> None:
        note = await self._ledger.find(RECOVERY, _ONE) or RecoveryNote()
        after = replace(note, **changes)  # type: ignore[arg-type]  # names and types of its own fields
        if after != note:
            await self._ledger.change(lambda rows: rows.put(RECOVERY, _ONE, after))

    async def verify(self, backup_id: str) -> Backup:
        """Read a backup whole; what is wrong is in the answer. Raises `NotFound`."""
        async with self._lock:
            return await self._verified(await self.get(backup_id))

    async def _verified(self, backup: Backup) -> Backup:
        found = await self._verbs.verify_backup(backup.report.path)
        note = replace(backup.note, verify_time=self._clock.now(), problems=found.problems)
        await self._ledger.change(lambda rows: rows.put(NOTES, backup.id, note))
        return replace(backup, note=note)

    # The way back ---------------------------------------------------------------------------------------------------

    async def restore(self, backup_id: str, name: str, until: int | None) -> Restored:
        """Restore a backup into a new directory beside the backups. Raises `KernelError`."""
        async with self._lock:
            began = self._clock.monotonic()
            return await self._restored(await self.get(backup_id), self._target(name), until, began)

    def _target(self, name: str) -> Path:
        return self._folder.parent / (name or f"restored-{self._new_id()[-12:]}")

    async def _restored(self, backup: Backup, target: Path, until: int | None, began: float) -> Restored:
        report = await self._verbs.restore_backup(backup.report.path, target, until_sequence=until)
        seconds = self._clock.monotonic() - began
        await self._remember(recovery_seconds=seconds)
        lost = max(0, self._last_sequence() - report.last_sequence)
        age = max(0.0, self._clock.now() - backup.report.create_time) if lost else 0.0
        return Restored(backup, report.path, report.last_sequence, seconds, age, lost)

    async def recover(self, backup_id: str, *, drill: bool) -> Restored:
        """Verify and restore the newest backup that is whole, or the one that is named; a drill removes it again.

        Raises `Refused` when there is none, `NotFound`, and what a restore raises.
        """
        async with self._lock:
            began = self._clock.monotonic()
            candidates = [await self.get(backup_id)] if backup_id else await self.all()
            damaged: list[str] = []
            for candidate in candidates:
                backup = await self._verified(candidate)
                if backup.note.problems:
                    damaged.append(backup.id)
                    continue
                found = replace(await self._restored(backup, self._target(""), None, began), damaged=tuple(damaged))
                return await self._drilled(found) if drill else found
        told = f"none of {len(damaged)} backups is whole" if damaged else "there is no backup"
        raise Refused(told, metadata={"damaged": ", ".join(damaged)[:256]})

    async def _drilled(self, found: Restored) -> Restored:
        if found.path is not None:
            await asyncio.to_thread(shutil.rmtree, found.path)
        return replace(found, path=None)

    # By itself ------------------------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """Make a backup when one is due, remove those that are kept no more, alert when that fails."""
        cause, plan = fingerprint_of(AlertSource.BACKUP, "automatic"), usual_plan(AlertSeverity.HIGH)
        try:
            async with self._lock:
                found = await self.all()
                if not found or self._clock.now() - found[0].report.create_time >= self._every:
                    found.insert(0, await self._verified(await self._created()))
                await self._thin_out(found)
        except NotImplementedHere:
            return
        except KernelError as error:
            look = Sighting(
                source=AlertSource.BACKUP,
                severity=AlertSeverity.HIGH,
                title="backup_failure: no backup could be made",
                description=error.message,
            )
            await self._desk.see(cause, plan, look)
            return
        await self._desk.see(cause, plan, CLEAR)

    async def _thin_out(self, found: list[Backup]) -> None:
        for backup in surplus(found, self._clock.now(), self._keep):
            await asyncio.to_thread(shutil.rmtree, backup.report.path, ignore_errors=True)
            await self._ledger.change(lambda rows, gone=backup.id: rows.delete(NOTES, gone))  # type: ignore[misc]  # bound now


def surplus(found: list[Backup], now: float, keep: float) -> list[Backup]:
    """Return the backups that are kept no more, of those made here and newest first.

    All of the last day stay, then the newest of each day, up to `keep` seconds. The newest that is whole always stays.
    """
    kept_days: set[int] = set()
    gone: list[Backup] = []
    whole = next((each.id for each in found if not each.note.problems), "")
    for backup in found:
        age, day = now - backup.report.create_time, int(backup.report.create_time // DAY)
        stays = age < DAY or (age < keep and day not in kept_days)
        if stays and not backup.note.problems:
            kept_days.add(day)
        if not stays and backup.note.made_here and backup.id != whole:
            gone.append(backup)
    return gone
