"""Class OUTPUT: what attempts print and how far they are, kept in memory for a while and never in the log.

Chunks are keyed by task, attempt and offset. All of them stand in one list, in the order they came; readers have a
position in it. What has to make room is remembered by offset, so that each reader is told of its own gap.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.events import Event, EventType, task_event
from agenthive_server.kernel.tasks import Task

from .notifier import LocalNotifier

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


class OutputHub:
    """Keeps output within bounds of time and bytes and wakes its readers. Runs on the event loop; never waits.

    `sequence` tells the head of the log, so that a reader which resumes by cursor finds the output that came since.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        sequence: Callable[[], int] = lambda: 0,
        retention: float = 3_600.0,
        attempt_bytes: int = 2**20,
        total_bytes: int = 64 * 2**20,
    ) -> None:
        self._clock = clock
        self._sequence = sequence
        self._retention = retention
        self._attempt_bytes = attempt_bytes
        self._total_bytes = total_bytes
        self._entries: list[Entry] = []
        # Index of the oldest entry that may be alive, number of the dead, bytes of the living.
        self._oldest = 0
        self._dead = 0
        self._bytes = 0
        self._attempts: OrderedDict[AttemptKey, AttemptOutput] = OrderedDict()
        self._newest: dict[tuple[str, str], int] = {}
        self.next = 0
        self.lost = -1
        self.notifier = LocalNotifier(clock)

    @property
    def attempts(self) -> OrderedDict[AttemptKey, AttemptOutput]:
        """The attempts something is known of, the quietest first."""
        return self._attempts

    @property
    def bytes_kept(self) -> int:
        """Bytes of memory the output takes."""
        return self._bytes

    def append(self, task: Task, attempt: int, offset: int, data: bytes, stream: str = "") -> bool:
        """Take a chunk; False when it was seen before or belongs to an attempt that was superseded.

        What overlaps with bytes already seen is cut off; a jump in the offset is a gap to every reader.
        """
        kept = self._find_attempt(task, attempt)
        if kept is None or offset + len(data) <= kept.end:
            return False
        if offset < kept.end:
            data, offset = data[kept.end - offset :], kept.end
        event = task_event(EventType.TASK_OUTPUT, task, attempt=attempt, offset=offset, data=data, stream=stream)
        entry = self._add(kept, event, offset, len(data))
        kept.chunks.append(entry)
        kept.end = offset + len(data)
        kept.size += len(data)
        while kept.size - kept.chunks[0].size >= self._attempt_bytes:
            self._drop(kept.chunks[0])
        self._after_append()
        return True

    def progress(self, task: Task, attempt: int, fraction: float, text: str = "") -> bool:
        """Take how far an attempt is; only the newest is kept. False when the attempt was superseded."""
        kept = self._find_attempt(task, attempt)
        if kept is None:
            return False
        if kept.progress is not None:
            self._drop(kept.progress)
        event = task_event(EventType.TASK_PROGRESSED, task, attempt=attempt, fraction=fraction, text=text)
        kept.progress = self._add(kept, event, -1, len(text))
        self._after_append()
        return True

    @property
    def empty(self) -> bool:
        """Whether there is no output of any attempt."""
        return not self._attempts

    def tail(self, namespace: str, task_id: str, attempt: int) -> bytes:
        """Return the end of an attempt's output, at most the bytes kept per attempt; empty when there is none."""
        kept = self._attempts.get((namespace, task_id, attempt))
        if kept is None:
            return b""
        data = b"".join(entry.event.data["data"] for entry in kept.chunks if entry.event is not None)
        return data[-self._attempt_bytes :]

    def forget(self, namespace: str, task_id: str, attempt: int) -> None:
        """Drop the output of an attempt at once; readers that have not had it yet are told of a gap."""
        kept = self._attempts.get((namespace, task_id, attempt))
        if kept is not None:
            self._drop_all(kept)

    def expire(self) -> None:
        """Drop what is older than the retention. Done with every chunk; call it now and then when none come."""
        before = self._clock.now() - self._retention
        while (entry := self._oldest_entry()) is not None and entry.time < before:
            self._drop(entry)
        while self._attempts:
            kept = next(iter(self._attempts.values()))
            if kept.time >= before:
                break
            self._drop_all(kept)
            del self._attempts[kept.key]
            namespace, task_id, number = kept.key
            if self._newest.get((namespace, task_id)) == number:
                del self._newest[namespace, task_id]

    def position_at(self, *, time: float | None = None, sequence: int | None = None) -> int:
        """Return the position of the first output since a time or since the log stood at a sequence."""
        if time is not None:
            index = bisect_left(self._entries, time, key=attrgetter("time"))
        else:
            index = bisect_left(self._entries, sequence or 0, key=attrgetter("sequence"))
        return self._entries[index].position if index < len(self._entries) else self.next

    def since(self, position: int, limit: int) -> list[Entry]:
        """Return up to `limit` entries from a position on, dead ones among them."""
        index = bisect_left(self._entries, position, key=attrgetter("position"))
        return self._entries[index : index + limit]

    def _find_attempt(self, task: Task, number: int) -> AttemptOutput | None:
        """Return the attempt's output, begun if it is new; None when a newer attempt has begun."""
        subject = (task.namespace, task.id)
        newest = self._newest.get(subject, -1)
        if number < newest:
            return None
        key = (*subject, number)
        kept = self._attempts.get(key)
        if kept is None:
            self._newest[subject] = number
            sample = task_event(EventType.TASK_OUTPUT, task, attempt=number)
            kept = self._attempts[key] = AttemptOutput(key, sample, self.next, self._clock.now())
        return kept

    def _add(self, kept: AttemptOutput, event: Event, offset: int, size: int) -> Entry:
        event.time = kept.time = self._clock.now()
        entry = Entry(self.next, kept, event.time, self._sequence(), event, offset, size)
        self.next += 1
        self._entries.append(entry)
        self._bytes += entry.weight
        self._attempts.move_to_end(kept.key)
        return entry

    def _after_append(self) -> None:
        while self._bytes > self._total_bytes and (entry := self._oldest_entry()) is not None:
            self._drop(entry)
        self.expire()
        if self._dead > 1_024 and self._dead > len(self._entries) // 2:
            self._entries = [entry for entry in self._entries if entry.event is not None]
            self._dead = self._oldest = 0
        self.notifier.ring(self.next)

    def _oldest_entry(self) -> Entry | None:
        entries = self._entries
        while self._oldest < len(entries) and entries[self._oldest].event is None:
            self._oldest += 1
        return entries[self._oldest] if self._oldest < len(entries) else None

    def _drop(self, entry: Entry) -> None:
        """Let an entry go; what it told is remembered as lost, unless newer progress stands for it."""
        kept = entry.attempt
        entry.event = None
        self._dead += 1
        self._bytes -= entry.weight
        if entry is kept.progress:
            kept.progress = None
            return
        # Always the oldest chunk of its attempt: chunks are in the order in which they came.
        kept.chunks.popleft()
        kept.size -= entry.size
        kept.lost = entry.position
        self.lost = max(self.lost, entry.position)

    def _drop_all(self, kept: AttemptOutput) -> None:
        while kept.chunks:
            self._drop(kept.chunks[0])
        if kept.progress is not None:
            self._drop(kept.progress)
