"""Class OUTPUT: what attempts print and how far they are, kept in memory for a while and never in the log.

Chunks are keyed by task, attempt and offset. All of them stand in one list, in the order they came; readers have a
position in it. What has to make room is remembered by offset, so that each reader is told of its own gap.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.events import Event, EventType, task_event
from agenthive_server.kernel.tasks import Task

from .attempt_output import OVERHEAD, AttemptKey, AttemptOutput, Entry
from .exchange import Exchange
from .notifier import LocalNotifier

__all__ = ["OVERHEAD", "AttemptKey", "AttemptOutput", "Entry", "OutputHub"]


class OutputHub:
    """Keeps output within bounds of time and bytes and wakes its readers. Runs on the event loop; never waits.

    `sequence` tells the head of the log, so that a reader which resumes by cursor finds the output that came since.
    What other servers took in (guests) is kept for readers here, within bounds of its own.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        sequence: Callable[[], int] = lambda: 0,
        retention: float = 3_600.0,
        attempt_bytes: int = 2**20,
        total_bytes: int = 64 * 2**20,
        guest_bytes: int = 32 * 2**20,
    ) -> None:
        self._clock = clock
        self._sequence = sequence
        self.retention = retention
        self._attempt_bytes = attempt_bytes
        self._entries: list[Entry] = []
        # Own ones and guests: in order of age, dead ones among them; bytes of the living, and the most there may be.
        self._ages: tuple[deque[Entry], deque[Entry]] = (deque(), deque())
        self._bytes = [0, 0]
        self._most_bytes = (total_bytes, guest_bytes)
        self._dead = 0
        self._attempts: OrderedDict[AttemptKey, AttemptOutput] = OrderedDict()
        self._newest: dict[tuple[str, str], int] = {}
        self.next = 0
        self.lost = -1
        self.notifier = LocalNotifier(clock)
        self.exchange: Exchange | None = None

    @property
    def attempts(self) -> OrderedDict[AttemptKey, AttemptOutput]:
        """The attempts something is known of, the quietest first."""
        return self._attempts

    @property
    def bytes_kept(self) -> int:
        """Bytes of memory the output takes."""
        return sum(self._bytes)

    def append(self, task: Task, attempt: int, offset: int, data: bytes, stream: str = "") -> bool:
        """Take a chunk; False when it was seen before or belongs to an attempt that was superseded.

        What overlaps with bytes already seen is cut off; a jump in the offset is a gap to every reader.
        """
        event = task_event(EventType.TASK_OUTPUT, task)
        kept = self._find_attempt((task.namespace, task.id, attempt), event)
        if kept is None:
            return False
        exchange = self.exchange
        if exchange is not None and offset > kept.end and exchange.hold(task, attempt, offset, data, stream):
            return True
        entry = self._extend(kept, event, offset, data, stream)
        if entry is None:
            return False
        if exchange is not None:
            exchange.taken(entry)
        self._after_append()
        return True

    def progress(self, task: Task, attempt: int, fraction: float, text: str = "") -> bool:
        """Take how far an attempt is; only the newest is kept. False when the attempt was superseded."""
        event = task_event(EventType.TASK_PROGRESSED, task, attempt=attempt, fraction=fraction, text=text)
        kept = self._find_attempt((task.namespace, task.id, attempt), event)
        if kept is None:
            return False
        entry = self._replace_progress(kept, event)
        if self.exchange is not None:
            self.exchange.taken(entry)
        self._after_append()
        return True

    def admit(self, key: AttemptKey, chunk: Event, *, begun: int, begin: int = 0, origin: int = 0) -> None:
        """Take a chunk or progress that another server took in when the log stood at `origin`.

        Of an attempt that is new here: `begun` is where the log stood when it began, `begin` the first byte that is
        wanted here.
        """
        kept = self._find_attempt(key, chunk, begun=begun, begin=begin, guest=True)
        if kept is None:
            return
        if chunk.type is EventType.TASK_OUTPUT:
            self._extend(kept, chunk, chunk.data["offset"], chunk.data["data"], chunk.data["stream"], origin)
        else:
            self._replace_progress(kept, chunk, origin)
        self._after_append()

    def evict(self, key: AttemptKey) -> None:
        """Let the output of another server's attempt go, which can be brought in again: nothing is lost.

        One that has moved to this server stays.
        """
        kept = self._attempts.get(key)
        if kept is None or not all(entry.guest for entry in kept.chunks):
            return
        del self._attempts[key]
        lost, was = kept.lost, self.lost
        self._drop_all(kept)
        kept.lost, self.lost = lost, was

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
        before = self._clock.now() - self.retention
        for guest in (False, True):
            while (entry := self._oldest_entry(guest)) is not None and entry.time < before:
                self._drop(entry)
        while self._attempts:
            kept = next(iter(self._attempts.values()))
            if kept.time >= before:
                break
            self._drop_all(kept)
            del self._attempts[kept.key]
            if self.exchange is not None and not kept.guest:
                self.exchange.ended(kept.key)
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

    def _find_attempt(
        self, key: AttemptKey, event: Event, *, begun: int = -1, begin: int = 0, guest: bool = False
    ) -> AttemptOutput | None:
        """Return the attempt's output, begun if it is new; None when a newer attempt has begun."""
        namespace, task_id, number = key
        newest = self._newest.get((namespace, task_id), -1)
        # Guests come in any order; who was superseded is known where they are taken in.
        if number < newest and not guest:
            return None
        kept = self._attempts.get(key)
        if kept is not None:
            return kept
        self._newest[namespace, task_id] = max(newest, number)
        sample = replace(event, type=EventType.TASK_OUTPUT, data={"attempt": number}, wire=None)
        kept = self._attempts[key] = AttemptOutput(key, sample, self.next, self._clock.now(), end=begin, origin=begin)
        kept.begun, kept.guest = (begun if guest else self._sequence()), guest
        return kept

    def _extend(
        self, kept: AttemptOutput, event: Event, offset: int, data: bytes, stream: str, origin: int | None = None
    ) -> Entry | None:
        """Add a chunk as far as it is new; None when nothing of it is. `origin` is a guest's."""
        if offset + len(data) <= kept.end:
            return None
        if offset < kept.end:
            data, offset = data[kept.end - offset :], kept.end
        event.data = {"attempt": kept.key[2], "offset": offset, "data": data, "stream": stream}
        entry = self._add(kept, event, offset, len(data), origin)
        kept.chunks.append(entry)
        kept.end = offset + len(data)
        kept.size += len(data)
        while kept.size - kept.chunks[0].size >= self._attempt_bytes:
            self._drop(kept.chunks[0])
        return entry

    def _replace_progress(self, kept: AttemptOutput, event: Event, origin: int | None = None) -> Entry:
        if kept.progress is not None:
            self._drop(kept.progress)
        kept.progress = self._add(kept, event, -1, len(event.data["text"]), origin)
        return kept.progress

    def _add(self, kept: AttemptOutput, event: Event, offset: int, size: int, origin: int | None) -> Entry:
        kept.time = self._clock.now()
        sequence, guest = self._sequence(), origin is not None
        if not guest:
            event.time = kept.time
        entry = Entry(self.next, kept, kept.time, sequence, event, offset, size, guest, origin or 0)
        self.next += 1
        self._entries.append(entry)
        self._ages[guest].append(entry)
        self._bytes[guest] += entry.weight
        self._attempts.move_to_end(kept.key)
        return entry

    def _after_append(self) -> None:
        for guest in (False, True):
            while self._bytes[guest] > self._most_bytes[guest] and (entry := self._oldest_entry(guest)) is not None:
                self._drop(entry)
        self.expire()
        if self._dead > 1_024 and self._dead > len(self._entries) // 2:
            self._entries = [entry for entry in self._entries if entry.event is not None]
            own = deque(entry for entry in self._entries if not entry.guest)
            self._ages = (own, deque(entry for entry in self._entries if entry.guest))
            self._dead = 0
        self.notifier.ring(self.next)

    def _oldest_entry(self, guest: bool) -> Entry | None:
        ages = self._ages[guest]
        while ages and ages[0].event is None:
            ages.popleft()
        return ages[0] if ages else None

    def _drop(self, entry: Entry) -> None:
        """Let an entry go; what it told is remembered as lost, unless newer progress stands for it."""
        kept = entry.attempt
        entry.event = None
        self._dead += 1
        self._bytes[entry.guest] -= entry.weight
        if entry is kept.progress:
            kept.progress = None
            return
        # Always the oldest chunk of its attempt: chunks are in the order in which they came.
        kept.chunks.popleft()
        kept.size -= entry.size
        kept.lost = entry.position
        self.lost = max(self.lost, entry.position)
        if self.exchange is not None and not entry.guest:
            self.exchange.dropped(entry)

    def _drop_all(self, kept: AttemptOutput) -> None:
        while kept.chunks:
            self._drop(kept.chunks[0])
        if kept.progress is not None:
            self._drop(kept.progress)
