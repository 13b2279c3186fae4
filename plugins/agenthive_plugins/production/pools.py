"""Pools of agents: what they have to do, and what is done about it through the kernel's verbs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from agenthive_server.plugin.api import Agent, AgentState, Clock, NewAgent, Query, Task, Verbs

from .ledger import Family, Ledger, Rows
from .metrics import value_of
from .scaling import LABEL, Action, Decision, PoolLoad, PoolMemory, Pressure, ScalingPolicy, decide, system_pressure
from .series import SeriesSet

POLICIES: Final = Family("pool/", ScalingPolicy, "scaling_policy", 200)
MEMORIES: Final = Family("pool-memory/", PoolMemory, "pool")

_HERE: Final = frozenset({AgentState.STARTING, AgentState.READY, AgentState.SLEEPING, AgentState.WAKING})
_MOST_AT_ONCE: Final = 256
_MOST_LISTED: Final = 1_000
_WINDOW: Final = 300.0
_ACTING: Final = 60.0
"""Seconds after which a server that has not finished is taken to have been stopped."""


def policy_id(namespace: str, pool_id: str) -> str:
    """Return under which id the policy of a pool is kept."""
    return f"{namespace}/{pool_id}"


@dataclass(frozen=True, slots=True)
class Members:
    """The agents of a pool that are there, with the leases each holds."""

    agents: tuple[tuple[Agent, int], ...]
    failed: int = 0
    """Agents of it that failed within its cooldown."""

    @property
    def held(self) -> int:
        """Tasks they hold."""
        return sum(leases for _, leases in self.agents)

    def to_go(self, number: int) -> list[Agent]:
        """Return those to stop: who holds the least first, of these the youngest."""
        order = sorted(self.agents, key=lambda pair: (pair[1], -pair[0].create_time, pair[0].id))
        return [agent for agent, _ in order[:number]]


class Pools:
    """Makes pools follow their load."""

    def __init__(
        self, ledger: Ledger, verbs: Verbs, series: SeriesSet, clock: Clock, new_id: Callable[[], str]
    ) -> None:
        self._ledger = ledger
        self._verbs = verbs
        self._series = series
        self._clock = clock
        self._new_id = new_id
        # Two turns at once would each see what the other has not done yet, and together go beyond the bounds. Those of
        # other servers are kept apart by what is remembered of the pool.
        self._one_at_a_time = asyncio.Lock()

    async def members(self, policy: ScalingPolicy) -> Members:
        """Return the agents of a pool that are not draining or gone."""
        found: list[tuple[Agent, int]] = []
        failed, since = 0, self._clock.now() - policy.cooldown
        after: tuple[float | str, str] | None = None
        while True:
            query = Query(namespace=policy.namespace, labels={LABEL: policy.id}, after=after, limit=_MOST_LISTED)
            page = await self._verbs.list_agents(query)
            here = [agent for agent in page if agent.state in _HERE]
            found += [(agent, self._verbs.shown_agent(agent).open_leases) for agent in here]
            failed += sum(agent.state is AgentState.FAILED and agent.update_time >= since for agent in page)
            if len(page) < _MOST_LISTED:
                return Members(tuple(found), failed)
            after = ("", page[-1].id)

    async def load(self, policy: ScalingPolicy, members: Members) -> PoolLoad:
        """Return what a pool has to do; of more than a thousand waiting tasks a thousand count."""
        query = Query(namespace=policy.namespace, states=frozenset({"QUEUED"}), limit=_MOST_LISTED)
        waiting = sum(_fits(policy, task) for task in await self._verbs.list_tasks(query))
        return PoolLoad(len(members.agents), policy.template.slots, members.held, waiting, members.failed)

    def pressure(self) -> Pressure:
        """Return the pressure on the hive over the last five minutes."""
        now = self._clock.now()

        def value(metric: str) -> float | None:
            return value_of(self._series, metric, now - _WINDOW, now, now)

        return system_pressure(
            cpu_percent=value("cpu_usage_percent"),
            memory_percent=value("memory_usage_percent"),
            pending_tasks=value("pending_tasks"),
            response_time_p95_ms=value("response_time_p95_ms"),
            error_rate_percent=value("error_rate_percent"),
        )

    async def turn(self, policy: ScalingPolicy, *, force: bool = False, dry_run: bool = False) -> Decision:
        """Decide on a pool and act; `force` skips the waiting, `dry_run` the acting."""
        async with self._one_at_a_time:
            return await self._turn(policy, force=force, dry_run=dry_run)

    async def _turn(self, policy: ScalingPolicy, *, force: bool, dry_run: bool) -> Decision:
        key = policy_id(policy.namespace, policy.id)
        # First, so that what another server does from here on is noticed.
        before = await self._ledger.find(MEMORIES, key) or PoolMemory()
        members = await self.members(policy)
        load = await self.load(policy, members)
        now = self._clock.now()
        decision, after = decide(policy, load, self.pressure(), before, now, force=force)
        if dry_run:
            return decision
        if decision.action is not Action.MAINTAIN:
            if not await self._ledger.change(lambda rows: _claimed(rows, key, before, now)):
                why = "another server is changing the size of this pool"
                return replace(decision, action=Action.MAINTAIN, recommended=decision.current, reason=why)
            before = replace(before, acting_since=now)
            decision = replace(decision, agent_ids=await self._act(policy, members, decision))
            after = replace(after, last=decision, acting_since=0.0)
        if after != before:
            await self._ledger.change(lambda rows: rows.put(MEMORIES, key, after))
        return decision

    async def _act(self, policy: ScalingPolicy, members: Members, decision: Decision) -> tuple[str, ...]:
        if decision.action is Action.SCALE_UP:
            return await self._spawn(policy, decision.recommended - decision.current)
        gone = []
        for agent in members.to_go(decision.current - decision.recommended):
            reason = f"pool {policy.id}: {decision.reason}"[:1_000]
            await self._verbs.shutdown_agent(agent.id, reason, grace=policy.drain_grace, namespace=policy.namespace)
            gone.append(agent.id)
        return tuple(gone)

    async def _spawn(self, policy: ScalingPolicy, number: int) -> tuple[str, ...]:
        labels = {**policy.template.labels, LABEL: policy.id}
        spec = replace(policy.template, labels=labels)
        new = [NewAgent(id=f"{policy.id}-{self._new_id()[-16:]}", spec=spec) for _ in range(number)]
        for first in range(0, number, _MOST_AT_ONCE):
            await self._verbs.spawn_agents(new[first : first + _MOST_AT_ONCE], namespace=policy.namespace)
        return tuple(agent.id for agent in new)


def _claimed(rows: Rows, key: str, seen: PoolMemory, now: float) -> bool:
    """Note that a decision is carried out, unless another server has decided since, or is at it."""
    found = rows.find(MEMORIES, key) or PoolMemory()
    if found != seen or now - found.acting_since < _ACTING:
        return False
    rows.put(MEMORIES, key, replace(found, acting_since=now))
    return True


def _fits(policy: ScalingPolicy, task: Task) -> bool:
    """Whether an agent of the pool could take a task."""
    spec, template = task.spec, policy.template
    return (
        not spec.agent_id
        and (not spec.role or spec.role == template.role)
        and set(spec.required_capabilities) <= set(template.capabilities)
    )
