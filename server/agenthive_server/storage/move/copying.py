"""Makes a target what its source is: adds what is missing, replaces what is different, removes what is there no more.

What was copied before is looked at and left as it is. So this goes on where it was interrupted, and catches up with a
source that is being served, by the same few lines.
"""

from __future__ import annotations

from typing import Any

from .compare import key_pairs, pairs
from .parts import PARTS, Part, Row
from .progress import Progress
from .source import BATCH_BYTES, Source
from .target import Target


async def copy_all(source: Source, target: Target, progress: Progress) -> int:
    """Copy what differs; returns how many rows were written or removed. Rows that are there are believed by their key
    where rows never change."""
    before = progress.written
    for part in PARTS:
        progress.begin(f"copying {part.name}", source.count(part))
        if part.immutable:
            await _copy_new(source, target, part, progress)
        else:
            await _copy_changed(source, target, part, progress)
    return progress.written - before


async def _copy_changed(source: Source, target: Target, part: Part, progress: Progress) -> None:
    batch = _Batch(target, part)
    async for row, sealed, theirs in pairs(source, target, part):
        if sealed == theirs:
            progress.step()
            continue
        if theirs is not None:
            batch.gone.append(part.key_of(theirs))
        progress.step(await batch.add(row))
    progress.written += await batch.write()


async def _copy_new(source: Source, target: Target, part: Part, progress: Progress) -> None:
    batch = _Batch(target, part)
    async for _, key, theirs in key_pairs(source, target, part):
        row = None
        if key is None:
            assert theirs is not None
            batch.gone.append(theirs)
        elif theirs is None:
            # None when a server has removed it since.
            row = source.row(part, key)
        progress.step(await batch.add(row))
    progress.written += await batch.write()


class _Batch:
    """What is written together."""

    def __init__(self, target: Target, part: Part) -> None:
        self._target = target
        self._part = part
        self.gone: list[tuple[Any, ...]] = []
        self._rows: list[Row] = []
        self._size = 0

    async def add(self, row: Row | None) -> int:
        """Take a row, and write when it is time; returns how many changes were written."""
        if row is not None:
            self._rows.append(row)
            self._size += sum(len(value) for value in row if isinstance(value, bytes))
        full = self._size >= BATCH_BYTES or max(len(self._rows), len(self.gone)) >= self._part.page
        return await self.write() if full else 0

    async def write(self) -> int:
        """Write what was gathered; returns how many changes that were."""
        count = max(len(self._rows), len(self.gone))
        if count:
            await self._target.write(self._part, self.gone, self._rows)
        self.gone, self._rows, self._size = [], [], 0
        return count
