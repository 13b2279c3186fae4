"""The outcome of a change set that was handed in, for any number of those who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from .changes import Outcome
from .errors import KernelError


class Pending:
    """Await it, as often as wanted: each who waits may be cancelled, and the others learn the outcome all the same.

    Whoever knows the outcome calls `settle` or `fail`, once; those who wait go on with the next turn of the loop.
    """

    __slots__ = ("_error", "_outcome", "_waiters")

    def __init__(self) -> None:
        self._outcome: Outcome | None = None
        self._error: KernelError | None = None
        self._waiters: list[asyncio.Future[Outcome]] = []

    def wait(self) -> asyncio.Future[Outcome]:
        """Return a future of the caller's own: it has the outcome, or raises what the change set failed with."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self._outcome is not None:
            future.set_result(self._outcome)
        elif self._error is not None:
            future.set_exception(self._error)
        else:
            self._waiters.append(future)
        return future

    def __await__(self) -> Generator[Any, None, Outcome]:
        """Wait for the outcome."""
        return self.wait().__await__()

    def settle(self, outcome: Outcome) -> None:
        """Tell those who wait."""
        self._outcome = outcome
        for future in self._waiters:
            if not future.done():
                future.set_result(outcome)
        self._waiters.clear()

    def fail(self, error: KernelError) -> None:
        """Tell those who wait that there is none."""
        self._error = error
        for future in self._waiters:
            if not future.done():
                future.set_exception(error)
        self._waiters.clear()
