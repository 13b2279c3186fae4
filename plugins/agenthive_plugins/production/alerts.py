"""Alerts: rules, the life of an alert, and the pure step that leads from one look at its condition to the next.

    (nothing) ──held for `hold`──► FIRING ──► ACKNOWLEDGED
                                     │             │
                                     └──► RESOLVED ◄┘      (terminal; a new alert may follow after the cooldown)

A condition is known by its fingerprint, and has at most one alert that is not resolved. One that comes and goes too
often is flapping: people are told once, and of nothing more until it has been quiet for a while (the idea of Nagios's
flap detection, with a plain count of changes).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from hashlib import blake2b
from typing import Final

from agenthive_server.plugin.api import Refused

FLAP_WINDOW: Final = 3_600.0
FLAP_CHANGES: Final = 6
"""An alert that began or ended this often within the window is flapping."""
FLAP_QUIET: Final = 900.0
"""A flapping alert is over when its condition was not seen for this long."""


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


def step(track: Track, plan: Plan, look: Look, now: float, new_id: Callable[[], str]) -> tuple[Track, list[Notice]]:
    """Return how things stand after a look at the condition, and what to tell."""
    alert = track.alert
    if look is UNKNOWN:
        return _escalated(track, plan, now)
    if alert is None:
        return _closed_step(track, plan, look, now, new_id)
    if isinstance(look, Sighting):
        track, notices = _seen_again(track, alert, plan, look, now)
        track, more = _escalated(track, plan, now)
        return track, notices + more
    return _not_seen(track, alert, plan, now)


def _closed_step(
    track: Track, plan: Plan, look: Look, now: float, new_id: Callable[[], str]
) -> tuple[Track, list[Notice]]:
    if not isinstance(look, Sighting):
        return replace(track, pending_since=0.0, muted=False), []
    if track.muted:
        return track, []
    track = replace(track, pending_since=track.pending_since or now)
    cooling = track.last_trigger and now - track.last_trigger < plan.cooldown
    if cooling or now - track.pending_since < plan.hold:
        return track, []
    changes = (*_recent(track.changes, now), now)
    flapping = len(changes) >= FLAP_CHANGES
    alert = Alert(
        id=new_id(),
        fingerprint=track.fingerprint,
        source=look.source,
        severity=look.severity,
        state=AlertState.FIRING,
        title=look.title,
        rule_id=look.rule_id,
        description=look.description,
        metric=look.metric,
        value=look.value,
        threshold=look.threshold,
        trigger_time=now,
        last_seen_time=now,
        flapping=flapping,
    )
    track = replace(
        track, alert=alert, last_trigger=now, triggers=track.triggers + 1, changes=changes, pending_since=0.0
    )
    change = Change.FLAPPING if flapping else Change.FIRED
    return track, [Notice(change=change, alert=alert, webhooks=plan.webhooks)]


def _seen_again(track: Track, alert: Alert, plan: Plan, look: Sighting, now: float) -> tuple[Track, list[Notice]]:
    floor = max((s.severity for s in plan.escalation[: alert.level]), default=0)
    seen = replace(
        alert,
        severity=AlertSeverity(max(look.severity, floor)),
        title=look.title,
        description=look.description,
        value=look.value,
        threshold=look.threshold,
        last_seen_time=now,
        occurrences=alert.occurrences + 1,
    )
    told = seen.severity > alert.severity and not seen.flapping
    notices = [Notice(change=Change.WORSENED, alert=seen, webhooks=plan.webhooks)] if told else []
    return replace(track, alert=seen, quiet_since=0.0), notices


def _not_seen(track: Track, alert: Alert, plan: Plan, now: float) -> tuple[Track, list[Notice]]:
    quiet_since = track.quiet_since or now
    if alert.flapping and now - quiet_since < FLAP_QUIET:
        return _escalated(replace(track, quiet_since=quiet_since), plan, now)
    ended = replace(alert, state=AlertState.RESOLVED, resolve_time=now)
    return _without(track, now), [Notice(change=Change.RESOLVED, alert=ended, webhooks=plan.webhooks)]


def _escalated(track: Track, plan: Plan, now: float) -> tuple[Track, list[Notice]]:
    alert = track.alert
    if alert is None or alert.state is not AlertState.FIRING:
        return track, []
    notices: list[Notice] = []
    for due in plan.escalation[alert.level :]:
        if now - alert.trigger_time < due.after:
            break
        severity = AlertSeverity(max(alert.severity, due.severity))
        alert = replace(alert, level=alert.level + 1, severity=severity)
        notices.append(Notice(change=Change.ESCALATED, alert=alert, webhooks=due.webhooks or plan.webhooks))
    return (replace(track, alert=alert), notices) if notices else (track, [])


def _without(track: Track, now: float, *, muted: bool = False) -> Track:
    """Return the track after the end of its alert."""
    changes = (*_recent(track.changes, now), now)
    return replace(track, alert=None, quiet_since=0.0, pending_since=0.0, changes=changes, muted=muted)


def _recent(changes: tuple[float, ...], now: float) -> tuple[float, ...]:
    return tuple(time for time in changes if now - time < FLAP_WINDOW)


def acknowledge(alert: Alert, by: str, note: str, now: float) -> Alert:
    """Return the alert, acknowledged; as it is when it was already. Raises `Refused` when it is resolved."""
    if alert.state is AlertState.RESOLVED:
        raise Refused("the alert is resolved", metadata={"alert_id": alert.id})
    if alert.state is AlertState.ACKNOWLEDGED:
        return alert
    return replace(
        alert, state=AlertState.ACKNOWLEDGED, acknowledge_time=now, acknowledged_by=by, note=note or alert.note
    )


def resolve_by_hand(track: Track, alert: Alert, by: str, note: str, now: float) -> tuple[Track, Alert]:
    """Return track and alert after somebody ended it."""
    ended = replace(alert, state=AlertState.RESOLVED, resolve_time=now, resolved_by=by, note=note or alert.note)
    return _without(track, now, muted=True), ended
