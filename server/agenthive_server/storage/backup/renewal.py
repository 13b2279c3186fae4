"""Makes a copy of a database a new log: `kernel/restored.py` decides what becomes of each record, this writes it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import cast
from uuid import uuid4

from agenthive_server.kernel import restored
from agenthive_server.kernel.agents import Agent
from agenthive_server.kernel.changes import COMMITTED, ChangeSet
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import DataLoss
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.records import CursorRecord, Kind, Record, RoleRecord
from agenthive_server.kernel.sessions import Session
from agenthive_server.kernel.tasks import Task
from agenthive_server.storage import reader, statements
from agenthive_server.storage.codec import unpack
from agenthive_server.storage.database import MOVED, Database
from agenthive_server.storage.writer import Writer

_AT_ONCE = 200
"""Records changed in one change set; with their events it stays within the bounds of one."""

Change = tuple[Record, Sequence[Event]]
"""A record as it becomes, and the facts that tell of it."""


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """What becoming a new log changed."""

    log_id: str
    tasks_requeued: int
    sessions_ended: int
    agents_begun_anew: int
    roles_released: int
    exclusive_tasks: int
    """Open tasks that must never run twice at once: a surviving worker may still be at one."""


class _Changing:
    """Commits changes in bounded change sets, to records as they were before the first of them."""

    def __init__(self, db: sqlite3.Connection, seen: sqlite3.Connection, writer: Writer) -> None:
        self._db = db
        self._seen = seen
        self._writer = writer

    def scan(self, kind: Kind) -> Iterator[Record]:
        """Yield the records of a kind that are not over."""
        rows = self._seen.execute(statements.scan_records(kind, open_only=kind is Kind.TASK))
        while batch := rows.fetchmany(_AT_ONCE):
            for row in batch:
                yield unpack(kind, *row)

    def commit(self, changes: ChangeSet) -> None:
        """Commit a change set; raises `DataLoss` when the rows are not as they were read."""
        if not changes.empty and self._writer.commit(self._db, [changes]) != [COMMITTED]:
            raise DataLoss("the records of the backup contradict each other")

    def put(self, kind: Kind, become: Callable[[Record], Change | None]) -> int:
        """Change all records of a kind that are not over, but those for which `become` returns None; returns how many.

        What is not changed in anything is not written.
        """
        count, changes = 0, ChangeSet()
        for record in self.scan(kind):
            change = become(record)
            if change is None or change[0] == record:
                continue
            count += 1
            changed = change[0].evolve(revision=record.revision + 1)
            changes.puts[changed.ref] = changed
            changes.events += change[1]
            if len(changes.puts) >= _AT_ONCE:
                self.commit(changes)
                changes = ChangeSet()
        self.commit(changes)
        return count


def begin_new_log(database: Database, clock: Clock) -> Renewal:
    """Make a database a new log, from its next event on; returns what that changed.

    Nobody else may use the database. It is done in several transactions: whoever calls this works on a copy.
    """
    with closing(database.connect(writing=True)) as db, closing(database.connect()) as seen:
        log_id = uuid4().hex
        db.execute("UPDATE meta SET log_id = ?", (log_id,))
        # The hive may live on elsewhere: this is another.
        db.execute(f"DROP TABLE IF EXISTS {MOVED}")
        writer = Writer(clock)
        writer.load(db)
        with reader.snapshot(seen):
            return _renew(_Changing(db, seen, writer), log_id, max(clock.now(), writer.head_time))


def _renew(changing: _Changing, log_id: str, now: float) -> Renewal:
    floor = _raise_epochs(changing, now)
    return Renewal(
        log_id=log_id,
        tasks_requeued=changing.put(Kind.TASK, lambda task: restored.void_lease(cast(Task, task), now=now)),
        sessions_ended=_end_sessions(changing),
        agents_begun_anew=changing.put(
            Kind.AGENT, lambda agent: restored.begin_anew(cast(Agent, agent), floor=floor, now=now)
        ),
        roles_released=changing.put(
            Kind.ROLE, lambda role: (restored.release_role(cast(RoleRecord, role), floor=floor), ())
        ),
        exclusive_tasks=sum(1 for task in changing.scan(Kind.TASK) if cast(Task, task).spec.exclusive),
    )


def _raise_epochs(changing: _Changing, now: float) -> int:
    cursors = (cast(CursorRecord, record) for record in changing.scan(Kind.CURSOR))
    known = next((cursor for cursor in cursors if cursor.key == restored.EPOCHS), None)
    floor = restored.next_floor(known, now)
    namespace, name = restored.EPOCHS
    before = known or CursorRecord(namespace=namespace, id=name, sequence=0)
    record = before.evolve(sequence=floor, revision=before.revision + 1)
    changing.commit(ChangeSet(puts={record.ref: record}))
    return floor


def _end_sessions(changing: _Changing) -> int:
    count, changes = 0, ChangeSet()
    for record in changing.scan(Kind.SESSION):
        count += 1
        changes.deletes[record.ref] = record
        changes.events.append(restored.end_session(cast(Session, record)))
        if len(changes.deletes) >= _AT_ONCE:
            changing.commit(changes)
            changes = ChangeSet()
    changing.commit(changes)
    return count
