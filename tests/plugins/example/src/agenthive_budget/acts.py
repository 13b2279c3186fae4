"""What the plugin does: a hook that counts and refuses, and what tells of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agenthive_server.plugin.api import (
    Call,
    Conflict,
    Delegating,
    Event,
    Outcome,
    PluginContext,
    PluginMetrics,
    Severity,
    Stage,
)

from agenthive_budget.plugin import BudgetConfig
from agenthive_budget.v1 import budget_service_pb2 as pb

LABEL = "team"
DAY = 86_400


def key_of(now: float, team: str) -> str:
    """Return under which key a team's day is kept: the number of the day, then the team."""
    return f"spent/{int(now // DAY):08d}/{team}"


def spend(config: BudgetConfig) -> Callable[[Delegating], None]:
    """Return the hook: counts the task in the same change that accepts it, or refuses it.

    A verb may decide several times before it commits; the count is written with the decision that stands, once.
    """

    def before_delegate(task: Delegating) -> None:
        team = task.spec.labels.get(LABEL)
        if team is None:
            return
        key = key_of(task.now, team)
        spent = int(task.state.get(key) or b"0")
        if spent >= config.limit(team):
            raise task.refuse(f"team {team} has delegated its {spent} tasks of today", team=team)
        task.state.put(key, b"%d" % (spent + 1))

    return before_delegate


class Refusals:
    """An interceptor: counts what was refused. It runs around every call, so it does next to nothing."""

    stage = Stage.OBSERVE

    def __init__(self, metrics: PluginMetrics) -> None:
        self._refused = metrics.counter("refused")

    def before(self, call: Call) -> None:
        """Let it pass."""

    def after(self, call: Call, outcome: Outcome) -> None:
        """Count it if a budget was the reason."""
        if outcome.reason == "VETOED" and getattr(outcome.error, "metadata", {}).get("plugin") == "budget":
            self._refused.add()


class Warnings:
    """A handler: tells a team once a day that little is left. It may see an event twice, and tells once."""

    def __init__(self, ctx: PluginContext[BudgetConfig]) -> None:
        self._ctx = ctx

    async def delegated(self, event: Event) -> None:
        """Look at the budget of the task's team."""
        ctx, team = self._ctx, event.labels.get(LABEL)
        if team is None:
            return
        found = await ctx.state.get(key_of(event.time, team))
        spent, limit = int(found.value) if found else 0, ctx.config.limit(team)
        if spent < limit * ctx.config.warn_at:
            return
        try:
            # Only if there is none yet: whoever is first tells.
            await ctx.state.put(f"told/{key_of(event.time, team)}", b"", revision=0)
        except Conflict:
            return
        text = f"team {team} has used {spent} of its {limit} tasks of today"
        await ctx.publish("budget_nearly_spent", text, severity=Severity.WARNING, subject=team)


class BudgetMethods:
    """`agenthive_budget.v1.BudgetService`."""

    def __init__(self, ctx: PluginContext[BudgetConfig]) -> None:
        self._ctx = ctx

    async def ListBudgets(self, request: pb.ListBudgetsRequest, call: Call) -> pb.ListBudgetsResponse:
        """List what teams have spent today."""
        response = pb.ListBudgetsResponse()
        prefix = key_of(self._ctx.clock.now(), "")
        for found in await self._ctx.state.scan(prefix):
            team = found.key.removeprefix(prefix)
            response.budgets.add(team=team, spent_count=int(found.value), limit_count=self._ctx.config.limit(team))
        return response


class Yesterday:
    """A loop: forgets the days that are over."""

    EVERY = 3_600.0

    def __init__(self, ctx: PluginContext[Any]) -> None:
        self._ctx = ctx

    async def run(self) -> None:
        """Look every hour, until the plugin stops."""
        while True:
            today = key_of(self._ctx.clock.now(), "")
            for prefix in ("spent/", "told/spent/"):
                over = [each.key for each in await self._ctx.state.scan(prefix) if today not in each.key]
                for key in over:
                    await self._ctx.state.delete(key)
            await self._ctx.clock.sleep(self.EVERY)
