"""The record of the plugin, its settings, and how its acts are put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from agenthive_server.plugin.api import (
    Audience,
    Background,
    Config,
    EventType,
    Hooks,
    Plugin,
    PluginContext,
    Policy,
    Registration,
    Service,
)
from msgspec import Meta, field

SERVICE = "agenthive_budget.v1.BudgetService"


class BudgetConfig(Config, frozen=True, kw_only=True):
    """`[plugins.budget]`."""

    # Tasks a team may delegate a day.
    tasks_a_day: Annotated[int, Meta(ge=0)] = 1_000
    # The same for single teams.
    teams: dict[str, Annotated[int, Meta(ge=0)]] = field(default_factory=dict)
    # Share of it at which the team is told.
    warn_at: Annotated[float, Meta(gt=0, le=1)] = 0.8

    def limit(self, team: str) -> int:
        """Return how many tasks a team may delegate a day."""
        return self.teams.get(team, self.tasks_a_day)


@asynccontextmanager
async def open_budget(ctx: PluginContext[BudgetConfig]) -> AsyncIterator[Plugin]:
    """Start the plugin; what it yields is what it does."""
    # What only a plugin that is on needs is imported here.
    from agenthive_budget import acts
    from agenthive_budget.v1 import budget_service_pb2

    descriptor = budget_service_pb2.DESCRIPTOR.services_by_name["BudgetService"]
    yield Plugin(
        hooks=Hooks(before_delegate=acts.spend(ctx.config)),
        interceptors=(acts.Refusals(ctx.metrics),),
        handlers={EventType.TASK_DELEGATED: acts.Warnings(ctx).delegated},
        services=(Service(descriptor, (acts.BudgetMethods(ctx),)),),
        tasks=(Background("yesterday", acts.Yesterday(ctx).run),),
    )


registration = Registration(
    "budget",
    open=open_budget,
    config=BudgetConfig,
    summary="How many tasks a team may delegate a day.",
    services=(SERVICE,),
    policies={f"/{SERVICE}/ListBudgets": Policy(audience=Audience.VIEWER, idempotent=True)},
)
