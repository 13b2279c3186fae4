"""What the groups of all replicas did, in the order of their commits, so that each can follow in its memory.

A group is one row: the records it wrote as they are now, and the events it told. A replica reads what it missed in one
go, and nothing of it twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec

from agenthive_server.kernel.memory import is_open
from agenthive_server.kernel.ports import Change, Touched
from agenthive_server.kernel.records import Kind, Record
from agenthive_server.kernel.tasks import Task
from agenthive_server.storage.codec import unpack, unpack_events, unpack_task

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

LONGEST: Final = 4_096
"""Bytes of a record beyond which it is only named, and read where it is wanted."""

_PLACES: Final = {kind: place for place, kind in enumerate(FOLLOWED)}
_pack = msgspec.msgpack.Encoder().encode

_Entry = tuple[int, str, str, int, bytes, bytes]
"""Place of the kind, namespace, id, the new revision (0: removed, negative: over), body, specification."""

_unpack = msgspec.msgpack.Decoder(tuple[list[_Entry], list[tuple[int, int, bytes]]]).decode


class Notes:
    """Gathers what one group does."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        # Last and first, counted from where the log stood before, and body of each change set that tells something.
        self.events: Sequence[tuple[int, int, bytes]] = ()

    def add(self, kind: Kind, deed: str, records: Sequence[Record], rows: Sequence[Sequence[Any]]) -> None:
        """Note what is done to some rows, which are as `texts.py` orders their values."""
        place = _PLACES.get(kind)
        if place is None or deed == "check":
            return
        if deed == "delete":
            self._entries += [(place, row[0], row[1], 0, b"", b"") for row in rows]
            return
        # Counted from the end, because the columns differ.
        at = {"insert": -1, "replace": -2, "update": -4}[deed]
        spec_at = at - 1 if kind is Kind.TASK and deed != "update" else 0
        for record, row in zip(records, rows, strict=True):
            namespace, name = record.key
            if deed == "replace":
                self._entries.append((place, namespace, name, 0, b"", b""))
            if not is_open(record):
                self._entries.append((place, namespace, name, -record.revision, b"", b""))
                continue
            body, spec = row[at], row[spec_at] if spec_at else b""
            if len(body) + len(spec) > LONGEST:
                body = spec = b""
            self._entries.append((place, namespace, name, record.revision, body, spec))

    def pack(self) -> bytes:
        """Return what is stored."""
        return _pack((self._entries, self.events))


async def changes(db: Connection, after: int, without: Collection[int], limit: int) -> Sequence[Change]:
    """Return at most `limit` groups after one, without some; see `kernel.ports.Feed`."""
    return [_change(*row) for row in await db.fetch(statements.CHANGES_AFTER, after, list(without), limit)]


def _change(number: int, head: int, time: float, packed: bytes) -> Change:
    entries, told = _unpack(packed)
    touched = [
        Touched((FOLLOWED[place], (namespace, name)), revision, body, spec)
        for place, namespace, name, revision, body, spec in entries
    ]
    before = head - told[-1][0] if told else head
    events = [event for last, first, body in told for event in unpack_events(before + last, before + first, time, body)]
    return Change(number, head, touched, events)


def record(touched: Touched, known: Record | None) -> Record | None:
    """Return the record that was written; None when it has to be read. See `kernel.ports.Feed`."""
    (kind, (namespace, name)), revision, body, spec = touched
    if not body:
        return None
    if kind is not Kind.TASK:
        return unpack(kind, namespace, name, revision, body)
    if spec:
        return unpack(kind, namespace, name, revision, body, spec)
    return unpack_task(namespace, name, revision, body, known.spec) if isinstance(known, Task) else None


async def trim(db: Connection) -> None:
    """Forget the oldest groups but for the last `KEPT`."""
    await db.execute(statements.DELETE_CHANGES, KEPT)
