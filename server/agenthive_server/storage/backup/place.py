"""Where backups lie: folders that get their name when they are complete, room on the disk, and errors in sentences."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from agenthive_server.kernel.errors import BadRequest, DataLoss, KernelError, Overloaded, Refused, StoreUnavailable
from agenthive_server.storage.transaction import sentence

from .manifest import MANIFEST, PARTIAL, Manifest, read_manifest, sync_folder
from .work import Token

_PIECE = 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Found:
    """A backup that lies somewhere; without a manifest, with what is wrong with that."""

    path: Path
    manifest: Manifest | None
    problem: str = ""


def backup_name(now: float) -> str:
    """Return the name of a backup made now; names sort by time."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def list_backups(place: Path) -> list[Found]:
    """Return the complete backups in a folder, oldest first; those whose manifest cannot be read come first.

    A folder that is not there has none. Raises `StoreUnavailable` when it cannot be read.
    """
    found: list[Found] = []
    with failures(f"backups in {place}"):
        if not place.exists():
            return []
        for path in sorted(place.iterdir()):
            if path.name.startswith(PARTIAL) or not (path / MANIFEST).exists():
                continue
            try:
                found.append(Found(path, read_manifest(path)))
            except KernelError as error:
                found.append(Found(path, None, error.message))
    return sorted(found, key=lambda each: each.manifest.create_time if each.manifest else 0.0)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to be filled; at the end it gets its name, durably, or, after an error, is removed.

    Raises `Refused` when the name is in use.
    """
    if folder.exists():
        raise Refused(f"{folder} exists already")
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    remove_partial(folder.parent)
    partial = folder.parent / f"{PARTIAL}{folder.name}-{uuid4().hex[:8]}"
    partial.mkdir(mode=0o700)
    lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Who holds the lock is alive: what nobody holds was left behind.
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield partial
        sync_folder(partial)
        partial.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def remove_partial(place: Path) -> None:
    """Remove what was left of backups that were killed while they were made."""
    for path in place.glob(f"{PARTIAL}*"):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


class Room:
    """Keeps bytes free on the disks it watches."""

    def __init__(self, places: Iterable[Path], minimum: int) -> None:
        self._places = tuple(places)
        self._minimum = minimum

    def require(self, place: Path, size: int) -> None:
        """Raise `Overloaded` with DISK_LOW when so many bytes more would leave too little."""
        free = shutil.disk_usage(place).free
        if free - size < self._minimum:
            raise Overloaded(
                f"not enough room in {place}: {size} bytes are needed and {self._minimum} stay free, {free} are there",
                reason="DISK_LOW",
            )

    def check(self) -> None:
        """Raise `Overloaded` with DISK_LOW when too little is left anywhere."""
        for place in self._places:
            self.require(place, 0)


def sha256_of(path: Path, token: Token) -> str:
    """Return the digest of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            token.step()
    return digest.hexdigest()


def copy_file(source: Path, target: Path, token: Token) -> str:
    """Copy a file, durably, and return the digest of what was copied, in hex."""
    digest = hashlib.sha256()
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with source.open("rb") as file, os.fdopen(handle, "wb") as copy:
        while piece := file.read(_PIECE):
            digest.update(piece)
            copy.write(piece)
            token.step()
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest()


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Turn errors of disks and databases into `StoreUnavailable`, `Overloaded` with DISK_LOW, or `DataLoss`."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise Overloaded(f"{what}: no space is left", reason="DISK_LOW") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise DataLoss(f"{what}: the database is damaged: {sentence(error)}") from error
        raise StoreUnavailable(f"{what}: {sentence(error)}") from error
    except OSError as error:
        if error.errno in _FULL:
            raise Overloaded(f"{what}: no space is left", reason="DISK_LOW") from error
        raise StoreUnavailable(f"{what}: {error.filename or ''}: {error.strerror or error}") from error


def require_database(path: Path) -> None:
    """Raise `BadRequest` when there is no file."""
    if not path.is_file():
        raise BadRequest(f"there is no database at {path}")
