"""Makes a new data directory of a backup and, where there is one, the journal that continues it.

Everything is made in a folder within the new directory; giving the database its name there is the last step. So a
restore that fails or is killed leaves no directory a server would start with, and may be repeated.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import msgspec

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import BadRequest, DataLoss, Refused, StoreUnavailable
from agenthive_server.kernel.ports import StoreUnusable
from agenthive_server.storage.columns import REVISION
from agenthive_server.storage.database import Database
from agenthive_server.storage.migrations import migrate

from .create import open_copy
from .journal import FOLDER
from .manifest import DATABASE, MANIFEST, Manifest, read_manifest, sync_folder, write_durably
from .place import copy_file, failures, list_backups
from .renewal import Renewal, begin_new_log
from .replay import Replay, Replayed
from .verify import check_log, known_schema
from .work import Token

WORK = ".restoring-"
"""Begins the name of the folder a directory is made in."""

RECORD = "restored.json"
"""Says in the new directory where it came from."""

_HARMLESS = ("lost+found",)


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A new data directory. `head` is the last event of the lost log that is in it."""

    target: Path
    backup: Path
    manifest: Manifest
    head: int
    groups_replayed: int
    renewal: Renewal
    seconds: float
    missing: str = ""
    """Why the journal could not be followed to its end, empty when it could."""


@dataclass(frozen=True)
class _Chosen:
    folder: Path
    manifest: Manifest
    journal: Path


def restore_backup(source: Path, target: Path, token: Token, clock: Clock, *, until: int | None = None) -> Restored:
    """Make a new data directory with the hive as it was at its last event, or at event `until`, as a new log.

    `source` is a backup, or a folder of backups, of which the best is taken: the newest, or the last one before
    `until`. From there the journal beside it is replayed, whole change sets up to `until`. The leases of the lost hive
    are void in the new one, its sessions over, its cursors too old; idempotency records are kept.

    Blocks. Raises `BadRequest` when there is no backup, or none that reaches `until`; `Refused` when `target` is not
    empty; `DataLoss` when the backup is damaged, or the journal before `until` is; `Overloaded` with DISK_LOW;
    `StoreUnavailable` when a disk fails; `GivenUp`.
    """
    began = clock.monotonic()
    chosen = _choose(source, until)
    if not known_schema(chosen.manifest.schema):
        raise BadRequest(f"{chosen.folder} was made by a newer version of Agent Hive, {chosen.manifest.software}")
    with failures(f"restore into {target}"):
        _require_empty(target)
        made = not target.exists()
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        work = target / f"{WORK}{uuid4().hex[:8]}"
        work.mkdir(mode=0o700)
        try:
            database = work / DATABASE
            _copy(chosen, database, token)
            replayed = _replay(chosen, database, until, token)
            renewal = _renew(database, clock)
            _check(database, token)
            restored = Restored(
                target=target,
                backup=chosen.folder,
                manifest=chosen.manifest,
                head=replayed.head,
                groups_replayed=replayed.groups,
                renewal=renewal,
                seconds=clock.monotonic() - began,
                missing=replayed.broken,
            )
            _publish(restored, database, clock)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            if made:
                target.rmdir()
            raise
        shutil.rmtree(work, ignore_errors=True)
    return restored


def _choose(source: Path, until: int | None) -> _Chosen:
    if (source / MANIFEST).exists():
        backup, place = (source, read_manifest(source)), source.parent
    else:
        backup, place = _best(source, until), source
    folder, manifest = backup
    if until is not None and until < manifest.head:
        raise BadRequest(
            f"event {until} is before the end of the backup {folder}, event {manifest.head}: a backup can be followed"
            " forward only, so take an older one",
            field="until_sequence",
        )
    return _Chosen(folder, manifest, place / FOLDER / manifest.log_id)


def _best(place: Path, until: int | None) -> tuple[Path, Manifest]:
    found = list_backups(place)
    readable = [(each.path, each.manifest) for each in found if each.manifest is not None]
    if found and not readable:
        raise DataLoss(f"no backup in {place} can be read: {found[-1].problem}")
    if not readable:
        raise BadRequest(f"there is no backup in {place}")
    newest = readable[-1]
    # Numbers mean something within one log only: that of the newest backup.
    fitting = [each for each in readable if each[1].log_id == newest[1].log_id and _not_beyond(each[1], until)]
    if not fitting:
        first = min(manifest.head for _, manifest in readable if manifest.log_id == newest[1].log_id)
        raise BadRequest(
            f"no backup in {place} is as old as event {until}: the oldest one of this log ends with event {first}",
            field="until_sequence",
        )
    return max(fitting, key=lambda each: (each[1].head, each[1].create_time))


def _not_beyond(manifest: Manifest, until: int | None) -> bool:
    return until is None or manifest.head <= until


def _require_empty(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise Refused(f"{target} is not a directory")
    left = [path for path in target.iterdir() if path.name.startswith(WORK)]
    others = sorted(path.name for path in target.iterdir() if path not in left and path.name not in _HARMLESS)
    if others:
        raise Refused(f"{target} is not empty ({', '.join(others[:3])}): a hive is restored into a new directory")
    for path in left:
        shutil.rmtree(path)


def _copy(chosen: _Chosen, database: Path, token: Token) -> None:
    for file in chosen.manifest.files:
        source = chosen.folder / file.name
        if not source.is_file():
            raise DataLoss(f"{source} is missing")
        if copy_file(source, database.parent / file.name, token) != file.sha256:
            raise DataLoss(f"{source} is damaged: it is not as it was written")


def _database(path: Path) -> Database:
    return Database(path, "NORMAL", sqlite3.connect)


def _replay(chosen: _Chosen, database: Path, until: int | None, token: Token) -> Replayed:
    with closing(_database(database).connect(writing=True)) as db:
        replayed = Replay(db, until).run(chosen.journal, chosen.manifest.create_time, token)
    if until is not None and replayed.head < until and not replayed.reached:
        why = replayed.broken or "nothing later was kept"
        raise BadRequest(
            f"event {until} cannot be reached: backup and journal lead to event {replayed.head} ({why})",
            field="until_sequence",
        )
    return replayed


def _renew(database: Path, clock: Clock) -> Renewal:
    try:
        with closing(open_copy(database)) as db:
            (schema,) = db.execute("SELECT version_num FROM alembic_version").fetchone()
        if schema != REVISION:
            migrate(f"sqlite:///{database}")
    except StoreUnusable as error:
        raise StoreUnavailable(str(error)) from error
    return begin_new_log(_database(database), clock)


def _check(database: Path, token: Token) -> None:
    """Let no directory be made that a server could not serve from its first event to its last."""
    with closing(_database(database).connect(writing=True)) as db:
        (head,) = db.execute("SELECT head FROM meta").fetchone()
        for problem in check_log(db, head, token):
            raise DataLoss(f"what would be restored is broken: {problem}")
        # Everything into the one file.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def _publish(restored: Restored, database: Path, clock: Clock) -> None:
    target, manifest = restored.target, restored.manifest
    told = {
        "backup": str(restored.backup),
        "log_id": restored.renewal.log_id,
        "log_id_before": manifest.log_id,
        "last_sequence_before": restored.head,
        "time": clock.now(),
    }
    write_durably(target / RECORD, msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n")
    with database.open("rb") as file:
        os.fsync(file.fileno())
    database.rename(target / DATABASE)
    sync_folder(target)
