"""Deadlines of many records in one wheel: setting, moving and clearing one costs the same however many there are."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

RESOLUTION = 0.1
"""Seconds covered by one bucket of the wheel."""


class Timers(Generic[K]):
    """At most one deadline for each key. Keys are due in the order of their buckets, never before their time."""

    def __init__(self) -> None:
        self._times: dict[K, float] = {}
        self._buckets: dict[int, dict[K, None]] = {}
        self._order: list[int] = []

    def __len__(self) -> int:
        return len(self._times)

    def set(self, key: K, time: float | None) -> None:
        """Set, move or (with None) clear the deadline of a key."""
        old = self._times.get(key)
        if old == time:
            return
        if old is not None:
            slot = int(old / RESOLUTION)
            bucket = self._buckets.get(slot)
            if bucket is not None:
                bucket.pop(key, None)
            del self._times[key]
        if time is None:
            return
        self._times[key] = time
        slot = int(time / RESOLUTION)
        bucket = self._buckets.get(slot)
        if bucket is None:
            bucket = self._buckets[slot] = {}
            heapq.heappush(self._order, slot)
        bucket[key] = None

    def due(self, now: float) -> list[K]:
        """Return the keys whose time has come; they stay set until they are moved or cleared."""
        found: list[K] = []
        last = int(now / RESOLUTION)
        kept: list[int] = []
        while self._order and self._order[0] <= last:
            slot = heapq.heappop(self._order)
            bucket = self._buckets[slot]
            if not bucket:
                del self._buckets[slot]
                continue
            kept.append(slot)
            found.extend(key for key in bucket if self._times[key] <= now)
        for slot in kept:
            heapq.heappush(self._order, slot)
        return found
