"""The production plugin: what it registers, and how its parts are put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from agenthive_server.plugin.api import Audience, Plugin, PluginContext, Policy, Registration

from .config import ProductionConfig

SERVICE: Final = "agenthive.v1.ProductionService"

_LOOK: Final = Policy(audience=Audience.VIEWER, idempotent=True)
_ACT: Final = Policy(audience=Audience.OPERATOR)
# These take as long as the store is large, and may be called with a deadline to match.
_COPY: Final = Policy(audience=Audience.OPERATOR, default_deadline=600.0, longest_deadline=86_400.0)
_READ: Final = Policy(audience=Audience.OPERATOR, default_deadline=600.0, longest_deadline=86_400.0, idempotent=True)
_RESTORE: Final = Policy(audience=Audience.ADMIN, default_deadline=3_600.0, longest_deadline=86_400.0)

_ROWS: Final[dict[str, Policy]] = {
    "GetProductionStatus": _LOOK,
    "CreateAlertRule": _ACT,
    "GetAlertRule": _LOOK,
    "ListAlertRules": _LOOK,
    "UpdateAlertRule": _ACT,
    "DeleteAlertRule": _ACT,
    "ListAlerts": _LOOK,
    "GetAlert": _LOOK,
    "AcknowledgeAlert": _ACT,
    "ResolveAlert": _ACT,
    "CreateSlaTarget": _ACT,
    "GetSlaTarget": _LOOK,
    "ListSlaTargets": _LOOK,
    "UpdateSlaTarget": _ACT,
    "DeleteSlaTarget": _ACT,
    "CheckSlaCompliance": _LOOK,
    "GetScalingPolicy": _LOOK,
    "SetScalingPolicy": _ACT,
    "ListScalingPolicies": _LOOK,
    "DeleteScalingPolicy": _ACT,
    "TriggerAutoScaling": _ACT,
    "CreateBackup": _COPY,
    "ListBackups": _LOOK,
    "VerifyBackup": _READ,
    "RestoreBackup": _RESTORE,
    "HandleDisasterRecovery": _RESTORE,
    "ListAnomalies": _LOOK,
    "QuerySeries": _LOOK,
}

POLICIES: Final = {f"/{SERVICE}/{method}": policy for method, policy in _ROWS.items()}
"""By full name of the method: who it is for, and how long it may take."""


@asynccontextmanager
async def open_plugin(ctx: PluginContext[ProductionConfig]) -> AsyncIterator[Plugin]:
    """Go on with what is stored, act, and store what is new at the end."""
    # The parts import the stubs and more; whoever has the plugin off does not pay for them.
    from .assembly import Assembly

    parts = Assembly(ctx)
    await parts.load()
    try:
        yield parts.plugin()
    finally:
        await parts.save()


registration: Final = Registration(
    "production",
    open=open_plugin,
    config=ProductionConfig,
    summary="Measures the hive, alerts, keeps service levels, scales pools of agents, makes backups.",
    # Behind whoever identifies callers: what they refuse is counted by its code, not timed.
    after=("security",),
    services=(SERVICE,),
    policies=POLICIES,
    # Two instances would both go on with the same series.
    overlaps=False,
)
