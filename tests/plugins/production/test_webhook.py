"""Webhooks: signatures a receiver can check, who is told of what, how repeats are spaced."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from agenthive_plugins.production.alerts import Alert, AlertSeverity, AlertSource, AlertState, Change, Notice
from agenthive_plugins.production.egress import Answer
from agenthive_plugins.production.webhook import (
    LONGEST_WAIT,
    TOLERANCE,
    Delivery,
    Webhook,
    body_of,
    headers_of,
    key_of,
    next_wait,
    recipients,
    sign,
    taken,
    verify,
    worth_repeating,
)
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = 1_700_000_000.5
KEY = b"0123456789abcdef"
ALERT = Alert(
    id="a1",
    fingerprint="f",
    source=AlertSource.RULE,
    severity=AlertSeverity.HIGH,
    state=AlertState.FIRING,
    title="hot",
    trigger_time=NOW,
)


def hook(name: str, minimum: AlertSeverity = AlertSeverity.INFO, *, only_named: bool = False) -> Webhook:
    return Webhook(name=name, url="https://h/x", key=KEY, minimum=minimum, only_named=only_named)


def test_the_signature_is_that_of_the_specification() -> None:
    """The vector of the Standard Webhooks specification's own implementations."""
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_receiver_takes_what_was_signed_and_nothing_else() -> None:
    body = body_of(Notice(change=Change.FIRED, alert=ALERT), NOW).encode()
    delivery = Delivery(id="d1", webhook="w", body=body.decode(), created=NOW)
    headers = headers_of(hook("w"), delivery, NOW)
    by_hand = hmac.new(KEY, b"d1.%d." % int(NOW) + body, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(by_hand).decode()
    assert verify(KEY, headers, body, NOW + 10)
    assert not verify(KEY, headers, body + b" ", NOW)
    assert not verify(b"another key, 16 bytes", headers, body, NOW)
    assert not verify(KEY, headers, body, NOW + TOLERANCE + 2)
    assert not verify(KEY, {**headers, "webhook-id": "d2"}, body, NOW)
    assert not verify(KEY, {**headers, "webhook-timestamp": "soon"}, body, NOW)
    assert not verify(KEY, {}, body, NOW)


@given(st.binary(max_size=200), st.text(max_size=20), st.integers(0, 2**33))
@settings(deadline=None)
def test_what_was_signed_verifies(body: bytes, message_id: str, stamp: int) -> None:
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": str(stamp),
        "webhook-signature": sign(KEY, message_id, stamp, body),
    }
    assert verify(KEY, headers, body, float(stamp))


def test_what_is_told() -> None:
    told = json.loads(body_of(Notice(change=Change.ESCALATED, alert=ALERT), NOW))
    assert told["type"] == "alert.escalated"
    assert told["timestamp"] == "2023-11-14T22:13:20.500Z"
    assert (told["data"]["alert_id"], told["data"]["severity"], told["data"]["state"]) == ("a1", "HIGH", "FIRING")
    assert told["data"]["resolve_time"] is None


def test_who_is_told() -> None:
    hooks = {
        "all": hook("all"),
        "grave": hook("grave", AlertSeverity.CRITICAL),
        "boss": hook("boss", only_named=True),
    }
    usual = recipients(hooks, Notice(change=Change.FIRED, alert=ALERT))
    named = recipients(hooks, Notice(change=Change.FIRED, alert=ALERT, webhooks=("boss", "nobody")))
    assert [each.name for each in usual] == ["all"]
    assert [each.name for each in named] == ["boss"]


@pytest.mark.parametrize("secret", ["", "short", "whsec_", "whsec_!!!"])
def test_a_secret_that_is_none_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match=r"16 bytes|base64"):
        key_of(secret)


@given(st.integers(1, 60), st.floats(0, 1, exclude_max=True), st.none() | st.floats(0, 1e6))
@settings(deadline=None)
def test_repeats_come_later_and_later_but_not_for_ever(attempts: int, chance: float, asked: float | None) -> None:
    wait = next_wait(attempts, lambda: chance, asked)
    assert 0.0 <= wait <= LONGEST_WAIT
    if asked is not None:
        assert wait >= min(asked, LONGEST_WAIT)
    else:
        assert wait <= 2.0 ** (attempts - 1)


def test_which_answers_are_worth_a_repeat() -> None:
    assert [taken(Answer(status)) for status in (200, 204, 301, 400, 503)] == [True, True, False, False, False]
    assert [worth_repeating(Answer(status)) for status in (301, 400, 410, 429, 503)] == [
        False,
        False,
        False,
        True,
        True,
    ]
