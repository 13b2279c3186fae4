"""The plugin's settings, every one with its default."""

from __future__ import annotations

from typing import Annotated, Literal

from agenthive_server.plugin.api import SECRET, Config
from msgspec import Meta, Struct, field

from .alerts import AlertSeverity
from .egress import Egress, EgressRefused
from .webhook import Webhook, key_of

Interval = Annotated[float, Meta(gt=0.0, le=86_400.0)]
SeverityName = Literal["info", "low", "medium", "high", "critical"]


class WebhookConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Somebody who is told of alerts. Its secret stands in `webhook_secrets`, under the same name."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,128}$")]
    url: str
    # It is told of alerts at least this severe.
    minimum_severity: SeverityName = "info"
    # It is told only where a rule or a step of escalation names it.
    only_named: bool = False


class ProductionConfig(Config, frozen=True, kw_only=True):
    """`[plugins.production]`."""

    # How often the system is looked at; the finest step of a series is ten seconds.
    sample_interval_seconds: Annotated[float, Meta(gt=0.0, le=60.0)] = 10.0
    # How often alert rules are evaluated, service levels worked out, pools scaled, the health score made, signs of an
    # attack looked for, and anomalies.
    alert_interval_seconds: Interval = 60.0
    sla_interval_seconds: Interval = 300.0
    scaling_interval_seconds: Interval = 300.0
    health_interval_seconds: Interval = 120.0
    security_interval_seconds: Interval = 60.0
    anomaly_interval_seconds: Interval = 300.0
    # How far from the usual is unusual: less finds more, and errs more.
    anomaly_sensitivity: Annotated[float, Meta(ge=0.5, le=10.0)] = 2.0
    # Whether pools follow their load by themselves; TriggerAutoScaling works all the same.
    auto_scaling_enabled: bool = True
    # Whether backups are made by themselves, how often, and how long they are kept: all of a day, then one a day.
    backup_enabled: bool = True
    backup_interval_hours: Annotated[float, Meta(gt=0.0, le=8_760.0)] = 6.0
    backup_retention_days: Annotated[float, Meta(gt=0.0, le=3_660.0)] = 30.0
    # Where: another disk, or the server's `archive_dir`, survives the loss of this one. Empty: the plugin's own folder.
    backup_folder: str = ""
    # Who is told of alerts, and the secrets with which what they are told is signed: 16 bytes or more, or whsec_BASE64.
    webhooks: tuple[WebhookConfig, ...] = ()
    webhook_secrets: Annotated[dict[str, str], SECRET] = field(default_factory=dict)
    # Hosts that may be sent to; `*.name` for all below a name. Whether their addresses may be private ones.
    egress_hosts: tuple[str, ...] = ()
    egress_private: bool = False
    egress_timeout_seconds: Annotated[float, Meta(gt=0.0, le=60.0)] = 10.0

    def __post_init__(self) -> None:
        """Refuse webhooks that could never be told anything. Raises `ValueError`."""
        webhooks_of(self)

    @property
    def egress(self) -> Egress:
        """What may be sent where."""
        return Egress(hosts=self.egress_hosts, private=self.egress_private, timeout=self.egress_timeout_seconds)


def webhooks_of(config: ProductionConfig) -> tuple[Webhook, ...]:
    """Return the webhooks of the settings; raises `ValueError` with a sentence for what is wrong."""
    found: dict[str, Webhook] = {}
    for each in config.webhooks:
        if each.name in found:
            raise ValueError(f"two webhooks are called {each.name}")
        if each.name not in config.webhook_secrets:
            raise ValueError(f"webhook {each.name} has no secret in webhook_secrets")
        try:
            config.egress.check(each.url)
            key = key_of(config.webhook_secrets[each.name])
        except (EgressRefused, ValueError) as error:
            raise ValueError(f"webhook {each.name}: {error}") from None
        minimum = AlertSeverity[each.minimum_severity.upper()]
        found[each.name] = Webhook(name=each.name, url=each.url, key=key, minimum=minimum, only_named=each.only_named)
    return tuple(found.values())
