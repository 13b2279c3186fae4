"""What a transaction has written but not committed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from agenthive_server.kernel.changes import ChangeSet, Outcome

from . import bulk


@dataclass(slots=True)
class Draft:
    """What a transaction has written but not committed, and what will be answered."""

    outcomes: list[Outcome] = field(default_factory=list)
    # Members with events, the head of the log before them, their time.
    told: list[tuple[Sequence[ChangeSet], int, float]] = field(default_factory=list)
    # How many groups there were before, and are with this one.
    groups_before: int = sys.maxsize
    group_count: int = 0
    log_id: str = ""
    transaction: str = ""
    # Of the last group, by which it is told from another of that number.
    time: float = 0.0
    touched: bytes = b""

    def take(self, made: bulk.Bulk, written: bulk.Written) -> None:
        """Note what a statement has written."""
        self.told.append((made.members, written.head, written.time))
        self.time, self.touched = written.time, made.touched
        self.groups_before = min(self.groups_before, written.group_count)
        self.group_count, self.log_id = written.group_count + 1, written.log_id
        self.transaction = written.transaction

    def stamp(self) -> None:
        """Set what the events got in the transaction, now that it is committed."""
        for members, sequence, time in self.told:
            for changes in members:
                last = sequence + len(changes.events)
                for event in changes.events:
                    sequence += 1
                    event.sequence, event.last, event.time = sequence, last, time
