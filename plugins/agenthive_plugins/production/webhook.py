"""Webhooks: what is told to whom, signed, kept until it was delivered, repeated with backoff and jitter.

Signatures follow the Standard Webhooks specification 1.0 (standardwebhooks.com): HMAC-SHA256 over `id.timestamp.body`,
in base64, with the headers `webhook-id`, `webhook-timestamp` and `webhook-signature`. The id stays the same over
repeats, so that a receiver can tell them; the timestamp is that of the attempt. A delivery that is not taken within a
day is given up.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from .alerts import Alert, AlertSeverity, Notice
from .egress import Answer

FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 300.0
GIVE_UP_AFTER: Final = 86_400.0
TOLERANCE: Final = 300.0
"""How far the clocks of both sides may be apart, in seconds."""

_PREFIX: Final = "whsec_"
_LATER: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which a repeat may succeed."""


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """Somebody who is told: where, the key for signatures, from which severity on, and whether only when named."""

    name: str
    url: str
    key: bytes
    minimum: AlertSeverity = AlertSeverity.INFO
    only_named: bool = False


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Something that is to be told to one webhook. Times are seconds since 1970."""

    id: str
    webhook: str
    body: str
    created: float
    attempts: int = 0
    due: float = 0.0


def key_of(secret: str) -> bytes:
    """Return the key of a secret: `whsec_` and base64 as the specification has it, or any text of 16 bytes or more.

    Raises `ValueError`.
    """
    if secret.startswith(_PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            raise ValueError("what follows whsec_ is not base64") from None
    else:
        key = secret.encode()
    if len(key) < 16:
        raise ValueError("a secret has at least 16 bytes")
    return key


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature of a message, as it stands in the header."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def verify(key: bytes, headers: dict[str, str], body: bytes, now: float) -> bool:
    """Whether a message is from who has the key, and new: what a receiver does. Names of headers in lower case."""
    stamp = headers.get("webhook-timestamp", "")
    if not stamp.isdigit() or abs(now - int(stamp)) > TOLERANCE:
        return False
    expected = sign(key, headers.get("webhook-id", ""), int(stamp), body)
    return any(hmac.compare_digest(expected, given) for given in headers.get("webhook-signature", "").split())


def headers_of(webhook: Webhook, delivery: Delivery, now: float) -> dict[str, str]:
    """Return the headers of an attempt at a delivery."""
    stamp = int(now)
    return {
        "User-Agent": "agenthive",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(stamp),
        "webhook-signature": sign(webhook.key, delivery.id, stamp, delivery.body.encode()),
    }


def body_of(notice: Notice, now: float) -> str:
    """Return what is told, as JSON: type, time and the alert."""
    alert = notice.alert
    told = {"type": f"alert.{notice.change.value}", "timestamp": _iso(now), "data": _shown(alert)}
    return json.dumps(told, separators=(",", ":"), ensure_ascii=False)


def _shown(alert: Alert) -> dict[str, object]:
    return {
        "alert_id": alert.id,
        "fingerprint": alert.fingerprint,
        "source": alert.source.name,
        "rule_id": alert.rule_id,
        "severity": alert.severity.name,
        "state": alert.state.name,
        "title": alert.title,
        "description": alert.description,
        "metric": alert.metric,
        "value": alert.value,
        "threshold": alert.threshold,
        "trigger_time": _iso(alert.trigger_time),
        "resolve_time": _iso(alert.resolve_time) if alert.resolve_time else None,
        "acknowledged_by": alert.acknowledged_by,
        "escalation_level": alert.level,
        "flapping": alert.flapping,
    }


def _iso(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def recipients(webhooks: dict[str, Webhook], notice: Notice) -> list[Webhook]:
    """Return who is told of a change: those it names, else all that take this severity unnamed."""
    if notice.webhooks:
        return [webhooks[name] for name in notice.webhooks if name in webhooks]
    severity = notice.alert.severity
    return [hook for hook in webhooks.values() if not hook.only_named and severity >= hook.minimum]


def taken(answer: Answer) -> bool:
    """Whether the other side took the delivery."""
    return 200 <= answer.status < 300


def worth_repeating(answer: Answer) -> bool:
    """Whether a repeat may succeed. A redirect is no address to follow, and other refusals stay what they are."""
    return answer.status in _LATER


def next_wait(attempts: int, chance: Callable[[], float], retry_after: float | None = None) -> float:
    """Return the seconds until the next attempt: exponential backoff with full jitter, or what the other side asks.

    `attempts` counts those that failed. The jitter is that of Brooker, "Exponential Backoff And Jitter" (2015).
    """
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempts - 1, 20))
    wait = longest * chance()
    return max(wait, min(retry_after, LONGEST_WAIT)) if retry_after is not None else wait
