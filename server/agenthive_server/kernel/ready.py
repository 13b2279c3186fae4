"""The ready queue: QUEUED tasks by what they ask for, in the order of priority, fairness and age."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from .assign import Requirement
from .line import Order
from .records import Key
from .tasks import Task


class FairClock:
    """The virtual times of the fairness keys of one priority, shared by every queue in which their tasks wait.

    Each key's time advances by 1/weight with every task taken; the smallest is next. A key that comes back after a
    pause begins at the clock's own time, so it cannot save up turns (start-time fair queueing, Goyal, Vin and Cheng,
    SIGCOMM 1996).
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._times: dict[str, float] = {}
        self._room = 64

    def time(self, fairness_key: str) -> float:
        """Return the virtual time of a key's next task."""
        return max(self._times.get(fairness_key, 0.0), self.now)

    def advance(self, fairness_key: str, weight: float) -> None:
        """Note that a task of a key was taken."""
        self.now = self.time(fairness_key)
        self._times[fairness_key] = self.now + 1.0 / weight
        if len(self._times) > self._room:
            self._times = {key: time for key, time in self._times.items() if time > self.now}
            self._room = 64 + 2 * len(self._times)


class FairLevel:
    """Waiting tasks of one priority in one queue: fairness keys in turn by weight, the oldest task of each first."""

    def __init__(self, clock: FairClock | None = None) -> None:
        self._clock = clock or FairClock()
        # Every key of `_queues` has exactly one entry in `_heap`, also while its queue is empty. An entry's time may be
        # behind the clock's, for the same key may have been served from another queue; it is put right at the top.
        self._queues: dict[str, list[tuple[float, int, Key]]] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._members: dict[Key, tuple[str, float, int]] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, key: Key) -> bool:
        return key in self._members

    def add(self, key: Key, fairness_key: str, weight: float, queue_time: float, arrival: int) -> None:
        """Add a task to its fairness key's queue, at the place of its age."""
        queue = self._queues.get(fairness_key)
        if queue is None:
            queue = self._queues[fairness_key] = []
            self._push(fairness_key)
        heapq.heappush(queue, (queue_time, arrival, key))
        self._members[key] = (fairness_key, weight, arrival)

    def _push(self, fairness_key: str) -> None:
        self._turn += 1
        heapq.heappush(self._heap, (self._clock.time(fairness_key), self._turn, fairness_key))

    def discard(self, key: Key) -> None:
        """Remove a task; its place in the queue is skipped when its turn comes."""
        self._members.pop(key, None)

    def head(self) -> tuple[float, float, int, Key] | None:
        """Return virtual time, queue time, arrival and key of the next task without taking it."""
        while self._heap:
            virtual, _, fairness_key = self._heap[0]
            queue = self._queues[fairness_key]
            while queue and self._stale(queue[0]):
                heapq.heappop(queue)
            if not queue:
                heapq.heappop(self._heap)
                del self._queues[fairness_key]
                continue
            time = self._clock.time(fairness_key)
            if virtual < time and len(self._heap) > 1:
                self._turn += 1
                heapq.heapreplace(self._heap, (time, self._turn, fairness_key))
                if self._heap[0][2] != fairness_key:
                    continue
            queue_time, arrival, key = queue[0]
            return time, queue_time, arrival, key
        return None

    def _stale(self, entry: tuple[float, int, Key]) -> bool:
        member = self._members.get(entry[2])
        return member is None or member[2] != entry[1]

    def take(self) -> Key | None:
        """Take the next task: its fairness key's virtual time advances."""
        if self.head() is None:
            return None
        fairness_key = heapq.heappop(self._heap)[2]
        _, _, key = heapq.heappop(self._queues[fairness_key])
        _, weight, _ = self._members.pop(key)
        self._clock.advance(fairness_key, weight)
        self._push(fairness_key)
        return key

    def keys(self) -> Iterator[Key]:
        """Yield the waiting tasks, in no particular order."""
        return iter(self._members)


class Fairness:
    """What the queues of a namespace share: the clocks of its priorities and the order of arrival."""

    def __init__(self) -> None:
        self._clocks: dict[int, FairClock] = {}
        self._arrivals = 0

    def arrival(self) -> int:
        """Return the number of the next task that comes to wait, whatever it asks for."""
        self._arrivals += 1
        return self._arrivals

    def clock(self, priority: int) -> FairClock:
        """Return the clock of a priority."""
        found = self._clocks.get(priority)
        if found is None:
            found = self._clocks[priority] = FairClock()
        return found


class ReadyQueue:
    """QUEUED tasks with one requirement."""

    def __init__(self, need: Requirement, fairness: Fairness | None = None) -> None:
        self.need = need
        self._fairness = fairness or Fairness()
        self._levels: dict[int, FairLevel] = {}
        self._where: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._where)

    def add(self, task: Task) -> None:
        """Add a task."""
        spec = task.spec
        level = self._levels.get(spec.priority)
        if level is None:
            level = self._levels[spec.priority] = FairLevel(self._fairness.clock(spec.priority))
        level.add(task.key, spec.fairness_key, spec.fairness_weight, task.queue_time, self._fairness.arrival())
        self._where[task.key] = spec.priority

    def discard(self, key: Key) -> None:
        """Remove a task that does not wait here any more."""
        priority = self._where.pop(key, None)
        if priority is not None:
            self._levels[priority].discard(key)

    def head(self) -> tuple[Order, Key] | None:
        """Return the order and key of the next task without taking it."""
        for priority in sorted(self._levels):
            found = self._levels[priority].head()
            if found is not None:
                virtual, queue_time, arrival, key = found
                return (priority, virtual, queue_time, arrival), key
            del self._levels[priority]
        return None

    def order(self) -> Order | None:
        """Return the order of the next task, None without one."""
        head = self.head()
        return head[0] if head is not None else None

    def take(self) -> Key | None:
        """Take the next task."""
        for priority in sorted(self._levels):
            key = self._levels[priority].take()
            if key is not None:
                del self._where[key]
                return key
        return None

    def ahead_of(self, key: Key) -> int:
        """Return how many tasks of better or equal priority wait here besides this one."""
        priority = self._where.get(key)
        if priority is None:
            return -1
        return sum(len(level) for p, level in self._levels.items() if p <= priority) - 1
