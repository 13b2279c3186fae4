"""Settings: defaults the callers know, and webhooks that could never be told anything are refused."""

from __future__ import annotations

from typing import Any

import pytest
from agenthive_plugins.production.alerts import AlertSeverity
from agenthive_plugins.production.config import ProductionConfig, webhooks_of
from agenthive_plugins.production.plugin import POLICIES, SERVICE, registration
from agenthive_server.plugin.api import BadRequest
from agenthive_server.plugin.configuration import configured, shown

HOOK = {"name": "ops", "url": "https://ops.example.org/x"}
GOOD: dict[str, Any] = {
    "webhooks": [HOOK],
    "webhook_secrets": {"ops": "a secret of 16 bytes or more"},
    "egress_hosts": ["ops.example.org"],
}


def test_the_defaults_are_those_the_callers_know() -> None:
    config = ProductionConfig()
    assert (config.alert_interval_seconds, config.sla_interval_seconds, config.scaling_interval_seconds) == (
        60,
        300,
        300,
    )
    assert (config.health_interval_seconds, config.security_interval_seconds) == (120, 60)
    assert (config.anomaly_interval_seconds, config.anomaly_sensitivity) == (300, 2.0)
    assert (config.backup_interval_hours, config.backup_retention_days) == (6, 30)


def test_webhooks_and_their_secrets() -> None:
    config = configured(registration, GOOD)
    (hook,) = webhooks_of(config)
    assert (hook.name, hook.minimum, hook.key) == ("ops", AlertSeverity.INFO, b"a secret of 16 bytes or more")
    told = shown(registration, GOOD)
    assert told["webhook_secrets"] == {"ops": "***"}
    assert "secret of" not in str(told)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"webhooks": [HOOK, HOOK]}, "two webhooks"),
        ({"webhook_secrets": {}}, "no secret"),
        ({"webhook_secrets": {"ops": "short"}}, "16 bytes"),
        ({"egress_hosts": []}, "not on the list"),
        ({"webhooks": [{**HOOK, "url": "http://ops.example.org/"}]}, "plain http"),
        ({"webhooks": [{**HOOK, "minimum_severity": "loud"}]}, "Invalid enum value"),
        ({"webhooks": [{**HOOK, "colour": "red"}]}, "unknown field"),
        ({"sample_interval_seconds": 0}, "> 0"),
        ({"anomaly_sensitivity": 99}, "<= 10"),
        ({"nonsense": 1}, "no such setting"),
    ],
)
def test_settings_that_are_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        configured(registration, {**GOOD, **change})


def test_every_rpc_has_a_policy() -> None:
    from agenthive.v1 import production_service_pb2 as pb

    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["ProductionService"].methods}
    assert set(POLICIES) == {f"/{SERVICE}/{method}" for method in methods}
    assert registration.services == (SERVICE,)
