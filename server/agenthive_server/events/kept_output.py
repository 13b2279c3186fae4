"""Output between the kernel and the hub: taken for leases that are held, kept as a blob when the attempt ends."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.memory import Memory
from agenthive_server.kernel.ports import BlobInfo, Store
from agenthive_server.kernel.tasks import Task

from .output import OutputHub


class KeptOutput:
    """What the kernel sees of the OUTPUT class."""

    def __init__(self, hub: OutputHub, store: Store, clock: Clock) -> None:
        self._hub = hub
        self._store = store
        self._clock = clock

    @property
    def empty(self) -> bool:
        """Whether no attempt has any output."""
        return self._hub.empty

    async def save(self, namespace: str, task_id: str, attempt: int) -> str:
        """Keep the tail of an attempt's output as a blob; returns its id, or an empty text when there was no output.

        Raises `StoreUnavailable`.
        """
        if self._hub.exchange is not None:
            await self._hub.exchange.whole((namespace, task_id, attempt))
        tail = self._hub.tail(namespace, task_id, attempt)
        if not tail:
            return ""
        blob = BlobInfo(
            namespace=namespace,
            id="sha256:" + hashlib.sha256(tail).hexdigest(),
            size=len(tail),
            content_type="text/plain",
            create_time=self._clock.now(),
        )
        await self._store.put_blob(blob, _once(tail))
        return blob.id

    def progress(self, task: Task, attempt: int, fraction: float, text: str = "") -> object:
        """Tell readers of the OUTPUT class how far an attempt is."""
        return self._hub.progress(task, attempt, fraction, text)


class HeldOutput:
    """Takes the chunks of workers, for leases that their session holds."""

    def __init__(self, memory: Memory, hub: OutputHub) -> None:
        self._memory = memory
        self._hub = hub

    def append(
        self, namespace: str, session_id: str, task_id: str, epoch: int, offset: int, data: bytes, stream: str
    ) -> None:
        """Take a chunk at once; one of a lease that is over, or is another session's, is dropped."""
        task = self._memory.task((namespace, task_id))
        lease = task.lease if task is not None else None
        if task is not None and lease is not None and (lease.epoch, lease.session_id) == (epoch, session_id):
            self._hub.append(task, task.attempt, offset, data, stream)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 2**20):
        yield data[start : start + 2**20]
