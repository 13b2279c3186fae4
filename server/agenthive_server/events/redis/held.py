"""Chunks of an attempt that began on another server: held until what came before is here, so that there is no gap."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from agenthive_server.events.attempt_output import AttemptKey
from agenthive_server.events.output import OutputHub
from agenthive_server.kernel.tasks import Task

HELD_BYTES: Final = 2**20
"""Of one attempt."""


@dataclass(slots=True)
class _Waiting:
    chunks: deque[tuple[Task, int, int, bytes, str]] = field(default_factory=deque)
    size: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)


class HeldChunks:
    """Holds chunks for the hub, within bounds."""

    def __init__(self, hub: OutputHub) -> None:
        self._hub = hub
        self._waiting: dict[AttemptKey, _Waiting] = {}
        self._releasing: AttemptKey | None = None

    def __contains__(self, key: AttemptKey) -> bool:
        return key in self._waiting

    def add(self, task: Task, attempt: int, offset: int, data: bytes, stream: str) -> bool:
        """Hold a chunk; False when it must be appended now: it is being let go, or there is too much."""
        key = (task.namespace, task.id, attempt)
        if key == self._releasing:
            return False
        held = self._waiting.setdefault(key, _Waiting())
        if held.size + len(data) > HELD_BYTES:
            self.release(key)
            return False
        held.chunks.append((task, attempt, offset, data, stream))
        held.size += len(data)
        return True

    async def released(self, key: AttemptKey) -> None:
        """Return when no chunk of an attempt is held any more."""
        held = self._waiting.get(key)
        if held is not None:
            await held.released.wait()

    def release(self, key: AttemptKey) -> None:
        """Append what is held of an attempt, whatever is missing before it."""
        held = self._waiting.pop(key, None)
        if held is None:
            return
        self._releasing = key
        try:
            for chunk in held.chunks:
                self._hub.append(*chunk)
        finally:
            self._releasing = None
            held.released.set()

    def release_all(self) -> None:
        """Append everything that is held."""
        for key in list(self._waiting):
            self.release(key)
