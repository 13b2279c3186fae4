"""Connections carry our settings; a database that is away is not run against, and its password is told to nobody."""

from __future__ import annotations

import pytest
from agenthive_server.kernel.clock import ManualClock, SystemClock
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.storage.postgres.dial import LONGEST_REST, Dialer
from agenthive_server.testing.harness import free_port
from agenthive_server.testing.postgres import PostgresServer


async def test_every_session_has_its_bounds(postgres: PostgresServer) -> None:
    connection = await Dialer(postgres.url(), SystemClock()).dial(application_name="agenthive test")
    row = await connection.fetchrow(
        "SELECT current_setting('idle_in_transaction_session_timeout'), current_setting('statement_timeout'),"
        " current_setting('application_name'), current_setting('transaction_isolation')"
    )
    assert row is not None
    assert tuple(row) == ("2s", "10s", "agenthive test", "read committed")
    connection.terminate()


async def test_after_a_failure_it_rests_longer_each_time_and_says_why() -> None:
    clock = ManualClock()
    dialer = Dialer(f"postgresql://u:secret@127.0.0.1:{free_port()}/d?password=secret", clock, chance=lambda: 1.0)
    rests = []
    for _ in range(8):
        with pytest.raises(StoreUnavailable, match="cannot be reached: Connect call failed") as caught:
            await dialer.dial()
        assert "secret" not in caught.value.message
        rests.append(round(dialer._rest_until - clock.monotonic(), 3))
        before = dialer._failures
        with pytest.raises(StoreUnavailable):
            await dialer.dial()
        assert dialer._failures == before
        clock.move(rests[-1])
    assert rests == [0.1, 0.2, 0.4, 0.8, *[LONGEST_REST] * 4]


async def test_once_it_is_back_nothing_is_left_of_the_failure(postgres: PostgresServer) -> None:
    clock = ManualClock()
    dialer = Dialer(postgres.url(port=free_port()), clock)
    with pytest.raises(StoreUnavailable):
        await dialer.dial()
    dialer.url = postgres.url()
    clock.move(LONGEST_REST)
    (await dialer.dial()).terminate()
    assert dialer._failures == 0
