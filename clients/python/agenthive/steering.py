"""Messages that steer a task, as a queue and an iterator."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from agenthive.v1.message_pb2 import Message


class Steering:
    """Messages about one task, oldest first, each once. Taking one marks it as read."""

    def __init__(self, read: Callable[[str], None]) -> None:
        """Begin empty; `read` is called with the id of each message that is taken."""
        self._read = read
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        self._seen: set[str] = set()

    def put(self, message: Message) -> None:
        """Add a message, unless it came before."""
        if message.message_id not in self._seen:
            self._seen.add(message.message_id)
            self._queue.put_nowait(message)

    def __len__(self) -> int:
        """Return how many wait."""
        return self._queue.qsize()

    async def get(self) -> Message:
        """Wait for the next message and return it."""
        message = await self._queue.get()
        self._read(message.message_id)
        return message

    def get_nowait(self) -> Message | None:
        """Return the next message, or None when none waits."""
        if self._queue.empty():
            return None
        message = self._queue.get_nowait()
        self._read(message.message_id)
        return message

    def __aiter__(self) -> Self:
        """Iterate without end; the handler's end or cancellation stops it."""
        return self

    async def __anext__(self) -> Message:
        """Wait for the next message."""
        return await self.get()
