"""A fleet on PostgreSQL and Redis under load, harmed by a seeded schedule: what was promised holds, its history is sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agenthive_server.testing.fleet.faults import KINDS
from agenthive_server.testing.fleet.proof import Size, prove
from agenthive_server.testing.postgres import PostgresServer, open_postgres
from agenthive_server.testing.redis import RedisServer

ORDINARY = [kind for kind in KINDS if kind not in ("kill replica", "restart database")]
"""Each once in an ordinary run, but for what much else includes; `make soak ROUNDS=1000` takes all, again and again."""


@pytest.fixture
def own_postgres(postgres_binaries: Path) -> Iterator[PostgresServer]:
    """A database server that may be harmed."""
    with open_postgres(postgres_binaries) as server:
        yield server


@pytest.mark.crash
@pytest.mark.timeout(0)
async def test_a_fleet_keeps_its_promises_whatever_is_killed_cut_or_stopped(
    own_postgres: PostgresServer, redis: RedisServer, tmp_path: Path, soak_seed: int, soak_rounds: int | None
) -> None:
    size = Size(replicas=3, workers=8, kinds=ORDINARY)
    if soak_rounds:
        size = Size(replicas=3, workers=100, followers=20, callers=8)
    print(await prove(tmp_path, own_postgres, redis, size, seed=soak_seed, rounds=soak_rounds or len(ORDINARY)))
