"""Pools on a real kernel: who belongs to them, what they have to do, who goes first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from agenthive_plugins.production.ledger import Ledger
from agenthive_plugins.production.pools import MEMORIES, Pools, policy_id
from agenthive_plugins.production.scaling import LABEL, Action, ScalingPolicy
from agenthive_plugins.production.series import SeriesSet
from agenthive_server.plugin.api import AgentSpec, AgentState, ManualClock
from agenthive_server.plugin.verbs import PluginVerbs
from agenthive_server.testing.hive import Hive

TEMPLATE = AgentSpec(role="worker", capabilities=("work",), driver="process", labels={"team": "a"})
POLICY = ScalingPolicy(id="p", namespace="default", template=TEMPLATE, max_agents=5)


@pytest.fixture
def pools(hive: Hive, ledger: Ledger, series: SeriesSet, clock: ManualClock, new_id: Callable[[], str]) -> Pools:
    return Pools(ledger, PluginVerbs(hive.kernel, "production"), series, clock, new_id)


async def names(pools: Pools, policy: ScalingPolicy = POLICY) -> list[str]:
    return [agent.id for agent, _ in (await pools.members(policy)).agents]


async def test_a_pool_fills_up_with_agents_of_its_template(pools: Pools, hive: Hive) -> None:
    decision = await pools.turn(replace(POLICY, min_agents=2))
    assert (decision.action, decision.recommended) == (Action.SCALE_UP, 2)
    assert sorted(decision.agent_ids) == await names(pools)
    for agent_id in decision.agent_ids:
        agent = await hive.kernel.agents.get("default", agent_id)
        assert agent.spec == replace(TEMPLATE, labels={"team": "a", LABEL: "p"})
    assert (await pools.turn(replace(POLICY, min_agents=2))).action is Action.MAINTAIN


async def test_two_turns_at_once_do_not_go_beyond_the_bounds(pools: Pools) -> None:
    policy = replace(POLICY, min_agents=3)
    await asyncio.gather(*(pools.turn(policy, force=True) for _ in range(4)))
    assert len(await names(pools)) == 3


async def test_two_servers_at_once_do_not_go_beyond_the_bounds(
    hive: Hive, ledger: Ledger, series: SeriesSet, clock: ManualClock, new_id: Callable[[], str]
) -> None:
    verbs = PluginVerbs(hive.kernel, "production")
    servers = [Pools(ledger, verbs, series, clock, new_id) for _ in range(3)]
    policy = replace(POLICY, min_agents=3)
    decisions = await asyncio.gather(*(server.turn(policy, force=True) for server in servers))
    assert len(await names(servers[0])) == 3
    assert sum(decision.action is Action.SCALE_UP for decision in decisions) == 1
    # One that was killed in the middle is waited for no longer than a minute.
    key = policy_id(policy.namespace, policy.id)
    memory = await ledger.get(MEMORIES, key)
    await ledger.change(lambda rows: rows.put(MEMORIES, key, replace(memory, acting_since=clock.now())))
    more = replace(POLICY, min_agents=4)
    assert (await servers[0].turn(more, force=True)).action is Action.MAINTAIN
    clock.move(61)
    assert (await servers[0].turn(more, force=True)).action is Action.SCALE_UP


async def test_agents_of_others_are_neither_counted_nor_stopped(pools: Pools, hive: Hive) -> None:
    await hive.worker("stranger", role="worker", capabilities=("work",))
    await hive.worker("member", role="worker", capabilities=("work",), labels={LABEL: "p"})
    await hive.worker("other", role="worker", capabilities=("work",), labels={LABEL: "q"})
    assert await names(pools) == ["member"]


async def test_only_waiting_tasks_its_agents_could_take_count(pools: Pools, hive: Hive) -> None:
    await hive.delegate("fits", required_capabilities=("work",))
    await hive.delegate("role", role="worker")
    await hive.delegate("other-role", role="reviewer")
    await hive.delegate("other-skill", required_capabilities=("work", "fly"))
    await hive.worker("pinned", capabilities=("x",))
    await hive.delegate("elsewhere", agent_id="pinned", required_capabilities=("fly",))
    load = await pools.load(POLICY, await pools.members(POLICY))
    assert (load.agents, load.held, load.waiting) == (0, 0, 2)


async def test_who_holds_the_least_goes_first_and_nobody_twice(pools: Pools, hive: Hive) -> None:
    worker = await hive.worker("busy", capabilities=("work",), labels={LABEL: "p"})
    await hive.delegate("t", required_capabilities=("work",))
    await hive.settle()
    assert worker.assignments()
    await hive.worker("idle-1", capabilities=("work",), labels={LABEL: "p"})
    await hive.worker("idle-2", capabilities=("work",), labels={LABEL: "p"})
    first = await pools.turn(replace(POLICY, max_agents=2))
    assert (first.action, first.recommended) == (Action.SCALE_DOWN, 2)
    assert first.agent_ids in (("idle-1",), ("idle-2",))
    second = await pools.turn(replace(POLICY, max_agents=1))
    assert set(first.agent_ids + second.agent_ids) == {"idle-1", "idle-2"}
    for agent_id in first.agent_ids:
        assert (await hive.kernel.agents.get("default", agent_id)).state is not AgentState.READY
    assert await names(pools) == ["busy"]


async def test_what_is_decided_is_remembered(pools: Pools, ledger: Ledger, clock: ManualClock) -> None:
    decision = await pools.turn(POLICY)
    memory = await ledger.get(MEMORIES, policy_id("default", "p"))
    assert memory.last == decision
    assert memory.changed == clock.now()
    # Now nothing is to be done, and that since now.
    await pools.turn(replace(POLICY, min_agents=0))
    assert (await ledger.get(MEMORIES, policy_id("default", "p"))).low_since == clock.now()


async def test_a_dry_run_decides_and_does_nothing(pools: Pools, ledger: Ledger) -> None:
    decision = await pools.turn(POLICY, dry_run=True)
    assert (decision.action, decision.agent_ids) == (Action.SCALE_UP, ())
    assert await names(pools) == []
    assert await ledger.all(MEMORIES) == []


async def test_the_pressure_on_the_hive_is_measured(pools: Pools, series: SeriesSet, clock: ManualClock) -> None:
    assert pools.pressure().system == 0.0
    series.gauge("cpu_usage_percent", clock.now(), 100)
    series.gauge("pending_tasks", clock.now(), 25)
    found = pools.pressure()
    assert (found.cpu, found.pending_tasks, found.system) == (1.0, 0.5, 0.3)
