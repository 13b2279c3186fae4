"""The records in memory: open tasks, agents, sessions, messages, and what was changed lately.

Each record has a *latest* state, which decisions build on, and a *committed* one, which callers are shown. They
differ while
change sets are in flight. When a change set fails, the latest state falls back to the committed one; whatever was
built on it fails too: its expected revisions are then wrong, or another's (`ChangeSet.built_on`).

Listeners are told of every change of a latest state, forward and back, and keep indexes from it; when all the changes
of a change set were told, `after_changes` are called.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar, cast

from .agents import Agent
from .changes import ChangeSet
from .messages import Message, MessageState
from .pending import Pending
from .records import Key, Kind, Record, Ref
from .sessions import Session
from .tasks import Progress, Task

R = TypeVar("R", bound=Record)

Listener = Callable[[Ref, Record | None, Record | None], None]
"""Called with the record's name, the old latest state and the new one."""

RECENT = 4_096
"""Records kept after they have been closed, for those who ask right afterwards."""

NEVER = 2**63

ALWAYS_COMPLETE = frozenset({Kind.AGENT, Kind.SESSION, Kind.BROADCAST, Kind.CURSOR})
"""Kinds of which every record is in memory: what is not here does not exist."""


class Flight:
    """Changes of one record that are not committed yet, oldest first; None stands for a removal."""

    __slots__ = ("committed", "outcome", "pending")

    def __init__(self, committed: Record | None, outcome: Pending) -> None:
        self.committed = committed
        self.pending: list[tuple[ChangeSet, Record | None]] = []
        # The outcome of the newest.
        self.outcome = outcome


def is_open(record: Record) -> bool:
    """Whether a record has to be in memory."""
    if isinstance(record, Task):
        return not record.terminal
    if isinstance(record, Message):
        return record.state in (MessageState.QUEUED, MessageState.DELIVERED)
    return record.kind in ALWAYS_COMPLETE or record.kind is Kind.PROGRESS


class Memory:
    """Latest and committed records. Not safe for threads; one event loop owns it."""

    def __init__(self) -> None:
        self._latest: dict[Kind, dict[Key, Record]] = {kind: {} for kind in Kind}
        self._flights: dict[Ref, Flight] = {}
        self._recent: OrderedDict[Ref, Record] = OrderedDict()
        self.listeners: list[Listener] = []
        # What lease and start epochs come after; zero but in a log that was restored (`restored.py`).
        self.epoch_floor = 0
        self.after_changes: list[Callable[[], None]] = []
        # How far follow-ups have come, and had come when each change set in flight was made the latest state: what
        # they saw since then was seen with it.
        self.followed_to = 0
        self._since: dict[int, int] = {}
        # From where they have to look again, because something they saw came to nothing.
        self.look_again = NEVER
        # Grows when a committed state becomes another, so that who reads the store can tell whether it did meanwhile.
        self.moves = 0

    def load(self, records: Iterable[Record]) -> None:
        """Fill in committed records at the start; those that are over are left out."""
        for record in records:
            if is_open(record):
                self._change(record.ref, record)
        self._changed()

    def latest(self, ref: Ref) -> Record | None:
        """Return the state decisions build on, or None if it is not in memory."""
        found = self._latest[ref[0]].get(ref[1])
        return found if found is not None else self._recent.get(ref)

    def look(self, ref: Ref) -> tuple[Record | None, Flight | None]:
        """Return the latest state of a record, as `latest`, and its changes in flight, as `flight`."""
        found = self._latest[ref[0]].get(ref[1])
        return found if found is not None else self._recent.get(ref), self._flights.get(ref)

    def committed(self, ref: Ref) -> Record | None:
        """Return the state callers are shown, or None if it is not in memory."""
        flight = self._flights.get(ref)
        return flight.committed if flight is not None else self.latest(ref)

    def flight(self, ref: Ref) -> Flight | None:
        """Return the changes in flight of a record, or None."""
        return self._flights.get(ref)

    def all(self, kind: type[R]) -> list[R]:
        """Return the latest states of a kind."""
        return [cast(R, record) for record in self._latest[kind.kind].values()]

    def refs(self, kind: Kind, namespace: str) -> list[Ref]:
        """Return the names of all records of a kind in a namespace, those being removed included."""
        here = {(kind, key) for key in self._latest[kind] if key[0] == namespace}
        here.update(ref for ref in self._flights if ref[0] is kind and ref[1][0] == namespace)
        return list(here)

    def agent(self, key: Key) -> Agent | None:
        """Return an agent's latest state."""
        return self._latest[Kind.AGENT].get(key)  # type: ignore[return-value]  # the kind says so

    def session(self, key: Key) -> Session | None:
        """Return a session's latest state."""
        return self._latest[Kind.SESSION].get(key)  # type: ignore[return-value]  # the kind says so

    def task(self, key: Key) -> Task | None:
        """Return a task's latest state if it is in memory."""
        return self.latest((Kind.TASK, key))  # type: ignore[return-value]  # the kind says so

    def progress(self, key: Key) -> Progress | None:
        """Return the latest progress of a task if it is in memory."""
        return self.latest((Kind.PROGRESS, key))  # type: ignore[return-value]  # the kind says so

    # Change sets ----------------------------------------------------------------------------------------------------

    def apply(self, changes: ChangeSet, outcome: Pending) -> None:
        """Make a submitted change set the latest state; `outcome` is what will become of it."""
        flights = self._flights
        self._since[id(changes)] = self.followed_to
        if flights:
            changes.built_on = self._underway(changes)
        for ref, record in _rows(changes):
            flight = flights.get(ref)
            if flight is None:
                flight = flights[ref] = Flight(self.latest(ref), outcome)
            else:
                flight.outcome = outcome
            flight.pending.append((changes, record))
            self._change(ref, record)
        self._changed()

    def _underway(self, changes: ChangeSet) -> tuple[ChangeSet, ...]:
        """Return those in flight that made the states a change set was decided on."""
        flights, found = self._flights, list[ChangeSet]()
        for refs in (changes.puts, changes.deletes, changes.checks):
            for ref in refs:
                flight = flights.get(ref)
                if flight is not None and not any(flight.pending[-1][0] is other for other in found):
                    found.append(flight.pending[-1][0])
        return tuple(found)

    @property
    def seen_for_sure(self) -> int:
        """Up to where follow-ups saw nothing that may come to nothing yet; `NEVER` while nothing is in flight."""
        return next(iter(self._since.values()), NEVER)

    def settle(self, changes: ChangeSet, *, known: bool = False) -> None:
        """Note that a change set was committed; `known`: that was followed already, and so was what came after it."""
        self.moves += 1
        self._since.pop(id(changes), None)
        flights = self._flights
        for ref, record in _rows(changes):
            flight = flights.get(ref)
            if flight is None:
                if not known:
                    # Given up as unknown before, yet written: what was built on it says so.
                    self._change(ref, record)
                    self._changed()
                continue
            pending = flight.pending
            if not known:
                flight.committed = record
            if pending[0][0] is changes:
                del pending[0]
            if not pending:
                del flights[ref]
                if known and flight.committed is not record:
                    self._change(ref, flight.committed)
                    self._changed()
                record = flight.committed
                if record is not None and not (is_open(record) and self._wanted(ref)):
                    self._retire(ref, record)

    def revert(self, changes: ChangeSet) -> None:
        """Note that a change set was not committed; its records fall back."""
        self.look_again = min(self.look_again, self._since.pop(id(changes), NEVER))
        for ref, _ in _rows(changes):
            self._fall(ref, changes)
        self._changed()

    def _fall(self, ref: Ref, changes: ChangeSet) -> None:
        flight = self._flights.get(ref)
        at = next((i for i, (owner, _) in enumerate(flight.pending) if owner is changes), -1) if flight else -1
        if flight is None or at < 0:
            return
        del flight.pending[at:]
        base = flight.pending[-1][1] if flight.pending else flight.committed
        self._change(ref, base)
        if not flight.pending:
            del self._flights[ref]
            if base is not None and not (is_open(base) and self._wanted(ref)):
                self._retire(ref, base)

    def learn(self, ref: Ref, record: Record | None, moves: int) -> None:
        """Take over what was read from the store, unless changes are in flight.

        `moves` is the value of that name when it was asked for: what has moved since is newer than an older revision.
        """
        if ref in self._flights:
            return
        if moves != self.moves:
            known = self.latest(ref)
            if known is None and ref[0] is not Kind.PROGRESS:
                # What is open is here, or will be: it may have ended since.
                return
            if known is not None and (record is None or record.revision < known.revision):
                return
        if record is not None and is_open(record):
            self._change(ref, record)
        elif ref[1] in self._latest[ref[0]]:
            self._change(ref, None)
        self._changed()

    # What others committed ------------------------------------------------------------------------------------------

    def follow(self, ref: Ref, record: Record | None, *, anew: bool = False) -> None:
        """Take over what another replica committed; call `followed` after some of it.

        An older revision changes nothing, unless the record was removed meanwhile and made `anew`. What this replica
        has in flight was built on another state: it will fail, and falls back on this one.
        """
        flight = self._flights.get(ref)
        known = flight.committed if flight is not None else self.latest(ref)
        if record is not None and known is not None and not anew and record.revision <= known.revision:
            return
        if flight is not None:
            flight.committed = record
        elif record is None or (is_open(record) and self._wanted(ref)):
            self._change(ref, record)
        elif ref[1] in self._latest[ref[0]]:
            self._change(ref, record)
            self._retire(ref, record)
        else:
            # It was reopened and is over again, or was never open here.
            self._recent.pop(ref, None)

    def close(self, ref: Ref, revision: int, *, anew: bool = False) -> None:
        """Take over that another replica ended a record with a revision: who wants to see it reads the store."""
        flight = self._flights.get(ref)
        known = flight.committed if flight is not None else self.latest(ref)
        if known is None or (known.revision >= revision and not anew):
            return
        if flight is not None:
            flight.committed = None
        else:
            self._change(ref, None)

    def _wanted(self, ref: Ref) -> bool:
        """Whether an open record belongs here: the progress of a task goes with it."""
        return ref[0] is not Kind.PROGRESS or ref[1] in self._latest[Kind.TASK]

    def followed(self) -> None:
        """Let those who listen hear that what was followed is whole."""
        self.moves += 1
        self._changed()

    def renew(self, kind: Kind, records: Iterable[Record], newer: Collection[Ref]) -> None:
        """Put all records of a kind right after a scan of the store, but for those that are known to be `newer`."""
        there = set[Ref]()
        for record in records:
            there.add(record.ref)
            if record.ref not in newer and (is_open(record) or record.key in self._latest[kind]):
                # What was removed and made anew meanwhile has a lower revision than what is known.
                self.follow(record.ref, record, anew=True)
        for key in list(self._latest[kind]):
            ref = (kind, key)
            if ref not in there and ref not in newer:
                self.follow(ref, None)
        for ref in [ref for ref in self._recent if ref[0] is kind and ref not in newer]:
            del self._recent[ref]
        self.followed()

    def _change(self, ref: Ref, record: Record | None) -> None:
        records = self._latest[ref[0]]
        old = records.get(ref[1])
        if record is None:
            records.pop(ref[1], None)
            self._recent.pop(ref, None)
            if ref[0] is Kind.TASK:
                self._latest[Kind.PROGRESS].pop(ref[1], None)
        else:
            records[ref[1]] = record
        for listener in self.listeners:
            listener(ref, old, record)

    def _changed(self) -> None:
        for after in self.after_changes:
            after()

    def _retire(self, ref: Ref, record: Record) -> None:
        self._latest[ref[0]].pop(ref[1], None)
        if ref[0] is Kind.TASK:
            self._latest[Kind.PROGRESS].pop(ref[1], None)
            self._recent[ref] = record
            self._recent.move_to_end(ref)
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)


def _rows(changes: ChangeSet) -> Iterable[tuple[Ref, Record | None]]:
    if not changes.deletes:
        return changes.puts.items()
    return [*changes.puts.items(), *((ref, None) for ref in changes.deletes)]
