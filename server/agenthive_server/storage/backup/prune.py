"""Removes from an archive what is not needed any more to go back to any event since a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from .journal import FOLDER, first_segment, number_of, segments
from .manifest import PARTIAL, Manifest
from .place import failures, list_backups
from .work import Token


def prune(place: Path, log_id: str, horizon: float, most: int, token: Token) -> None:
    """Remove the backups the archive made, and the journal, that only lead to events before a time.

    The newest backup before that time stays, because what came next is told from there; of more than `most` the oldest
    go all the same. Backups made by people stay.
    Of other logs (those before a restore) everything goes once it is that old. Blocks; raises as `failures`.
    """
    with failures(f"archive in {place}"):
        found = [(each.path, each.manifest) for each in list_backups(place) if each.manifest is not None]
        mine = [(path, manifest) for path, manifest in found if manifest.log_id == log_id]
        made = [each for each in mine if each[1].automatic]
        for path in {*_outdated(mine, horizon, keep_newest=True), *(path for path, _ in made[:-most])}:
            _remove(path)
        left = [manifest for path, manifest in mine if manifest.automatic and path.exists()]
        _prune_journal(place / FOLDER / log_id, left)
        for other in {manifest.log_id for _, manifest in found} - {log_id}:
            token.step()
            _prune_other(place, other, [each for each in found if each[1].log_id == other], horizon)


def _outdated(found: list[tuple[Path, Manifest]], horizon: float, *, keep_newest: bool) -> Iterator[Path]:
    before = [(path, manifest) for path, manifest in found if manifest.create_time < horizon]
    for path, manifest in before[:-1] if keep_newest else before:
        if manifest.automatic:
            yield path


def _prune_journal(folder: Path, kept: list[Manifest]) -> None:
    if not kept:
        return
    oldest = min(kept, key=lambda manifest: manifest.create_time)
    needed = first_segment(folder, oldest.group_count, oldest.create_time)
    for segment in segments(folder):
        if number_of(segment) < needed:
            segment.unlink()


def _prune_other(place: Path, log_id: str, found: list[tuple[Path, Manifest]], horizon: float) -> None:
    journal = place / FOLDER / log_id
    if any(segment.stat().st_mtime >= horizon for segment in segments(journal)):
        return
    shutil.rmtree(journal, ignore_errors=True)
    for path in _outdated(found, horizon, keep_newest=False):
        _remove(path)


def _remove(path: Path) -> None:
    # Renamed first: what is half removed is not taken for a backup.
    gone = path.with_name(f"{PARTIAL}{path.name}")
    path.rename(gone)
    shutil.rmtree(gone)
