"""The plugin `security`: found here, and put together in `opening.py` when it is switched on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from agenthive_server.plugin.api import Audience, Failure, Load, Plugin, PluginContext, Policy, Registration

from .config import SecurityConfig

SERVICE: Final = "agenthive.v1.SecurityService"

_ACT: Final = Policy(audience=Audience.ADMIN)
_LOOK: Final = Policy(audience=Audience.ADMIN, idempotent=True)
_READ_ALL: Final = Policy(audience=Audience.ADMIN, idempotent=True, default_deadline=600.0, longest_deadline=86_400.0)
_EXPORT: Final = Policy(
    audience=Audience.ADMIN, load=Load.STREAM, idempotent=True, default_deadline=0.0, longest_deadline=0.0
)

POLICIES: Final = {
    f"/{SERVICE}/{method}": policy
    for method, policy in {
        "IssueToken": _ACT,
        "RevokeToken": _ACT,
        "ListTokens": _LOOK,
        "IssueJoinToken": _ACT,
        "SetRoleBinding": _ACT,
        "ListRoleBindings": _LOOK,
        "DeleteRoleBinding": _ACT,
        "QueryAuditLog": _LOOK,
        "VerifyAuditLog": _READ_ALL,
        "ExportAuditLog": _EXPORT,
        "ListThreats": _LOOK,
        "ResolveThreat": _ACT,
        "GenerateComplianceReport": _READ_ALL,
    }.items()
}


@asynccontextmanager
async def open_plugin(ctx: PluginContext[SecurityConfig]) -> AsyncIterator[Plugin]:
    """Open the plugin. Raises a sentence about settings, keys or files that are not good."""
    from .opening import opened

    async with opened(ctx) as plugin:
        yield plugin


registration: Final = Registration(
    name="security",
    open=open_plugin,
    config=SecurityConfig,
    summary="Who may do what, and who did what: authentication, roles, join tokens, rate limits, audit trail, threats.",
    failure=Failure.CLOSED,
    services=(SERVICE,),
    policies=POLICIES,
)
