"""Loops of the plugin: one turn after the other, and what is wrong told in health until it is not."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from agenthive_server.plugin.api import Background, Clock, KernelError, Status

Report = Callable[[Status, str], None]


class Troubles:
    """What is wrong with the plugin, by name; health tells all of it."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._known: dict[str, str] = {}

    def tell(self, name: str, trouble: str) -> None:
        """Note what is wrong with something; empty for nothing."""
        if self._known.get(name, "") == trouble:
            return
        if trouble:
            self._known[name] = trouble
        else:
            self._known.pop(name, None)
        told = "; ".join(f"{each}: {why}" for each, why in sorted(self._known.items()))
        self._report(Status.DEGRADED if self._known else Status.OK, told)


def every(
    name: str,
    seconds: float,
    turn: Callable[[], Awaitable[None]],
    *,
    clock: Clock,
    troubles: Troubles,
    log: logging.Logger,
    everywhere: bool = False,
) -> Background:
    """Return a loop that takes a turn every so often. A store that is away is told, and is no failure of the plugin."""

    async def run() -> None:
        while True:
            await clock.sleep(seconds)
            try:
                await turn()
            except KernelError as error:
                log.warning("a turn could not be taken", extra={"loop": name, "reason": error.reason})
                troubles.tell(name, error.message)
            else:
                troubles.tell(name, "")

    return Background(name, run, everywhere=everywhere)
