"""What the hub of output asks of whoever shares output with other servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from agenthive_server.kernel.tasks import Task

from .attempt_output import AttemptKey, Entry
from .filter import EventFilter


class Exchange(Protocol):
    """Shares output with other servers: lets them have this one's, and brings in theirs where somebody reads it here.

    Nothing here waits but `open`, and nothing raises.
    """

    def taken(self, entry: Entry) -> None:
        """Let the others have a chunk or progress that was taken in here."""

    def dropped(self, entry: Entry) -> None:
        """Drop a chunk there that had to go here."""

    def ended(self, key: AttemptKey) -> None:
        """Drop what is left of an attempt."""

    def hold(self, task: Task, attempt: int, offset: int, data: bytes, stream: str) -> bool:
        """Return whether it takes a chunk before which something is missing, and appends it with that, or without."""

    async def whole(self, key: AttemptKey) -> None:
        """Return when no chunk of an attempt is held any more."""

    async def open(
        self, wanted: EventFilter, sequence: int, offsets: Mapping[AttemptKey, int], *, backlog: bool
    ) -> object:
        """Bring in what a reader wants from now on, and first what there is: from offsets, and `backlog`, all of it.

        Returns when it is here, or cannot be had; what to give to `close`.
        """

    def close(self, wish: object) -> None:
        """Bring it in no more."""
