"""Who works beside the store: what records its commits, and what reads its file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from agenthive_server.kernel.changes import ChangeSet, Outcome
from agenthive_server.kernel.ports import BlobInfo


class Recorder(Protocol):
    """Hears of all that was committed, in order, as soon as it is. Never waits, never raises."""

    def group(self, group: Sequence[ChangeSet], outcomes: Sequence[Outcome], group_count: int) -> None:
        """Take a group with its outcomes; `group_count` has grown by one if anything was written."""

    def chunk(self, upload_id: str, number: int, content: bytes) -> None:
        """Take a piece of an upload."""

    def blob(self, info: BlobInfo, upload_id: str) -> None:
        """Take a blob that is there from now on; without an upload it was there, and has a new time."""


class Visitor(Protocol):
    """Reads the file in a transaction of its own."""

    def give_up(self) -> None:
        """End it, soon."""


class Visitors:
    """Those who read the file at present."""

    def __init__(self) -> None:
        self._present: set[Visitor] = set()

    @contextmanager
    def present(self, visitor: Visitor) -> Iterator[None]:
        """Let it be known that somebody reads the file."""
        self._present.add(visitor)
        try:
            yield
        finally:
            self._present.discard(visitor)

    def send_away(self) -> None:
        """Ask all to go: the file has to be opened with nobody in it."""
        for visitor in tuple(self._present):
            visitor.give_up()
