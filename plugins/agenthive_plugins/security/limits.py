"""Rate limits: a token bucket for each principal, for each of its methods, and for addresses that fail to log in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agenthive_server.plugin.api import Buckets, Rate

_PER_PRINCIPAL: Final = Rate(100)
_PER_METHOD: Final = Rate(50)
_FAILED_LOGINS: Final = Rate(10)


@dataclass(frozen=True, slots=True)
class Limits:
    """The rates of the server. A principal named in `by_principal` has that one instead of the first two."""

    per_principal: Rate = _PER_PRINCIPAL
    per_method: Rate = _PER_METHOD
    failed_logins: Rate = _FAILED_LOGINS
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
