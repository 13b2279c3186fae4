"""What is kept of the output of one attempt, chunk by chunk."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from agenthive_server.kernel.events import Event

OVERHEAD = 640
"""Bytes a chunk takes in memory beside its data."""

AttemptKey = tuple[str, str, int]
"""Namespace, task and number of an attempt."""


@dataclass(slots=True, eq=False)
class Entry:
    """A chunk or progress in the list of all; `event` is None once it had to go."""

    position: int
    attempt: AttemptOutput
    time: float
    # The head of the log when it came: what a reader that resumes there has not seen.
    sequence: int
    event: Event | None
    offset: int = -1
    size: int = 0
    # Whether another server took it in, and the head of the log then.
    guest: bool = False
    origin: int = 0

    @property
    def weight(self) -> int:
        """Bytes it takes in memory."""
        return self.size + OVERHEAD


@dataclass(slots=True, eq=False)
class AttemptOutput:
    """What is kept of one attempt: chunks in order of their offset, the newest progress."""

    key: AttemptKey
    # A chunk without content, for filters and for gaps.
    sample: Event
    # Position of its first chunk, and of the last one that had to go.
    start: int
    time: float
    end: int = 0
    lost: int = -1
    # The log's head when it began; whether another server took in the first of it; what came before is not wanted.
    begun: int = 0
    guest: bool = False
    origin: int = 0
    size: int = 0
    chunks: deque[Entry] = field(default_factory=deque)
    progress: Entry | None = None

    @property
    def first_kept(self) -> int:
        """The offset from which on it is here."""
        return self.chunks[0].offset if self.chunks else self.end

    def offset_at(self, position: int) -> int:
        """Return the first byte that came at a position or later; 0 when that is not known any more."""
        if position <= max(self.start, self.lost):
            return 0
        offset = self.end
        for entry in reversed(self.chunks):
            if entry.position < position:
                break
            offset = entry.offset
        return offset

    def offset_since(self, *, time: float | None = None, sequence: int = 0) -> int:
        """Return the first byte of a guest that came at a time, or since the log stood at a sequence."""
        offset = self.end
        for entry in reversed(self.chunks):
            came = entry.origin >= sequence if time is None else entry.event is not None and entry.event.time >= time
            if not came:
                return offset
            offset = entry.offset
        # Of what is missing before them nobody knows when it came.
        return self.origin
