"""The manifest of a backup: what it holds and by what it is known to be whole.

A backup is a folder with the database and this file, which is written last. The folder gets its name when everything
in it is on disk, so what has the name is complete.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from agenthive_server.kernel.errors import BadRequest, DataLoss

FORMAT = 1
MANIFEST = "manifest.json"
DATABASE = "hive.db"
PARTIAL = ".partial-"
"""Begins the name of a backup that is being made; one that was killed keeps it."""


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a backup."""

    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds. Times are seconds since 1970, sizes bytes."""

    format: int = FORMAT
    # The version of Agent Hive that made it, and the migration its tables stand at.
    software: str
    schema: str
    create_time: float
    # How long making it took.
    seconds: float
    # The log it is of, its ends, and the number of the last group of change sets.
    log_id: str
    oldest: int
    head: int
    head_time: float
    group_count: int
    records: int
    events: int
    blobs: int
    files: tuple[File, ...]
    # Made by the archive, which also removes it.
    automatic: bool = False
    digest: str = ""

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files)

    def sealed(self) -> Manifest:
        """Return it with the digest of everything else in it."""
        return msgspec.structs.replace(self, digest=_digest(msgspec.to_builtins(self)))


def _digest(content: dict[str, Any]) -> str:
    """Return the digest of all that is there: also of what this version does not know."""
    others = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(msgspec.json.encode(others, order="sorted")).hexdigest()


def damaged(text: str) -> DataLoss:
    """Return the error for a backup that is not as it was written."""
    return DataLoss(text)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a backup.

    Raises `BadRequest` when there is no backup, or one of a newer format; `DataLoss` when its manifest is damaged.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BadRequest(f"{folder} is not a backup: there is no {MANIFEST} in it") from None
    except OSError as error:
        raise damaged(f"{path} cannot be read: {error.strerror}") from error
    try:
        content = msgspec.json.decode(text, type=dict[str, Any])
        if content.get("digest") != _digest(content):
            raise damaged(f"{path} is damaged: its digest is not that of its content")
        if content["format"] > FORMAT:
            raise BadRequest(f"{folder} was made by a newer version of Agent Hive")
        manifest = msgspec.convert(content, Manifest)
    except (msgspec.MsgspecError, LookupError, TypeError) as error:
        raise damaged(f"{path} is damaged: {error}") from None
    if any("/" in file.name or file.name in ("", ".", "..") for file in manifest.files):
        raise damaged(f"{path} names files outside of the backup")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest, durably."""
    text = msgspec.json.format(msgspec.json.encode(manifest.sealed()), indent=2) + b"\n"
    write_durably(folder / MANIFEST, text)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, durably; its name is durable after `sync_folder`."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
