"""Pieces of the log read from the store, shared by the readers that are far behind."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from agenthive_server.kernel.events import Event

WEIGHT = 800
"""Bytes of memory an event takes, its encoded form included; few have a text for people, of at most 4 KiB."""


def weigh(events: Sequence[Event]) -> int:
    """Return about how many bytes of memory these events take."""
    return WEIGHT * len(events)


def cut(events: Sequence[Event], start: int, limit: int) -> list[Event]:
    """Return about `limit` of these consecutive events from an index on, up to the end of a change set."""
    if start + limit >= len(events):
        return list(events[start:])
    return list(events[start : events[start + limit - 1].last - events[0].sequence + 1])


class ChunkCache:
    """The chunks read last, within a bound of bytes. Readers that want the same chunk at once cause one read."""

    def __init__(self, fetch: Callable[[int], Awaitable[list[Event]]], max_bytes: int) -> None:
        self._fetch = fetch
        self._max_bytes = max_bytes
        self._bytes = 0
        self._chunks: deque[tuple[list[Event], int]] = deque()
        self._fetching: dict[int, asyncio.Future[None]] = {}
        self.fetches = 0

    async def read(self, after: int, limit: int) -> list[Event]:
        """Return about `limit` events after a sequence, up to the end of a change set.

        Raises what `fetch` raises, to all who wait for it. A cancelled reader leaves the fetch to the next.
        """
        while (events := self._find(after, limit)) is None:
            pending = self._fetching.get(after)
            if pending is None:
                return cut(await self._load(after), 0, limit)
            await asyncio.shield(pending)
        return events

    def clear(self) -> None:
        """Drop all chunks."""
        self._chunks.clear()
        self._bytes = 0

    def _find(self, after: int, limit: int) -> list[Event] | None:
        for index, (events, _) in enumerate(self._chunks):
            if events[0].sequence <= after + 1 <= events[-1].sequence:
                if index:
                    self._chunks.append(self._chunks[index])
                    del self._chunks[index]
                return cut(events, after + 1 - events[0].sequence, limit)
        return None

    async def _load(self, after: int) -> list[Event]:
        done = self._fetching[after] = asyncio.get_running_loop().create_future()
        try:
            events = await self._fetch(after)
        except Exception as error:
            done.set_exception(error)
            done.exception()  # seen by this reader, even if nobody else waits
            raise
        finally:
            del self._fetching[after]
            if not done.done():
                done.set_result(None)
        self.fetches += 1
        if events:
            self._keep(events)
        return events

    def _keep(self, events: list[Event]) -> None:
        weight = weigh(events)
        self._chunks.append((events, weight))
        self._bytes += weight
        while self._bytes > self._max_bytes and len(self._chunks) > 1:
            self._bytes -= self._chunks.popleft()[1]
