"""Who is next, of many whose places move by themselves: a place is asked for when its holder comes to the front."""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar

Order = tuple[int, float, float, int]
"""Priority, virtual time of the fairness key, queue time, arrival: smaller is served first."""


class Ordered(Protocol):
    """What may stand in a line."""

    def order(self) -> Order | None:
        """Return the place now, None for one that is not in line any more."""


M = TypeVar("M", bound=Ordered)

PATIENCE = 2
"""Members put right in one go whose turn among the fairness keys has moved on; their priority always counts."""


class Line(Generic[M]):
    """Members by their order; finding the first costs no more than the logarithm of their number.

    Orders may grow unsaid: they are put right at the front. Who makes one smaller says so with `put`. One task taken
    moves all members with its fairness key at once: where they are many, a few are put right each time, and the turns
    of the keys come out about right over all of them.
    """

    def __init__(self) -> None:
        # The order each member was last seen with; entries with another one are out of date.
        self._seen: dict[M, Order] = {}
        self._heap: list[tuple[Order, int, M]] = []
        self._turn = 0

    def __bool__(self) -> bool:
        return bool(self._seen)

    def __contains__(self, member: M) -> bool:
        return member in self._seen

    def put(self, member: M) -> None:
        """Add a member, or note that its order has changed."""
        order = member.order()
        if order is None:
            self._seen.pop(member, None)
        elif self._seen.get(member) != order:
            entry = self._entry(member, order)
            if len(self._seen) == 1:
                # Alone in line: whatever else is in the heap is out of date.
                self._heap = [entry]
                return
            heapq.heappush(self._heap, entry)
            if len(self._heap) > 64 + 2 * len(self._seen):
                self._heap = [self._entry(*seen) for seen in self._seen.items()]
                heapq.heapify(self._heap)

    def _entry(self, member: M, order: Order) -> tuple[Order, int, M]:
        self._turn += 1
        self._seen[member] = order
        return order, self._turn, member

    def discard(self, member: M) -> None:
        """Forget a member."""
        self._seen.pop(member, None)

    def first(self) -> M | None:
        """Return the member with the smallest order; it stays."""
        heap = self._heap
        best: tuple[Order, M] | None = None
        moved = 0
        while heap:
            seen, _, member = heap[0]
            if self._seen.get(member) != seen:
                heapq.heappop(heap)
                continue
            order = member.order()
            if order is None:
                del self._seen[member]
                continue
            if best is None or order < best[0]:
                best = (order, member)
            if order <= seen or (moved >= PATIENCE and seen[0] == best[0][0]):
                return best[1]
            heapq.heapreplace(heap, self._entry(member, order))
            moved += 1
        return None
