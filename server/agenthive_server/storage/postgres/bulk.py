"""A group as one statement: every row it names is compared with what is stored, and if all are as expected, everything
is written; else nothing is, and the rows that are not as expected are returned.

The statement is run in a transaction that holds the head of the log (`statements.BEGIN`). Its parts see one state of
the database, that after the lock was taken, so the comparison is exact. A group of any size is one round trip. The
texts and how values are sent are in `texts.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.records import Kind, Record, Ref
from agenthive_server.storage.codec import pack_events
from agenthive_server.storage.fold import Fold, Rows
from agenthive_server.storage.rows import insert_row, update_row

from . import texts
from .dial import Row
from .feed import Notes


@dataclass(frozen=True, slots=True)
class Bulk:
    """A statement with its arguments; `members` are those whose events it adds, in order."""

    text: str
    arguments: list[Any]
    members: list[ChangeSet]
    written: bool
    # What it notes for other replicas.
    touched: bytes = b""


@dataclass(frozen=True, slots=True)
class Written:
    """What the statement tells when it has written: the log as it was, the time of the group, the transaction's id."""

    log_id: str
    head: int
    group_count: int
    time: float
    transaction: str


def build(
    fold: Fold, members: Iterable[ChangeSet], *, fence: tuple[Ref, int] | None, channel: str, now: float | None
) -> Bulk:
    """Return the statement that writes what is folded together, with the events of its members.

    `fence` is one more row that must have this revision. Without a channel nobody is notified. Raises what the codec
    raises for what cannot be written.
    """
    by_kind = dict(fold.rows())
    if fence is not None:
        (kind, key), revision = fence
        by_kind.setdefault(kind, Rows()).checks.append((key, revision))
    parts: list[texts.Part] = []
    arguments: list[Any] = []
    notes = Notes()
    for kind in sorted(by_kind):
        for deed, records, rows in _deeds(kind, by_kind[kind]):
            parts.append((kind, deed))
            arguments += texts.arguments(texts.columns(kind, deed), rows)
            notes.add(kind, deed, records, rows)
    told = [changes for changes in members if changes.events]
    if not told and fold.empty:
        return Bulk(texts.comparing(tuple(parts)), arguments, told, written=False)
    if told:
        events = _events(told)
        arguments += texts.arguments(texts.EVENTS, events)
        notes.events = events
    text = texts.writing(tuple(parts), told=bool(told), ring=bool(told and channel))
    touched = notes.pack()
    fixed = [now, channel, sum(len(changes.events) for changes in told), touched]
    return Bulk(text, [*fixed, *arguments], told, written=True, touched=touched)


def _deeds(kind: Kind, rows: Rows) -> Iterator[tuple[str, Sequence[Record], Sequence[Sequence[Any]]]]:
    """Yield what is to be done to a table: the records written, and the rows with values in the order of `texts.py`."""
    if rows.checks:
        yield "check", (), [(*key, before) for key, before in rows.checks]
    new, to_new_row = rows.inserts, insert_row(kind)
    if rows.deletes:
        gone = dict(rows.deletes)
        # Removed and made anew within the group: a row that keeps its place and nothing else.
        back = [record for record in new if record.key in gone]
        new = [record for record in new if record.key not in gone]
        if back:
            yield "replace", back, [(*to_new_row(record), gone.pop(record.key)) for record in back]
        if gone:
            yield "delete", (), [(*key, before) for key, before in gone.items()]
    if new:
        yield "insert", new, [to_new_row(record) for record in new]
    if rows.updates:
        to_row = update_row(kind)
        yield "update", [record for record, _ in rows.updates], [to_row(*update) for update in rows.updates]


def read(rows: Sequence[Row]) -> Written | dict[Ref, int]:
    """Return what was written, or the rows that are not as expected with the revisions they have."""
    if len(rows) == 1 and not rows[0][0]:
        _, log_id, transaction, head, group_count, time = rows[0]
        return Written(log_id, head, group_count, time, transaction)
    return {(Kind(kind), (namespace, name)): revision for kind, namespace, name, revision, *_ in rows}


def _events(members: Sequence[ChangeSet]) -> list[tuple[int, int, bytes]]:
    """Return the rows of events, with places counted from the head of the log, which only the statement knows."""
    rows, last = [], 0
    for changes in members:
        first, last = last + 1, last + len(changes.events)
        rows.append((last, first, pack_events(changes.events)))
    return rows


# What is stored of the rows a group names


def revisions(refs: Iterable[Ref]) -> tuple[str, list[Any]]:
    """Return the statement that selects kind, namespace, id and revision of rows that are there, with its arguments."""
    by_kind: dict[Kind, list[tuple[str, str]]] = {}
    for kind, key in refs:
        by_kind.setdefault(kind, []).append(key)
    kinds = sorted(by_kind)
    arguments = [argument for kind in kinds for argument in texts.arguments(texts.KEYS, by_kind[kind])]
    return texts.revisions(tuple(kinds)), arguments
