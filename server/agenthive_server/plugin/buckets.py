"""Token buckets, for plugins that limit how often something may happen.

They are kept as the generic cell rate algorithm has it (ITU-T I.371, annex A): one time for each, at which it would be
full again. That is a token bucket without a timer that refills it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class Rate:
    """So many per span of seconds; that many at once as well. Zero means no limit."""

    count: int
    seconds: float = 60.0

    @property
    def interval(self) -> float:
        """Seconds after which one more is allowed."""
        return self.seconds / self.count if self.count else 0.0


class Buckets(Protocol):
    """Where buckets are kept: in this process, or shared by the servers of a hive. Nothing here waits or fails.

    `now` is the plugin's `clock.monotonic()`. Shared buckets are drawn from here first, and what was taken is made
    known to the other servers milliseconds later: N servers together may let up to N times `rate.count` pass at once,
    and then nothing until that is paid back, so that in the long run the rate holds. While nobody can be told, each
    server keeps to the rate by itself.
    """

    def take(self, key: tuple[str, ...], rate: Rate, now: float, cost: float = 1.0) -> float:
        """Take one, or a part of one; returns 0 when it was there, else for how long to wait, and takes nothing."""

    def wait(self, key: tuple[str, ...], rate: Rate, now: float) -> float:
        """Return what `take` would, and take nothing."""


KEPT: Final = 50_000
"""Buckets of this process. Full ones are forgotten; a bucket that nobody draws from is full after its span."""

_ROUNDING: Final = 0.01
"""A bucket's time is a sum of many spans: so small a part of one is no reason to refuse the last."""


class LocalBuckets:
    """Buckets in the memory of this process, in bounded number."""

    def __init__(self, kept: int = KEPT) -> None:
        self._full_at: dict[tuple[str, ...], float] = {}
        self._kept = kept

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: tuple[str, ...], rate: Rate, now: float, cost: float = 1.0) -> float:
        """Take one, or a part of one; returns 0 when it was there, else for how long to wait, and takes nothing."""
        if not rate.count:
            return 0.0
        full_at = self._full_at.get(key, now)
        full_at = max(full_at, now) + rate.interval * cost
        late = full_at - now - rate.seconds
        if late > rate.interval * _ROUNDING:
            return late
        self._set(key, full_at, now)
        return 0.0

    def wait(self, key: tuple[str, ...], rate: Rate, now: float) -> float:
        """Return what `take` would, and take nothing."""
        if not rate.count:
            return 0.0
        late = max(self._full_at.get(key, now), now) + rate.interval - now - rate.seconds
        return late if late > rate.interval * _ROUNDING else 0.0

    def missing(self, key: tuple[str, ...], now: float) -> float:
        """Return the seconds until a bucket is full."""
        return max(0.0, self._full_at.get(key, now) - now)

    def drain(self, key: tuple[str, ...], missing: float, now: float) -> None:
        """Let a bucket be full in so many seconds, not earlier."""
        if missing > self.missing(key, now):
            self._set(key, now + missing, now)

    def _set(self, key: tuple[str, ...], full_at: float, now: float) -> None:
        if len(self._full_at) >= self._kept and key not in self._full_at:
            self._forget(now)
        self._full_at[key] = full_at

    def _forget(self, now: float) -> None:
        """Forget full buckets; if all are in use, those that are nearest to full."""
        self._full_at = {key: at for key, at in self._full_at.items() if at > now}
        if len(self._full_at) >= self._kept:
            fullest = sorted(self._full_at, key=self._full_at.__getitem__)
            for key in fullest[: self._kept // 10 + 1]:
                del self._full_at[key]
