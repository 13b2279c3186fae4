"""A balancer for proofs: connections go round robin to the replicas that say they serve."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # ships without types

from agenthive_server.testing.proxy import Proxy

_EVERY: Final = 0.25
_LIMIT: Final = 0.5
_FALLS: Final = 2
"""Checks that fail in a row before a replica gets no more connections."""


class Balancer(Proxy):
    """Asks each target's gRPC health, and connects to the next of those that answer SERVING; to any, if none does."""

    def __init__(self, targets: Sequence[str]) -> None:
        """`targets` are HOST:PORT each."""
        super().__init__(*targets)
        self._failed = dict.fromkeys(targets, 0)
        self._turn = itertools.count()
        self._checks: list[asyncio.Task[None]] = []

    @property
    def healthy(self) -> list[str]:
        """The targets that are in use."""
        return [target for target, failed in self._failed.items() if failed < _FALLS]

    async def start(self) -> None:
        """Listen on a free port, and watch the targets from now on."""
        await super().start()
        self._checks = [asyncio.create_task(self._watch(target)) for target in self._failed]

    async def close(self) -> None:
        """Cut everything and stop."""
        for task in self._checks:
            task.cancel()
        await asyncio.gather(*self._checks, return_exceptions=True)
        await super().close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        targets = self.healthy or list(self._failed)
        turn = next(self._turn)
        for number in range(len(targets)):
            host, _, port = targets[(turn + number) % len(targets)].rpartition(":")
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(host, int(port))
        raise ConnectionRefusedError("no target takes connections")

    async def _watch(self, target: str) -> None:
        # Not that of the clients: it must not wait for long to connect again.
        options = [("grpc.max_reconnect_backoff_ms", 300), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                serving = False
                with contextlib.suppress(grpc.aio.AioRpcError):
                    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_LIMIT)
                    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
                self._failed[target] = 0 if serving else self._failed[target] + 1
                await asyncio.sleep(_EVERY)
