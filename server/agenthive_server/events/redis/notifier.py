"""Rings when the log has grown on any server of a hive. What it hears is said over Redis; without that, and when
nothing was heard for a second, it looks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.health import Reading

from .ear import Ear
from .link import Backoff, Line, RedisAway, RedisLink

LOOKED_EVERY: Final = 1.0
"""Seconds for which an event may be overlooked when nobody rings."""

PACE: Final = 0.002
"""Seconds between two rings of this server: saying one costs some 50 µs here, and as much on every other server."""

PART: Final = "ringing"


class RedisNotifier:
    """Tells the notifier of this process what was committed anywhere, and the other servers what was committed here.

    `head` asks the store for the head of the log and raises `StoreUnavailable`. `ring` is told how far the log reaches;
    the same more than once, and what it may know already.
    """

    def __init__(
        self, link: RedisLink, ear: Ear, head: Callable[[], Awaitable[int]], ring: Callable[[int], None]
    ) -> None:
        self._link = link
        self._ear = ear
        self._line = Line(link)
        self._head = head
        self._ring = ring
        self._heard = False
        self._newest = 0
        self._news = asyncio.Event()

    @property
    def trouble(self) -> str:
        """Why Redis cannot be used as it should at present; empty while all is well."""
        return self._link.trouble

    def announce(self, head: int) -> None:
        """Let the others know that the log reaches so far. Returns at once, and never fails: the newest is told."""
        if head > self._newest:
            self._newest = head
            self._news.set()

    async def run(self) -> None:
        """Ring until cancelled; go on by looking while nothing can be heard."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tell())
                group.create_task(self._listen())
        finally:
            await self._line.close()

    async def _tell(self) -> None:
        channel, backoff = f"{self._link.prefix}head", Backoff(self._link.clock)
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._line.ask(("PUBLISH", channel, self._newest))
            except RedisAway as error:
                self._link.failed(PART, error)
                await backoff.wait()
                self._news.set()
            else:
                self._link.well(PART)
                backoff.reset()
                await self._link.clock.sleep(PACE)

    async def _listen(self) -> None:
        await self._ear.hear(f"{self._link.prefix}head", self._notified)
        while True:
            # The first time: what was committed before anyone listened. Then: what nobody told of.
            with suppress(StoreUnavailable):
                self._ring(await self._head())
            await self._silence()

    async def _silence(self) -> None:
        """Return when nothing was heard for a while."""
        self._heard = True
        while self._heard:
            self._heard = False
            await self._link.clock.sleep(LOOKED_EVERY)
            self._heard = self._heard and self._ear.hearing

    def _notified(self, said: bytes) -> None:
        # Anybody who may use this Redis may say anything there.
        with suppress(ValueError):
            head = int(said)
            self._heard = True
            self._ring(head)

    def probe(self) -> list[tuple[str, Reading]]:
        """Return a reading: DEGRADED while Redis cannot be used as it should."""
        return self._link.probe()
