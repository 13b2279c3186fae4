"""Change sets: what one verb wants committed together, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .events import Event
from .records import Record, Ref

MAX_ROWS = 1_024
"""Rows a change set may write or check."""


@dataclass(slots=True)
class ChangeSet:
    """Rows and events that stand or fall together.

    `puts` holds records with their new revision: 1 means insert if the key is free, n means update if the stored
    revision is n - 1. `deletes` holds records as they are; they are removed if the stored revision is theirs. `checks`
    holds records that are not changed but must still have this revision (0: must not exist). `events` get their
    sequence when the set is committed.

    A revision says which state is meant only as long as one server writes: others may have made another of that number.
    So a set also names those in flight whose states it was `built_on`; where one of them is `void`, it does not stand.
    """

    puts: dict[Ref, Record] = field(default_factory=dict)
    deletes: dict[Ref, Record] = field(default_factory=dict)
    checks: dict[Ref, int] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    built_on: tuple[ChangeSet, ...] = field(default=(), compare=False, repr=False)
    # It was not committed, or nobody knows.
    void: bool = field(default=False, compare=False, repr=False)

    def undermined(self) -> tuple[Ref, ...]:
        """Return the rows this was built on in a state that never came to be."""
        gone = {ref for other in self.built_on if other.void for ref in (*other.puts, *other.deletes)}
        return tuple(ref for ref in (*self.puts, *self.deletes, *self.checks) if ref in gone) if gone else ()

    @property
    def empty(self) -> bool:
        """Whether nothing would be written."""
        return not (self.puts or self.deletes or self.events)


@dataclass(slots=True, frozen=True)
class Committed:
    """The change set is durable. Its events carry sequence, time and end of the set."""


@dataclass(slots=True, frozen=True)
class Conflicted:
    """Nothing of the change set was written: these rows were not as it expected."""

    refs: tuple[Ref, ...]


@dataclass(slots=True, frozen=True)
class Rejected:
    """Nothing was written: the database refuses this data, and would again. `reason` is for the log."""

    reason: str


Outcome = Committed | Conflicted | Rejected
COMMITTED = Committed()
