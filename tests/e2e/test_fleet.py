"""A fleet on PostgreSQL and Redis, under load and harmed by a seeded schedule: what was promised holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agenthive_server.testing.fleet.faults import KINDS
from agenthive_server.testing.fleet.haproxy import Front
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
    own_postgres: PostgresServer,
    redis: RedisServer,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    soak_seed: int,
    soak_rounds: int | None,
) -> None:
    size, rounds = Size(replicas=3, workers=8, kinds=ORDINARY), len(ORDINARY)
    again = f"AGENTHIVE_SOAK_SEED={soak_seed} make test ARGS='-s tests/e2e/test_fleet.py'"
    if soak_rounds:
        program: Path = request.getfixturevalue("haproxy_binary")
        front = Front(program, Path(__file__).parents[2] / "server" / "deploy" / "haproxy.cfg")
        size, rounds = Size(replicas=3, workers=100, followers=20, callers=8, front=front), soak_rounds
        again = f"make soak SEED={soak_seed} ROUNDS={rounds} ARGS='-k fleet'"
    print(await prove(tmp_path, own_postgres, redis, size, seed=soak_seed, rounds=rounds, again=again))
