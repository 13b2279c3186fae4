"""Scaling: never outside the bounds, no flapping, no growth without work, patience in shrinking."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from agenthive_plugins.production.scaling import (
    Action,
    Decision,
    PoolLoad,
    PoolMemory,
    Pressure,
    ScalingPolicy,
    decide,
    system_pressure,
)
from agenthive_server.plugin.api import AgentSpec
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = 1_700_000_000.0
POLICY = ScalingPolicy(id="p", namespace="default", template=AgentSpec())
CALM = Pressure()


def decided(
    policy: ScalingPolicy,
    load: PoolLoad,
    *,
    hive: Pressure = CALM,
    memory: PoolMemory | None = None,
    now: float = NOW,
    force: bool = False,
) -> Decision:
    return decide(policy, load, hive, memory or PoolMemory(), now, force=force)[0]


def test_a_burst_makes_the_pool_as_large_as_it_takes() -> None:
    found = decided(POLICY, PoolLoad(agents=1, slots=1, held=1, waiting=6))
    assert (found.action, found.recommended) == (Action.SCALE_UP, 10)
    assert found.confidence == 1.0
    assert decided(POLICY, PoolLoad(1, 1, 1, 600)).recommended == 20


def test_slots_count() -> None:
    assert decided(POLICY, PoolLoad(agents=1, slots=10, held=10, waiting=4)).recommended == 2


def test_after_a_change_the_next_waits_but_not_for_the_minimum() -> None:
    memory = PoolMemory(changed=NOW - 60)
    found = decided(POLICY, PoolLoad(2, 1, 2, 9), memory=memory)
    assert found.action is Action.MAINTAIN
    assert "300 s have to pass" in found.reason
    assert decided(POLICY, PoolLoad(2, 1, 2, 9), memory=memory, force=True).action is Action.SCALE_UP
    assert decided(POLICY, PoolLoad(0, 1, 0, 0), memory=memory).recommended == 1
    assert decided(replace(POLICY, max_agents=3), PoolLoad(9, 1, 9, 9), memory=memory).recommended == 3


def test_a_pool_whose_agents_fail_is_not_filled_again_and_again() -> None:
    failing = PoolLoad(agents=0, slots=1, held=0, waiting=9, failed=1)
    found = decided(POLICY, failing)
    assert found.action is Action.MAINTAIN
    assert "1 of its agents have failed" in found.reason
    assert decided(POLICY, failing, force=True).action is Action.SCALE_UP
    assert decided(replace(POLICY, max_agents=2), replace(failing, agents=5)).action is Action.SCALE_DOWN


def test_it_shrinks_one_by_one_when_it_was_quiet_long_enough() -> None:
    load = PoolLoad(agents=5, slots=1, held=0, waiting=0)
    first, memory = decide(POLICY, load, CALM, PoolMemory(), NOW)
    assert (first.action, memory.low_since) == (Action.MAINTAIN, NOW)
    early, memory = decide(POLICY, load, CALM, memory, NOW + 299)
    assert early.action is Action.MAINTAIN
    late, memory = decide(POLICY, load, CALM, memory, NOW + 300)
    assert (late.action, late.recommended, late.confidence) == (Action.SCALE_DOWN, 4, 1.0)
    assert memory.changed == NOW + 300


def test_a_little_work_in_between_starts_the_quiet_time_anew() -> None:
    _, memory = decide(POLICY, PoolLoad(5, 1, 0, 0), CALM, PoolMemory(), NOW)
    _, memory = decide(POLICY, PoolLoad(5, 1, 2, 0), CALM, memory, NOW + 200)
    found, _ = decide(POLICY, PoolLoad(5, 1, 0, 0), CALM, memory, NOW + 400)
    assert found.action is Action.MAINTAIN


def test_without_work_nothing_grows_whatever_presses_the_hive() -> None:
    pressed = Pressure(cpu=1.0, memory=1.0, pending_tasks=1.0, response_time=1.0, error_rate=1.0)
    assert decided(POLICY, PoolLoad(3, 1, 0, 0), hive=pressed).action is Action.MAINTAIN
    assert decided(POLICY, PoolLoad(10, 1, 1, 0), hive=pressed).recommended == 13


def test_a_pool_may_be_empty_and_wakes_with_the_first_task() -> None:
    policy = replace(POLICY, min_agents=0)
    assert decided(policy, PoolLoad(0, 4, 0, 0)).action is Action.MAINTAIN
    assert decided(policy, PoolLoad(0, 4, 0, 1)).recommended == 1
    quiet = PoolMemory(low_since=NOW - 300)
    assert decided(policy, PoolLoad(1, 4, 0, 0), memory=quiet).recommended == 0
    assert decided(replace(policy, scale_down_threshold=0.5), PoolLoad(1, 4, 1, 0), memory=quiet).recommended == 1


def test_the_pressure_is_that_of_the_catalogue() -> None:
    found = system_pressure(
        cpu_percent=85,
        memory_percent=90,
        pending_tasks=25,
        response_time_p95_ms=2_000,
        error_rate_percent=5,
    )
    assert (found.cpu, found.memory, found.pending_tasks, found.response_time, found.error_rate) == (0.5,) * 5
    assert found.system == 0.5
    nothing = system_pressure(
        cpu_percent=None, memory_percent=None, pending_tasks=None, response_time_p95_ms=None, error_rate_percent=None
    )
    assert nothing.system == 0.0


policies = st.builds(
    lambda low, more, up, down, wait: replace(
        POLICY,
        min_agents=low,
        max_agents=low + more,
        scale_up_threshold=max(up, down + 0.01),
        scale_down_threshold=min(up, down),
        cooldown=wait,
        stabilization=wait,
    ),
    st.integers(0, 10),
    st.integers(0, 40),
    st.floats(0.05, 1.0),
    st.floats(0.0, 0.9),
    st.sampled_from([0.0, 60.0, 300.0]),
)
pressures = st.builds(
    Pressure,
    cpu=st.floats(0, 1),
    memory=st.floats(0, 1),
    pending_tasks=st.floats(0, 1),
    response_time=st.floats(0, 3),
    error_rate=st.floats(0, 1),
)
counts = st.integers(0, 100)


@given(policies, pressures, st.lists(st.tuples(counts, st.integers(1, 8), counts, counts), max_size=20), st.booleans())
@settings(max_examples=200, deadline=None)
def test_never_outside_the_bounds(
    policy: ScalingPolicy, hive: Pressure, loads: list[tuple[int, int, int, int]], force: bool
) -> None:
    memory = PoolMemory()
    for n, load in enumerate(loads):
        found, memory = decide(policy, PoolLoad(*load), hive, memory, NOW + 60 * n, force=force)
        assert found.recommended == found.current or policy.min_agents <= found.recommended <= policy.max_agents
        assert (found.action is Action.MAINTAIN) == (found.recommended == found.current)
        assert 0.0 <= found.confidence <= 1.0


@given(policies, pressures, counts, st.integers(1, 8), st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_at_a_constant_load_the_size_settles(
    policy: ScalingPolicy, hive: Pressure, demand: int, slots: int, agents: int
) -> None:
    """It goes one way, and then stays."""
    memory, sizes = PoolMemory(), [agents]
    for n in range(120):
        held = min(demand, sizes[-1] * slots)
        load = PoolLoad(sizes[-1], slots, held, demand - held)
        found, memory = decide(policy, load, hive, memory, NOW + 400 * n)
        sizes.append(found.recommended)
    changes = [later - earlier for earlier, later in itertools.pairwise(sizes) if later != earlier]
    inside = [change for size, change in zip(sizes, changes, strict=False) if size <= policy.max_agents]
    assert all(change > 0 for change in inside[1:]) or all(change < 0 for change in inside[1:])
    assert sizes[-1] == sizes[-2]


@pytest.mark.parametrize("demand", [0, 3, 9, 14])
def test_between_the_thresholds_nothing_happens(demand: int) -> None:
    policy = replace(POLICY, scale_down_threshold=0.0)
    found = decided(policy, PoolLoad(20, 1, demand, 0), memory=PoolMemory(low_since=1.0))
    assert found.action is Action.MAINTAIN
