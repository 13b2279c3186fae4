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
    """

    puts: dict[Ref, Record] = field(default_factory=dict)
    deletes: dict[Ref, Record] = field(default_factory=dict)
    checks: dict[Ref, int] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

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
