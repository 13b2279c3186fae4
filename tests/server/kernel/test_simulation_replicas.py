"""Several servers on one database under stress: what one server promises, all of them promise together."""

from __future__ import annotations

import hashlib

import pytest
from agenthive_server.testing.simulation_replicas import simulate_pauses, simulate_replicas

SEEDS = 40
PARTS = 20
"""Tests the seeds are spread over, for runs in parallel."""


@pytest.mark.simulation
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_the_invariants_hold_and_all_comes_to_its_end(part: int, soak_seed: int, soak_rounds: int | None) -> None:
    for seed in range(soak_seed + part, soak_seed + (soak_rounds or SEEDS), PARTS):
        simulate_replicas(seed)


@pytest.mark.simulation
@pytest.mark.timeout(600)
def test_a_pause_shorter_than_the_grace_costs_no_lease(soak_seed: int, soak_rounds: int | None) -> None:
    for seed in range(soak_seed, soak_seed + (soak_rounds or SEEDS) // 4):
        simulate_pauses(seed)


@pytest.mark.simulation
def test_a_seed_gives_the_same_run_again(soak_seed: int) -> None:
    one, two = (_digest(soak_seed) for _ in range(2))
    assert one == two
    assert one != _digest(soak_seed + 1)


def _digest(seed: int) -> str:
    world = simulate_replicas(seed)
    told = [(e.time, e.type, e.task_id, e.agent_id, e.session_id, sorted(e.data.items())) for e in world.disk._events]
    return hashlib.sha256(repr(told).encode()).hexdigest()
