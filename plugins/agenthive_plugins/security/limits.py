"""Rate limits: a token bucket for each principal, for each of its methods, and for addresses that fail to log in.

The buckets are kept as the generic cell rate algorithm has it (ITU-T I.371, annex A): one time for each, at which it
would be full again. That is a token bucket without a timer that refills it.
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
    """Where buckets are kept: in this process, or shared by all replicas."""

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
        if len(self._full_at) >= self._kept and key not in self._full_at:
            self._forget(now)
        self._full_at[key] = full_at
        return 0.0

    def wait(self, key: tuple[str, ...], rate: Rate, now: float) -> float:
        """Return what `take` would, and take nothing."""
        if not rate.count:
            return 0.0
        late = max(self._full_at.get(key, now), now) + rate.interval - now - rate.seconds
        return late if late > rate.interval * _ROUNDING else 0.0

    def _forget(self, now: float) -> None:
        """Forget full buckets; if all are in use, those that are nearest to full."""
        self._full_at = {key: at for key, at in self._full_at.items() if at > now}
        if len(self._full_at) >= self._kept:
            fullest = sorted(self._full_at, key=self._full_at.__getitem__)
            for key in fullest[: self._kept // 10 + 1]:
                del self._full_at[key]


@dataclass(frozen=True, slots=True)
class Limits:
    """The rates of the server. A principal named in `by_principal` has that one instead of the first two."""

    per_principal: Rate = Rate(100)
    per_method: Rate = Rate(50)
    failed_logins: Rate = Rate(10)
    # What a call that only reads counts as.
    read_cost: float = 0.05
    by_class: tuple[tuple[str, Rate], ...] = ()
    by_principal: tuple[tuple[str, Rate], ...] = ()


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A rate that is exceeded: which, and after how many seconds to come back."""

    quota: str
    retry_after: float


class RateLimits:
    """Applies the limits to calls."""

    def __init__(self, limits: Limits, buckets: Buckets) -> None:
        self._limits = limits
        self._buckets = buckets
        self._by_class = dict(limits.by_class)
        self._by_principal = dict(limits.by_principal)

    def call(self, principal: str, method: str, kind: str, now: float) -> Exceeded | None:
        """Count a call in; returns which rate it exceeds, None when none. `kind` is read, change or admin."""
        own, limits = self._by_principal.get(principal), self._limits
        cost = limits.read_cost if kind == "read" else 1.0
        if own is not None:
            return self._draw("principal", (principal,), own, now, cost)
        # The method's first: a caller that hammers one method must not use up what it may do altogether.
        exceeded = self._draw("method", (principal, method), limits.per_method, now, cost)
        if exceeded is None and kind in self._by_class:
            exceeded = self._draw(kind, (principal, "", kind), self._by_class[kind], now)
        return exceeded or self._draw("principal", (principal,), limits.per_principal, now, cost)

    def failed_login(self, peer: str, method: str, now: float) -> None:
        """Count a login that failed."""
        self._buckets.take(("", peer, method), self._limits.failed_logins, now)

    def login(self, peer: str, method: str, now: float) -> Exceeded | None:
        """Return whether too many logins from an address failed lately; counts nothing."""
        wait = self._buckets.wait(("", peer, method), self._limits.failed_logins, now)
        return Exceeded("failed_logins", wait) if wait else None

    def _draw(self, quota: str, key: tuple[str, ...], rate: Rate, now: float, cost: float = 1.0) -> Exceeded | None:
        wait = self._buckets.take(key, rate, now, cost)
        return Exceeded(quota, wait) if wait else None
