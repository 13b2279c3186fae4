"""Agents of one kind: those with the same namespace, capabilities and role, and the queues of tasks that fit them."""

from __future__ import annotations

import heapq

from .assign import URGENT, Candidate, Rank, Requirement, rank
from .line import Line, Order
from .ready import Fairness, ReadyQueue
from .records import Key
from .tasks import Strategy

GroupKey = tuple[str, frozenset[str], str]
"""Namespace, capabilities, role."""

ORDINARY = URGENT + 1


class Group:
    """Its free members, the best of them for each strategy, and whose turn it is to get one."""

    def __init__(self, key: GroupKey) -> None:
        self.key = key
        self.members: dict[Key, Candidate] = {}
        self.free: set[Key] = set()
        # Share of the member that was assigned to last; where newcomers begin.
        self.share = 0.0
        self._changes = 0
        # Members changed since a heap was last asked; several changes in one turn then cost one entry.
        self._changed: dict[Key, Candidate] = {}
        self._heaps: dict[tuple[Strategy, bool], list[tuple[Rank, Key, int]]] = {}
        # Queues of tasks that fit: those in line for a free member, and those that want none of the free ones.
        self.queues: dict[ReadyQueue, None] = {}
        self.line: Line[ReadyQueue] = Line()
        self._passed: dict[ReadyQueue, None] = {}
        self._blank = Requirement(key[0])

    def fits(self, need: Requirement) -> bool:
        """Whether tasks with a requirement could go to the members."""
        namespace, capabilities, role = self.key
        return namespace == need.namespace and need.fits(capabilities, role)

    # Queues ---------------------------------------------------------------------------------------------------------

    def order(self) -> Order | None:
        """Return the order of the task that is next to get a member, None when there is none or none is free."""
        queue = self.line.first() if self.free else None
        return queue.order() if queue is not None else None

    def ask(self, queue: ReadyQueue) -> None:
        """Let a queue have its turn, at the place of its next task."""
        self.queues[queue] = None
        self._passed.pop(queue, None)
        self.line.put(queue)

    def pass_over(self, queue: ReadyQueue) -> None:
        """Note that a queue wants none of the members that are free."""
        self.line.discard(queue)
        self._passed[queue] = None

    def look_again(self) -> bool:
        """Let those that were passed over have their turn; False when there are none."""
        passed, self._passed = self._passed, {}
        for queue in passed:
            self.line.put(queue)
        return bool(passed)

    def forget(self, queue: ReadyQueue) -> None:
        """Let a queue go."""
        self.queues.pop(queue, None)
        self._passed.pop(queue, None)
        self.line.discard(queue)

    # Members --------------------------------------------------------------------------------------------------------

    def changed(self, agent: Candidate) -> bool:
        """Note a change of an agent; returns whether it is free now and was not, or the other way round."""
        key, free = agent.key, agent.free > 0
        self._changed[key] = agent
        if free == (key in self.free):
            return False
        if free:
            self.free.add(key)
        else:
            self.free.discard(key)
        return True

    def _catch_up(self) -> None:
        """Make the old entries of changed agents stale, and new ones for those that are free."""
        for agent in self._changed.values():
            # Counted by the group: an agent that was forgotten and comes back must not match entries of its former
            # self.
            self._changes += 1
            agent.version = self._changes
            if agent.key not in self.free:
                continue
            for (strategy, urgent), heap in self._heaps.items():
                heapq.heappush(heap, self._entry(strategy, urgent, agent))
                if len(heap) > 64 + 8 * len(self.members):
                    self._heaps[strategy, urgent] = self._filled(strategy, urgent)
        self._changed.clear()

    def remove(self, key: Key) -> None:
        """Forget an agent."""
        self.members.pop(key, None)
        self.free.discard(key)
        self._changed.pop(key, None)

    def _entry(self, strategy: Strategy, urgent: bool, agent: Candidate) -> tuple[Rank, Key, int]:
        priority = URGENT if urgent else ORDINARY
        return (rank(strategy, self._blank, priority, agent), agent.key, agent.version)

    def _filled(self, strategy: Strategy, urgent: bool) -> list[tuple[Rank, Key, int]]:
        heap = [self._entry(strategy, urgent, self.members[key]) for key in self.free]
        heapq.heapify(heap)
        return heap

    def best(self, strategy: Strategy, urgent: bool, count: int, avoid: frozenset[str]) -> list[Candidate]:
        """Return up to `count` free agents, best first, without taking them."""
        if self._changed:
            self._catch_up()
        heap = self._heaps.get((strategy, urgent))
        if heap is None:
            heap = self._heaps[strategy, urgent] = self._filled(strategy, urgent)
        found: list[Candidate] = []
        popped: list[tuple[Rank, Key, int]] = []
        while heap and len(found) < count:
            entry = heap[0]
            agent = self.members.get(entry[1])
            if agent is None or agent.version != entry[2] or agent.free <= 0:
                heapq.heappop(heap)
                continue
            if agent.key[1] not in avoid:
                found.append(agent)
                if len(found) == count:
                    break
            popped.append(heapq.heappop(heap))
        for entry in popped:
            heapq.heappush(heap, entry)
        return found


class Space:
    """What the pool keeps of one namespace."""

    __slots__ = ("fairness", "free", "groups", "queues")

    def __init__(self) -> None:
        self.groups: dict[Group, None] = {}
        # Those with a free member.
        self.free: dict[Group, None] = {}
        # Of tasks that may go to any agent that fits.
        self.queues: dict[ReadyQueue, None] = {}
        # Turns count for all queues: an agent that fits several serves their fairness keys in turn.
        self.fairness = Fairness()
