"""The life of an alert: the pure step that leads from one look at its condition to the next.

    (nothing) ──held for `hold`──► FIRING ──► ACKNOWLEDGED
                                     │             │
                                     └──► RESOLVED ◄┘      (terminal; a new alert may follow after the cooldown)

A condition is known by its fingerprint, and has at most one alert that is not resolved. One that comes and goes too
often is flapping: people are told once, and of nothing more until it has been quiet for a while (the idea of Nagios's
flap detection, with a plain count of changes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from agenthive_server.plugin.api import Refused

from .alerts import UNKNOWN, Alert, AlertSeverity, AlertState, Change, Look, Notice, Plan, Sighting, Track

FLAP_WINDOW: Final = 3_600.0
FLAP_CHANGES: Final = 6
"""An alert that began or ended this often within the window is flapping."""
FLAP_QUIET: Final = 900.0
"""A flapping alert is over when its condition was not seen for this long."""


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
