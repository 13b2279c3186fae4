"""Connections go to servers that serve, one after the other, and to no other."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

from agenthive.client import Client
from agenthive_server.testing.fleet.balancer import Balancer
from agenthive_server.testing.harness import open_app, open_process
from agenthive_server.testing.waiting import eventually


async def started(balancer: Balancer) -> int:
    """Say when the server began to serve that answers a new connection."""
    async with Client(balancer.target) as client:
        return (await client.health(timeout=10)).start_time.ToNanoseconds()


async def test_connections_take_turns_and_avoid_who_does_not_answer(tmp_path: Path) -> None:
    async with open_app() as first, open_process(tmp_path / "second") as second:
        balancer = Balancer([f"127.0.0.1:{first.port}", second.target])
        await balancer.start()
        try:
            seen = Counter([await started(balancer) for _ in range(6)])
            assert sorted(seen.values()) == [3, 3]
            assert second.process is not None
            # Stopped, it still takes connections, and answers nothing.
            second.process.send_signal(signal.SIGSTOP)
            await eventually(lambda: balancer.healthy == [f"127.0.0.1:{first.port}"])
            assert len({await started(balancer) for _ in range(3)}) == 1
            second.process.send_signal(signal.SIGCONT)
            await eventually(lambda: len(balancer.healthy) == 2)
            assert len({await started(balancer) for _ in range(2)}) == 2
        finally:
            await balancer.close()
