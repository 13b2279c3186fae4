"""Refuses new work while the disk is nearly full; results are still stored, and compaction has room."""

from __future__ import annotations

from collections.abc import Callable

from agenthive_server.kernel.errors import Overloaded
from agenthive_server.plugin.api import Call, Outcome, Stage

NEW_WORK = frozenset(
    {
        "/agenthive.v1.OrchestratorService/SpawnAgent",
        "/agenthive.v1.OrchestratorService/SpawnAgents",
        "/agenthive.v1.OrchestratorService/DelegateTask",
        "/agenthive.v1.OrchestratorService/DelegateTasks",
        "/agenthive.v1.MessagingService/SendMessage",
        "/agenthive.v1.MessagingService/BroadcastMessage",
        "/agenthive.v1.BlobService/UploadBlob",
    }
)


class DiskGuard:
    """Built in: `before` raises `Overloaded` with DISK_LOW for new work when too little is free."""

    stage = Stage.EDGE

    def __init__(self, free_bytes: Callable[[], int | None], minimum: int) -> None:
        self._free_bytes = free_bytes
        self._minimum = minimum

    @property
    def low(self) -> bool:
        """Whether new work is refused now."""
        free = self._free_bytes()
        return free is not None and free < self._minimum

    def before(self, call: Call) -> None:
        """Refuse new work when too little is free."""
        if call.method in NEW_WORK and self.low:
            raise Overloaded(
                f"less than {self._minimum} bytes are free on the server's disk; new work is refused",
                reason="DISK_LOW",
                retry_after=10.0,
            )

    def after(self, call: Call, outcome: Outcome) -> None:
        """Do nothing."""
