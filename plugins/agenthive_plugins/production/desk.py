"""The alert desk: takes looks at conditions, keeps tracks and alerts in the state, and tells whoever is to be told.

What an alert becomes and what is told of it are one change of the state: a crash leaves neither an alert nobody hears
of nor a message about one that is not there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from agenthive_server.plugin.api import Clock, Refused, Severity

from .alert_life import acknowledge, resolve_by_hand, step
from .alerts import Alert, AlertSeverity, AlertState, Change, Look, Notice, Plan, Sighting, Track
from .ledger import Family, Ledger, Rows
from .outbox import Outbox
from .webhook import Delivery

ALERTS: Final = Family("alert/", Alert, "alert")
TRACKS: Final = Family("track/", Track, "track")
KEPT: Final = 1_000
"""Alerts that are resolved and kept."""

_EVENTS: Final = {
    AlertSeverity.INFO: Severity.INFO,
    AlertSeverity.LOW: Severity.INFO,
    AlertSeverity.MEDIUM: Severity.WARNING,
    AlertSeverity.HIGH: Severity.ERROR,
    AlertSeverity.CRITICAL: Severity.ERROR,
}

Publish = Callable[[Notice], Awaitable[None]]


def event_severity(severity: AlertSeverity) -> Severity:
    """Return how urgent the event of an alert is."""
    return _EVENTS[severity]


class Desk:
    """Alerts of all sources."""

    def __init__(
        self, ledger: Ledger, outbox: Outbox, clock: Clock, *, new_id: Callable[[], str], publish: Publish
    ) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._clock = clock
        self._new_id = new_id
        self._publish = publish

    async def see(self, fingerprint: str, plan: Plan, look: Look) -> list[Notice]:
        """Take a look at a condition; returns what was told of it."""
        known = await self._ledger.find(TRACKS, fingerprint)
        if not isinstance(look, Sighting) and (known is None or _idle(known)):
            return []
        now = self._clock.now()

        def decide(rows: Rows) -> tuple[list[Notice], list[Delivery]]:
            before = rows.find(TRACKS, fingerprint) or Track(fingerprint=fingerprint)
            after, notices = step(before, plan, look, now, self._alert_id)
            if after != before:
                rows.put(TRACKS, fingerprint, after)
            if after.alert is not None and after.alert != before.alert:
                rows.put(ALERTS, after.alert.id, after.alert)
            return self._written(rows, notices, now)

        return await self._told(*await self._ledger.change(decide))

    def _alert_id(self) -> str:
        """Return an id that sorts before those of all earlier alerts."""
        left = (1 << 44) - int(self._clock.now() * 1e3)
        return f"{left:011x}-{self._new_id()[-12:]}"

    def _written(self, rows: Rows, notices: list[Notice], now: float) -> tuple[list[Notice], list[Delivery]]:
        for notice in notices:
            rows.put(ALERTS, notice.alert.id, notice.alert)
        return notices, self._outbox.write(rows, notices, now)

    async def _told(self, notices: list[Notice], deliveries: list[Delivery]) -> list[Notice]:
        self._outbox.send(deliveries)
        for notice in notices:
            await self._publish(notice)
        return notices

    # By hand --------------------------------------------------------------------------------------------------------

    def acknowledged(self, rows: Rows, alert_id: str, by: str, note: str) -> tuple[Alert, list[Notice], list[Delivery]]:
        """Acknowledge an alert within a change; `told` is called when that is durable."""
        now = self._clock.now()
        alert = rows.get(ALERTS, alert_id)
        track = rows.find(TRACKS, alert.fingerprint)
        after = acknowledge(alert, by, note, now)
        if after is alert or after == alert:
            return alert, [], []
        if track is None or track.alert is None or track.alert.id != alert_id:
            raise Refused("the alert is resolved", metadata={"alert_id": alert_id})
        rows.put(TRACKS, alert.fingerprint, replace(track, alert=after))
        return after, *self._written(rows, [Notice(change=Change.ACKNOWLEDGED, alert=after)], now)

    def resolved(self, rows: Rows, alert_id: str, by: str, note: str) -> tuple[Alert, list[Notice], list[Delivery]]:
        """Resolve an alert within a change; `told` is called when that is durable."""
        now = self._clock.now()
        alert = rows.get(ALERTS, alert_id)
        track = rows.find(TRACKS, alert.fingerprint)
        if alert.state is AlertState.RESOLVED or track is None or track.alert is None:
            return alert, [], []
        after, ended = resolve_by_hand(track, track.alert, by, note, now)
        rows.put(TRACKS, alert.fingerprint, after)
        return ended, *self._written(rows, [Notice(change=Change.RESOLVED, alert=ended)], now)

    def removed(self, rows: Rows, fingerprint: str, by: str) -> tuple[list[Notice], list[Delivery]]:
        """Forget a condition within a change: its open alert is resolved."""
        track = rows.find(TRACKS, fingerprint)
        rows.delete(TRACKS, fingerprint)
        if track is None or track.alert is None:
            return [], []
        now = self._clock.now()
        _, ended = resolve_by_hand(track, track.alert, by, "its rule was deleted", now)
        return self._written(rows, [Notice(change=Change.RESOLVED, alert=ended)], now)

    async def told(self, notices: list[Notice], deliveries: list[Delivery]) -> None:
        """Tell of what has become durable."""
        await self._told(notices, deliveries)

    # Looking --------------------------------------------------------------------------------------------------------

    async def open_alerts(self) -> list[Alert]:
        """Return the alerts that are not resolved."""
        return [track.alert for track in await self._ledger.all(TRACKS) if track.alert is not None]

    async def overlapping(self, spans: list[tuple[float, float]]) -> list[Alert]:
        """Return the alerts that fired within one of some spans, newest first."""
        if not spans:
            return []
        return [
            alert
            for alert in await self._ledger.all(ALERTS)
            if any(alert.trigger_time < end and (alert.resolve_time or end) >= begin for begin, end in spans)
        ]

    async def surplus(self) -> list[str]:
        """Return the keys of resolved alerts beyond those that are kept."""
        resolved = [alert.id for alert in await self._ledger.all(ALERTS) if not alert.open]
        return [ALERTS.key(alert_id) for alert_id in resolved[KEPT:]]


def _idle(track: Track) -> bool:
    """Whether a look that finds nothing would change nothing."""
    return track.alert is None and not track.pending_since and not track.muted
