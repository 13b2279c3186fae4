"""Long work in a thread of its own that can be given up, and that leaves the machine to others half of the time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from agenthive_server.kernel.clock import Clock

T = TypeVar("T")

_LONGEST_REST = 0.25


class GivenUp(Exception):
    """The work was given up, as asked; what it had begun is undone."""


class Token:
    """Asks work in another thread to give up. Work looks at it between its steps, and rests as long as each step took.

    With `clock=None` it does not rest: for data nobody else works on.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock
        self._given_up = threading.Event()
        self._began = clock.monotonic() if clock else 0.0

    def give_up(self) -> None:
        """Let the work end at its next step."""
        self._given_up.set()

    @property
    def given_up(self) -> bool:
        """Whether it was asked to end."""
        return self._given_up.is_set()

    def step(self) -> None:
        """Rest for as long as the step before took, a quarter of a second at most; raises `GivenUp`."""
        if self._clock is not None:
            self._given_up.wait(min(max(0.0, self._clock.monotonic() - self._began), _LONGEST_REST))
            self._began = self._clock.monotonic()
        if self._given_up.is_set():
            raise GivenUp


async def run(work: Callable[[Token], T], clock: Clock | None = None) -> T:
    """Run blocking work in a thread of its own and return what it returns.

    Cancelling makes it give up at its next step, and returns when it has: nothing is left behind.
    """
    token = Token(clock)
    threads = ThreadPoolExecutor(1, thread_name_prefix="backup")
    running = asyncio.get_running_loop().run_in_executor(threads, work, token)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        token.give_up()
        with suppress(GivenUp, Exception):
            await asyncio.wait([running])
        # Asked for, so that a failure nobody waits for is no news.
        if running.done() and not running.cancelled():
            running.exception()
        raise
    finally:
        threads.shutdown(wait=False)
