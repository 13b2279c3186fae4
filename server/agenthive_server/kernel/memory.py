"""The records in memory: open tasks, agents, sessions, messages, and what was changed lately.

Each record has a *latest* state, which decisions build on, and a *committed* one, which callers are shown. They
differ while
change sets are in flight. When a change set fails, the latest state falls back to the committed one; whatever was
built on it fails too: its expected revisions are then wrong, or another's (`ChangeSet.built_on`).

Listeners are told of every change of a latest state, forward and back, and keep indexes from it: of all that a change
set changes at once, when the memory has it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar, cast

from .agents import Agent
from .changes import ChangeSet
from .messages import Message, MessageState
from .pending import Pending
from .records import Key, Kind, Record, Ref
from .sessions import Session
from .tasks import TERMINAL, Progress, Task

R = TypeVar("R", bound=Record)

Changed = tuple[Ref, Record | None, Record | None]
"""A record's name, its old latest state and the new one."""

Listener = Callable[[Sequence[Changed]], None]

RECENT = 4_096
"""Records kept after they have been closed, for those who ask right afterwards."""

NEVER = 2**63

# Looked up once: in Python 3.11 finding a member in an enum takes as long as thirty names of the module.
TASK, PROGRESS = Kind.TASK, Kind.PROGRESS

ALWAYS_COMPLETE = frozenset({Kind.AGENT, Kind.SESSION, Kind.BROADCAST, Kind.CURSOR})
"""Kinds of which every record is in memory: what is not here does not exist."""


class Flight:
    """A change set that is not committed yet, and the states it replaced."""

    __slots__ = ("changes", "earlier", "found", "outcome", "since")

    def __init__(self, changes: ChangeSet, outcome: Pending, since: int) -> None:
        self.changes = changes
        self.outcome = outcome
        # How far follow-ups had come: what they see from there on is seen with it.
        self.since = since
        # By record: what was there; of the oldest in flight that changes a record, that is the committed state.
        self.found: dict[Ref, Record | None] = {}
        # By record: who changed it before, if that is in flight too.
        self.earlier: dict[Ref, Flight] = {}

    def oldest(self, ref: Ref) -> Flight:
        """Return the oldest in flight that changes a record which this one changes."""
        flight = self
        while (earlier := flight.earlier.get(ref)) is not None:
            flight = earlier
        return flight


def is_open(record: Record) -> bool:
    """Whether a record has to be in memory."""
    if isinstance(record, Task):
        return record.state not in TERMINAL
    if isinstance(record, Message):
        return record.state in (MessageState.QUEUED, MessageState.DELIVERED)
    return record.kind in ALWAYS_COMPLETE or record.kind is Kind.PROGRESS


class Memory:
    """Latest and committed records. Not safe for threads; one event loop owns it."""

    def __init__(self) -> None:
        self._latest: dict[Kind, dict[Key, Record]] = {kind: {} for kind in Kind}
        # By record: the newest that changes it.
        self._flights: dict[Ref, Flight] = {}
        # All of them by the identity of their change sets, oldest first.
        self._underway: dict[int, Flight] = {}
        # Never what is among the latest as well.
        self._recent: OrderedDict[Ref, Record] = OrderedDict()
        self.listeners: list[Listener] = []
        # What they have not been told yet.
        self._untold: list[Changed] = []
        # What lease and start epochs come after; zero but in a log that was restored (`restored.py`).
        self.epoch_floor = 0
        # How far follow-ups have come.
        self.followed_to = 0
        # From where they have to look again, because something they saw came to nothing.
        self.look_again = NEVER
        # Grows when a committed state becomes another, so that who reads the store can tell whether it did meanwhile.
        self.moves = 0

    def load(self, records: Iterable[Record]) -> None:
        """Fill in committed records at the start; those that are over are left out."""
        for record in records:
            if is_open(record):
                self._change(record.ref, record)
        self._tell()

    def latest(self, ref: Ref) -> Record | None:
        """Return the state decisions build on, or None if it is not in memory."""
        found = self._latest[ref[0]].get(ref[1])
        return found if found is not None else self._recent.get(ref)

    def look(self, ref: Ref) -> tuple[Record | None, Flight | None]:
        """Return the latest state of a record, as `latest`, and its newest change in flight, as `flight`."""
        found = self._latest[ref[0]].get(ref[1])
        return found if found is not None else self._recent.get(ref), self._flights.get(ref)

    def committed(self, ref: Ref) -> Record | None:
        """Return the state callers are shown, or None if it is not in memory."""
        flight = self._flights.get(ref)
        return flight.oldest(ref).found[ref] if flight is not None else self.latest(ref)

    def flight(self, ref: Ref) -> Flight | None:
        """Return the newest change in flight of a record, or None."""
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
        flight = self._underway[id(changes)] = Flight(changes, outcome, self.followed_to)
        self._build(flight)
        found = flight.found
        for ref, record in _rows(changes):
            found[ref] = self._change(ref, record)
            flights[ref] = flight
        self._tell()

    def _build(self, flight: Flight) -> None:
        """Note which others in flight made the states a change set was decided on."""
        flights, changes, found = self._flights, flight.changes, dict[int, ChangeSet]()
        for refs in (changes.puts, changes.deletes, changes.checks):
            if flights.keys().isdisjoint(refs.keys()):
                continue
            for ref in refs:
                earlier = flights.get(ref)
                if earlier is not None:
                    found[id(earlier)] = earlier.changes
                    if refs is not changes.checks:
                        flight.earlier[ref] = earlier
        changes.built_on = tuple(found.values())

    @property
    def seen_for_sure(self) -> int:
        """Up to where follow-ups saw nothing that may come to nothing yet; `NEVER` while nothing is in flight."""
        oldest = next(iter(self._underway.values()), None)
        return oldest.since if oldest is not None else NEVER

    def settle(self, changes: ChangeSet, *, known: bool = False) -> None:
        """Note that a change set was committed; `known`: that was followed already, and so was what came after it."""
        self.moves += 1
        flights = self._flights
        flight = self._underway.pop(id(changes), None)
        for ref, record in _rows(changes):
            if flight is None or known or flights.get(ref) is not flight or ref in flight.earlier:
                self._settle_among(ref, record, flight, known)
            else:
                del flights[ref]
                self._leave(ref, record)
        self._tell()

    def _settle_among(self, ref: Ref, record: Record | None, flight: Flight | None, known: bool) -> None:
        """Note what was committed of a record that others in flight change too, or others have committed."""
        newest = self._flights.get(ref)
        if newest is None:
            if not known:
                # Given up as unknown before, yet written: what was built on it says so.
                self._change(ref, record)
            return
        later, oldest = None, newest
        while (earlier := oldest.earlier.get(ref)) is not None:
            later, oldest = oldest, earlier
        committed = oldest.found[ref] if known else record
        if oldest is not flight:
            oldest.found[ref] = committed
        elif later is not None:
            del later.earlier[ref]
            later.found[ref] = committed
        else:
            del self._flights[ref]
            if committed is not record:
                self._change(ref, committed)
            self._leave(ref, committed)

    def revert(self, changes: ChangeSet) -> None:
        """Note that a change set was not committed; its records fall back."""
        flight = self._underway.pop(id(changes), None)
        if flight is not None:
            self.look_again = min(self.look_again, flight.since)
            for ref in flight.found:
                self._fall(ref, flight)
            self._tell()

    def _fall(self, ref: Ref, flight: Flight) -> None:
        """Take back what a change set made of a record, and what was made of it since."""
        later = self._flights.get(ref)
        while later is not None and later is not flight:
            later = later.earlier.get(ref)
        if later is None:
            return
        earlier = flight.earlier.get(ref)
        if earlier is not None:
            self._flights[ref] = earlier
            self._change(ref, earlier.changes.puts.get(ref))
        else:
            del self._flights[ref]
            self._change(ref, flight.found[ref])
            self._leave(ref, flight.found[ref])

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
        self._tell()

    # What others committed ------------------------------------------------------------------------------------------

    def follow(self, ref: Ref, record: Record | None, *, anew: bool = False) -> None:
        """Take over what another replica committed; call `followed` after some of it.

        An older revision changes nothing, unless the record was removed meanwhile and made `anew`. What this replica
        has in flight was built on another state: it will fail, and falls back on this one.
        """
        flight = self._flights.get(ref)
        known = self.committed(ref)
        if record is not None and known is not None and not anew and record.revision <= known.revision:
            return
        if flight is not None:
            flight.oldest(ref).found[ref] = record
        elif record is None or ref[1] in self._latest[ref[0]] or self._belongs(ref, record):
            self._change(ref, record)
            self._leave(ref, record)
        else:
            # It was reopened and is over again, or was never open here.
            self._recent.pop(ref, None)

    def close(self, ref: Ref, revision: int, *, anew: bool = False) -> None:
        """Take over that another replica ended a record with a revision: who wants to see it reads the store."""
        flight = self._flights.get(ref)
        known = self.committed(ref)
        if known is None or (known.revision >= revision and not anew):
            return
        if flight is not None:
            flight.oldest(ref).found[ref] = None
        else:
            self._change(ref, None)

    def followed(self) -> None:
        """Let those who listen hear that what was followed is whole."""
        self.moves += 1
        self._tell()

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

    # One record ------------------------------------------------------------------------------------------------------

    def _change(self, ref: Ref, record: Record | None) -> Record | None:
        """Make a record the latest state, or none; returns what it was. Listeners hear of it with the next `_tell`."""
        kind, key = ref
        records = self._latest[kind]
        old = records.get(key)
        known = old if old is not None else self._recent.pop(ref, None)
        if record is not None:
            records[key] = record
        else:
            records.pop(key, None)
            if kind is TASK:
                self._latest[PROGRESS].pop(key, None)
        self._untold.append((ref, old, record))
        return known

    def _tell(self) -> None:
        if self._untold:
            told, self._untold = self._untold, []
            for listener in self.listeners:
                listener(told)

    def _belongs(self, ref: Ref, record: Record) -> bool:
        """Whether a committed record has to be here: one that is open; the progress of a task goes with it."""
        return ref[1] in self._latest[TASK] if ref[0] is PROGRESS else is_open(record)

    def _leave(self, ref: Ref, record: Record | None) -> None:
        """Let a committed record go if it is over; a task is kept for a while apart."""
        if record is None or self._belongs(ref, record):
            return
        kind, key = ref
        self._latest[kind].pop(key, None)
        if kind is TASK:
            self._latest[PROGRESS].pop(key, None)
            self._recent[ref] = record
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)


def _rows(changes: ChangeSet) -> Iterable[tuple[Ref, Record | None]]:
    if not changes.deletes:
        return changes.puts.items()
    return [*changes.puts.items(), *((ref, None) for ref in changes.deletes)]
