"""Background work of a runner: nothing is started and forgotten."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_logger = logging.getLogger(__name__)


class Jobs:
    """Tasks that run until they end; one that fails is logged and hurts nobody else."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def add(self, work: Coroutine[Any, Any, Any]) -> None:
        """Start it."""
        self.start(work)  # type: ignore[unused-awaitable]  # kept until it ends

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start it for somebody who wants to wait for it or to cancel it."""
        job = asyncio.create_task(work)
        self._running.add(job)
        job.add_done_callback(self._forget)
        return job

    def _forget(self, job: asyncio.Task[Any]) -> None:
        self._running.discard(job)
        if not job.cancelled() and (error := job.exception()):
            _logger.error("a job of the runner failed", exc_info=error)

    async def wait(self) -> None:
        """Return when all of them, and those they started, have ended."""
        while self._running:
            await asyncio.wait(set(self._running))
