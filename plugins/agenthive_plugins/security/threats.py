"""Finds threats in what calls end with: each kind has a signal, a number of them, and a span in which they count.

A finding may block whoever is behind it, for a while that doubles when the same comes back and never passes a bound.
Nothing here blocks for good, and an administrator on this machine is never blocked.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final

SUBJECTS: Final = 10_000
"""Principals and addresses each signal is counted for; the ones heard of longest ago are forgotten first."""

EVIDENCE: Final = 20


class ThreatKind(StrEnum):
    """What was detected."""

    FAILED_LOGINS = "FAILED_LOGINS"
    PRIVILEGE_PROBING = "PRIVILEGE_PROBING"
    EXCESSIVE_RATE = "EXCESSIVE_RATE"
    SHARED_TOKEN = "SHARED_TOKEN"
    REPLAY = "REPLAY"
    REVOKED_TOKEN = "REVOKED_TOKEN"


class ThreatSeverity(IntEnum):
    """How bad it is; the numbers are those of the protos."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4


@dataclass(frozen=True, slots=True)
class Rule:
    """So many signals within so many seconds are a threat; with a `block` of seconds (zero: none) it is answered.

    `distinct`: signals count that differ in their detail.
    """

    count: int
    seconds: float
    severity: ThreatSeverity
    block: float = 0.0
    distinct: bool = False


RULES: Final = {
    ThreatKind.FAILED_LOGINS: Rule(20, 60.0, ThreatSeverity.HIGH, block=900.0),
    ThreatKind.PRIVILEGE_PROBING: Rule(5, 300.0, ThreatSeverity.HIGH, block=900.0, distinct=True),
    ThreatKind.EXCESSIVE_RATE: Rule(200, 10.0, ThreatSeverity.MEDIUM, block=300.0),
    ThreatKind.SHARED_TOKEN: Rule(10, 600.0, ThreatSeverity.MEDIUM, distinct=True),
    ThreatKind.REPLAY: Rule(3, 300.0, ThreatSeverity.HIGH, block=900.0),
    ThreatKind.REVOKED_TOKEN: Rule(5, 300.0, ThreatSeverity.CRITICAL, block=900.0),
}
LONGEST_BLOCK: Final = 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Something suspicious: about a principal, or where that is not known about an address."""

    kind: ThreatKind
    principal: str = ""
    peer: str = ""
    token_id: str = ""
    detail: str = ""

    @property
    def subject(self) -> tuple[ThreatKind, str, str]:
        """Whom it counts against."""
        return (self.kind, self.principal or self.token_id, "" if self.principal or self.token_id else self.peer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Enough signals within the span of their rule. `again`: the threat is known, and goes on."""

    kind: ThreatKind
    severity: ThreatSeverity
    principal: str
    peer: str
    token_id: str
    count: int
    evidence: tuple[str, ...]
    block: float
    again: bool = False


@dataclass(slots=True)
class _Window:
    signals: deque[tuple[float, str]] = field(default_factory=deque)
    found: int = 0
    """How often this came to a finding."""
    found_at: float = 0.0
    total: int = 0


class Detector:
    """Counts signals. Times are readings of the monotonic clock."""

    def __init__(self, rules: dict[ThreatKind, Rule] | None = None, *, longest_block: float = LONGEST_BLOCK) -> None:
        self._rules = RULES if rules is None else rules
        self._longest = longest_block
        self._windows: OrderedDict[tuple[ThreatKind, str, str], _Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def notice(self, signal: Signal, now: float) -> Finding | None:
        """Count a signal in; returns a finding when there are enough, and again each time as many more came."""
        rule = self._rules.get(signal.kind)
        if rule is None or not rule.count:
            return None
        window = self._window(signal.subject)
        signals = window.signals
        while signals and signals[0][0] <= now - rule.seconds:
            signals.popleft()
        if rule.distinct and any(detail == signal.detail for _, detail in signals):
            return None
        signals.append((now, signal.detail))
        if len(signals) < rule.count:
            return None
        return self._found(window, rule, signal, now)

    def forget(self, kind: ThreatKind, principal: str, peer: str, token_id: str) -> None:
        """Begin anew with somebody: what was found is resolved."""
        self._windows.pop(Signal(kind=kind, principal=principal, peer=peer, token_id=token_id).subject, None)

    def _window(self, subject: tuple[ThreatKind, str, str]) -> _Window:
        window = self._windows.get(subject)
        if window is None:
            window = self._windows[subject] = _Window()
            if len(self._windows) > SUBJECTS:
                self._windows.popitem(last=False)
        else:
            self._windows.move_to_end(subject)
        return window

    def _found(self, window: _Window, rule: Rule, signal: Signal, now: float) -> Finding:
        evidence = tuple(dict.fromkeys(detail for _, detail in window.signals if detail))[:EVIDENCE]
        # The same within a day of its last block is a longer one; after that it is forgotten.
        repeat = window.found if now - window.found_at < 86_400.0 else 0
        count = len(window.signals)
        window.signals.clear()
        window.found, window.found_at = repeat + 1, now
        return Finding(
            kind=signal.kind,
            severity=rule.severity,
            principal=signal.principal,
            peer=signal.peer,
            token_id=signal.token_id,
            count=count,
            evidence=evidence,
            block=min(rule.block * 2.0 ** min(repeat, 20), self._longest) if rule.block else 0.0,
            again=repeat > 0,
        )


class Blocks:
    """Who is refused at the moment, by principal and by address. Times are seconds since 1970."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._until: dict[tuple[str, str], float] = {}

    def __bool__(self) -> bool:
        return bool(self._until)

    def add(self, principal: str, peer: str, until: float) -> None:
        """Refuse a principal, or where none is given an address, until a time."""
        key = ("principal", principal) if principal else ("peer", peer)
        self._until[key] = max(until, self._until.get(key, 0.0))

    def lift(self, principal: str, peer: str) -> None:
        """Refuse somebody no longer."""
        self._until.pop(("principal", principal) if principal else ("peer", peer), None)

    def principal(self, principal: str) -> float:
        """Return for how many seconds more a principal is refused; zero when it is not."""
        return self._left(("principal", principal))

    def peer(self, peer: str) -> float:
        """Return for how many seconds more an address is refused; zero when it is not."""
        return self._left(("peer", peer))

    def _left(self, key: tuple[str, str]) -> float:
        until = self._until.get(key)
        if until is None:
            return 0.0
        left = until - self._now()
        if left <= 0:
            del self._until[key]
            return 0.0
        return left
