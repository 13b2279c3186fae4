"""Alerts: what a rule is, what an alert is, and what is remembered of a condition between two looks at it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from hashlib import blake2b
from typing import Final


class AlertSeverity(IntEnum):
    """How urgent an alert is; numbers as in the protos."""

    INFO = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4
    CRITICAL = 5


class AlertState(IntEnum):
    """Where an alert is in its life; numbers as in the protos."""

    FIRING = 1
    ACKNOWLEDGED = 2
    RESOLVED = 3


class AlertSource(IntEnum):
    """What raised an alert; numbers as in the protos."""

    RULE = 1
    SLA = 2
    ANOMALY = 3
    HEALTH = 4
    BACKUP = 5
    SECURITY = 6


class Comparison(IntEnum):
    """How a value is compared; numbers as in the protos."""

    GREATER = 1
    LESS = 2
    GREATER_OR_EQUAL = 3
    LESS_OR_EQUAL = 4
    EQUAL = 5
    NOT_EQUAL = 6


HOLDS: Final[Mapping[Comparison, Callable[[float, float], bool]]] = {
    Comparison.GREATER: operator.gt,
    Comparison.LESS: operator.lt,
    Comparison.GREATER_OR_EQUAL: operator.ge,
    Comparison.LESS_OR_EQUAL: operator.le,
    Comparison.EQUAL: operator.eq,
    Comparison.NOT_EQUAL: operator.ne,
}

UPWARDS: Final = frozenset({Comparison.GREATER, Comparison.GREATER_OR_EQUAL})
DOWNWARDS: Final = frozenset({Comparison.LESS, Comparison.LESS_OR_EQUAL})


@dataclass(frozen=True, kw_only=True)
class Tier:
    """A further threshold and the severity while it is crossed."""

    threshold: float
    severity: AlertSeverity


@dataclass(frozen=True, kw_only=True)
class EscalationStep:
    """What happens when nobody has acknowledged after a while. Zero or empty: as it is."""

    after: float
    severity: int = 0
    webhooks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the alerts of one cause come, go on and go. Times in seconds."""

    hold: float = 0.0
    cooldown: float = 600.0
    escalation: tuple[EscalationStep, ...] = ()
    webhooks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AlertRule:
    """When to alert whom. Times in seconds."""

    id: str
    metric: str
    comparison: Comparison
    threshold: float
    severity: AlertSeverity
    description: str = ""
    tiers: tuple[Tier, ...] = ()
    window: float = 300.0
    hold: float = 0.0
    cooldown: float = 600.0
    escalation: tuple[EscalationStep, ...] = ()
    anomaly: bool = False
    trend: bool = False
    webhooks: tuple[str, ...] = ()
    disabled: bool = False
    built_in: bool = False
    revision: int = 1

    @property
    def plan(self) -> Plan:
        """How its alerts come and go."""
        return Plan(hold=self.hold, cooldown=self.cooldown, escalation=self.escalation, webhooks=self.webhooks)

    def crossed(self, value: float) -> tuple[AlertSeverity, float] | None:
        """Return the most urgent severity whose threshold a value crosses, with the threshold; None for none."""
        holds = HOLDS[self.comparison]
        tiers = (Tier(threshold=self.threshold, severity=self.severity), *self.tiers)
        found = [(tier.severity, tier.threshold) for tier in tiers if holds(value, tier.threshold)]
        return max(found, key=lambda pair: pair[0], default=None)


@dataclass(frozen=True, kw_only=True)
class Alert:
    """Something that people should look at. Times are seconds since 1970, zero for never."""

    id: str
    fingerprint: str
    source: AlertSource
    severity: AlertSeverity
    state: AlertState
    title: str
    rule_id: str = ""
    description: str = ""
    metric: str = ""
    value: float = 0.0
    threshold: float = 0.0
    trigger_time: float = 0.0
    last_seen_time: float = 0.0
    acknowledge_time: float = 0.0
    acknowledged_by: str = ""
    resolve_time: float = 0.0
    resolved_by: str = ""
    note: str = ""
    occurrences: int = 1
    level: int = 0
    flapping: bool = False

    @property
    def open(self) -> bool:
        """Whether it is not resolved."""
        return self.state is not AlertState.RESOLVED


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A condition that holds, as it was just seen."""

    source: AlertSource
    severity: AlertSeverity
    title: str
    rule_id: str = ""
    description: str = ""
    metric: str = ""
    value: float = 0.0
    threshold: float = 0.0


class Nothing(Enum):
    """What else a look at a condition can find."""

    CLEAR = "clear"
    """It does not hold."""
    UNKNOWN = "unknown"
    """Nothing was measured: everything stays as it is."""


CLEAR: Final = Nothing.CLEAR
UNKNOWN: Final = Nothing.UNKNOWN
Look = Sighting | Nothing


@dataclass(frozen=True, kw_only=True)
class Track:
    """What is remembered of a condition between two looks, over restarts as well."""

    fingerprint: str
    alert: Alert | None = None
    """The one that is not resolved."""
    pending_since: float = 0.0
    quiet_since: float = 0.0
    last_trigger: float = 0.0
    triggers: int = 0
    changes: tuple[float, ...] = ()
    muted: bool = False
    """Resolved by hand while the condition held: nothing fires until it was false once."""


class Change(Enum):
    """What people are told of."""

    FIRED = "fired"
    WORSENED = "worsened"
    ESCALATED = "escalated"
    FLAPPING = "flapping"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One thing people are told: what changed, the alert after it, and whom to tell (nobody named: the usual ones)."""

    change: Change
    alert: Alert
    webhooks: tuple[str, ...] = ()


def fingerprint_of(source: AlertSource, *parts: str) -> str:
    """Return what tells one cause from another."""
    text = "\x1f".join((source.name, *parts))
    return blake2b(text.encode(), digest_size=12).hexdigest()
