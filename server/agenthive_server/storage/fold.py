"""A group of change sets folded together: whatever it does to a row, the row is written once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.records import Key, Kind, Record, Ref


@dataclass(slots=True)
class Rows:
    """What is to be done to one kind's table. Each with the revision that must be there before: 0 for no row."""

    inserts: list[Record] = field(default_factory=list)
    updates: list[tuple[Record, int]] = field(default_factory=list)
    deletes: list[tuple[Key, int]] = field(default_factory=list)
    checks: list[tuple[Key, int]] = field(default_factory=list)


class Fold:
    """Takes change sets in order, each seeing what those before it did.

    With `known` revisions of every row the group names, a change set is judged exactly. Without, a row is taken to be
    as the first who names it expects; whoever writes the rows finds out whether that is so.
    """

    def __init__(self, known: Mapping[Ref, int] | None = None) -> None:
        self._exact = known is not None
        # The revisions of rows that are not written.
        self._known = dict(known or {})
        # What becomes of those that are; None for one that is removed.
        self._written: dict[Ref, Record | None] = {}
        # The revision before, where it is not the one before that of the record written: that would be most of them.
        self._before: dict[Ref, int] = {}
        self._removed: set[Ref] = set()

    def add(self, changes: ChangeSet) -> tuple[Ref, ...]:
        """Take a change set in; or, when rows are not as it expects, leave it out and return those rows."""
        expected = list(changes.checks.items() if self._all_new(changes) else expectations(changes))
        stale = [ref for ref, revision in expected if self._revision(ref, revision) != revision]
        if changes.built_on:
            stale += changes.undermined()
        if stale:
            # What comes next and was built on it must not take the row of another for its own.
            changes.void = self._exact
            return tuple(dict.fromkeys(stale))
        for ref, revision in expected:
            earlier = self._written.get(ref)
            self._before.setdefault(ref, earlier.revision - 1 if earlier else revision)
            self._known[ref] = revision
        for ref in changes.deletes:
            self._known[ref] = 0
            self._written[ref] = None
            self._removed.add(ref)
        self._written.update(changes.puts)
        return ()

    def _all_new(self, changes: ChangeSet) -> bool:
        """Whether nothing is known of the rows a change set puts, so that each is taken to be as it expects."""
        if self._exact or changes.deletes:
            return False
        puts = changes.puts.keys()
        return all(map(puts.isdisjoint, (changes.checks.keys(), self._known.keys(), self._written.keys())))

    def _revision(self, ref: Ref, unknown: int) -> int:
        record = self._written.get(ref)
        return record.revision if record else self._known.get(ref, unknown)

    def rows(self) -> Mapping[Kind, Rows]:
        """Return what is to be done, by kind; deletes come before inserts, for a key may be in both."""
        found: dict[Kind, Rows] = defaultdict(Rows)
        for ref, record in self._written.items():
            rows = found[ref[0]]
            before = self._before.get(ref, -1)
            if record is None:
                (rows.deletes if before else rows.checks).append((ref[1], before))
                continue
            if before < 0:
                before = record.revision - 1
            if before and ref not in self._removed:
                rows.updates.append((record, before))
            else:
                if before:
                    rows.deletes.append((ref[1], before))
                rows.inserts.append(record)
        for (kind, key), before in self._before.items():
            if (kind, key) not in self._written:
                found[kind].checks.append((key, before))
        return found

    @property
    def empty(self) -> bool:
        """Whether no row would be written."""
        return not self._written


def expectations(changes: ChangeSet) -> Iterator[tuple[Ref, int]]:
    """Yield every row a change set names with the revision it must have, 0 for no row."""
    for ref, record in changes.puts.items():
        yield ref, record.revision - 1
    for ref, record in changes.deletes.items():
        yield ref, record.revision
    yield from changes.checks.items()
