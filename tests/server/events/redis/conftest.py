"""The parts of servers that share a Redis, each as one server has them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest
from agenthive_server.events.output import OutputHub
from agenthive_server.events.redis.ear import Ear
from agenthive_server.events.redis.link import RedisLink
from agenthive_server.events.redis.notifier import RedisNotifier
from agenthive_server.events.redis.output import RedisOutput
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.testing.redis import RedisServer
from agenthive_server.testing.waiting import eventually

Loop = Callable[[], Coroutine[Any, Any, None]]


class Log:
    """The log all servers read."""

    def __init__(self) -> None:
        self.head = 0
        self.looks = 0

    async def look(self) -> int:
        self.looks += 1
        return self.head


class Part:
    """One server's end of Redis, its notifier, and its output."""

    def __init__(self, url: str, name: str, log: Log, **hub: Any) -> None:
        clock = SystemClock()
        self.rung: list[int] = []
        self.link = RedisLink(url, clock)
        self.link.begin("log-1")
        self.ear = Ear(self.link)
        self.log = log
        self.notifier = RedisNotifier(self.link, self.ear, log.look, self.rung.append)
        self.hub = OutputHub(clock, sequence=lambda: log.head, **hub)
        self.output = self.hub.exchange = RedisOutput(self.link, self.ear, self.hub, name)

    def commit(self) -> int:
        """Make the log longer, and tell the others."""
        self.log.head += 1
        self.notifier.announce(self.log.head)
        return self.log.head

    @property
    def heard(self) -> int:
        return max(self.rung, default=0)


class Parts:
    """Opens servers, all at one log."""

    def __init__(self, redis: RedisServer, run: Callable[..., Awaitable[None]]) -> None:
        self.redis = redis
        self.log = Log()
        self._run = run

    async def open(self, name: str, *, port: int = 0, **hub: Any) -> Part:
        part = Part(self.redis.url(port=port), name, self.log, **hub)
        await self._run(part.ear.run, part.notifier.run, part.output.run)
        await eventually(lambda: part.ear.hearing, what=f"{name} hears")
        return part


@pytest.fixture
async def running() -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """Runs loops until the end of the test; one that fails, fails it."""
    async with AsyncExitStack() as stack:

        async def run(*loops: Loop) -> None:
            for loop in loops:
                task = asyncio.create_task(loop())
                stack.push_async_callback(_end, task)

        yield run


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


@pytest.fixture
async def parts(redis: RedisServer, running: Callable[..., Awaitable[None]]) -> Parts:
    """Servers that share a Redis of this test's."""
    return Parts(redis, running)
