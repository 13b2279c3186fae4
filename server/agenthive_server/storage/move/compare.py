"""Compares a part of the source with the same part of the target, row by row, both in the order of their keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from .parts import Part, Row
from .source import Source
from .target import Target

Sealed = tuple[Any, ...]

Pair = tuple[Row | None, Sealed | None, Sealed | None]
"""A row of the source as it is, the same sealed, and that of the target sealed. None where there is none."""

_Ours = tuple[Row | None, Sealed | None]
_NOTHING: _Ours = (None, None)


def pairs(source: Source, target: Target, part: Part) -> AsyncIterator[Pair]:
    """Yield all rows of both, those of the same key together."""
    seal = part.sealer(bytes_too=True)
    theirs = _sealed(target, part)
    return _merged(part, ((row, seal(row)) for row in source.rows(part)), theirs)


def key_pairs(source: Source, target: Target, part: Part) -> AsyncIterator[Pair]:
    """Yield the keys of all rows of both, in place of the rows."""
    return _merged(part, ((None, tuple(key)) for key in source.keys(part)), _keys(target, part))


async def _sealed(target: Target, part: Part) -> AsyncIterator[Sealed]:
    seal = part.sealer(bytes_too=False)
    async for page in target.pages(part, keys_only=False):
        for row in page:
            yield seal(row)


async def _keys(target: Target, part: Part) -> AsyncIterator[Sealed]:
    async for page in target.pages(part, keys_only=True):
        for row in page:
            yield tuple(row)


async def _merged(part: Part, ours: Iterator[_Ours], theirs: AsyncIterator[Sealed]) -> AsyncIterator[Pair]:
    width = len(part.key)
    row, mine = next(ours, _NOTHING)
    async for other in theirs:
        key = other[:width]
        while mine is not None and mine[:width] < key:
            yield row, mine, None
            row, mine = next(ours, _NOTHING)
        if mine is not None and mine[:width] == key:
            yield row, mine, other
            row, mine = next(ours, _NOTHING)
        else:
            yield None, None, other
    while mine is not None:
        yield row, mine, None
        row, mine = next(ours, _NOTHING)
