"""What the groups of all replicas changed, in the order of their commits: named here, read where it is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from agenthive_server.kernel.ports import Change
from agenthive_server.kernel.records import Kind, Record, Ref
from agenthive_server.storage.fold import Rows

from . import statements
from .dial import Connection

FOLLOWED: Final = (
    Kind.AGENT,
    Kind.TASK,
    Kind.PROGRESS,
    Kind.SESSION,
    Kind.MESSAGE,
    Kind.BROADCAST,
    Kind.CURSOR,
)
"""The kinds that replicas keep in memory; their places here are what is stored, so new ones come last."""

KEPT: Final = 30_000
"""Groups for which this is kept: at the highest rate, more seconds than a replica has before it is expelled."""

_PLACES: Final = {kind: place for place, kind in enumerate(FOLLOWED)}
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(list[tuple[int, str, str, int]]).decode


def pack_touched(by_kind: Mapping[Kind, Rows]) -> bytes:
    """Return which rows of the kinds in memory were changed: place of the kind, namespace, id, new revision or 0."""
    touched: list[tuple[int, str, str, int]] = []
    for kind, rows in by_kind.items():
        place = _PLACES.get(kind)
        if place is None:
            continue
        # Removed first: one that is made anew in the same group is there afterwards.
        touched += [(place, *key, 0) for key, _ in rows.deletes]
        touched += [(place, *record.key, record.revision) for record in _written(rows)]
    return _pack(touched)


def _written(rows: Rows) -> Iterable[Record]:
    return (*rows.inserts, *(record for record, _ in rows.updates))


async def changes(db: Connection, after: int, until: int, limit: int) -> Sequence[Change]:
    """Return at most `limit` groups after one, up to another; see `kernel.ports.Feed`."""
    rows = await db.fetch(statements.CHANGES_AFTER, after, until, limit)
    return [Change(number, head, _refs(touched)) for number, head, touched in rows]


def _refs(touched: bytes) -> list[tuple[Ref, int]]:
    return [((FOLLOWED[place], (namespace, name)), revision) for place, namespace, name, revision in _unpack(touched)]


async def trim(db: Connection) -> None:
    """Forget the oldest groups but for the last `KEPT`."""
    await db.execute(statements.DELETE_CHANGES, KEPT)
