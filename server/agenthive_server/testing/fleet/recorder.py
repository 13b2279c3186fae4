"""Writes down what real callers asked and heard: the history that is checked afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final

from agenthive.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    HiveError,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unknown,
)
from agenthive.v1.task_pb2 import Task

from agenthive_server.testing.task_operations import READING, Call

_REFUSALS: Final = (AlreadyExists, FailedPrecondition, NotFound)
"""Errors that say that nothing happened, and why."""

_PASSING: Final = (Aborted, Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable, Unknown)

_BREATH: Final = 0.05
"""Seconds before a call is repeated."""

Ask = Callable[[], tuple[str, Awaitable[Task]]]
"""Sends the request once more, anywhere: returns where, and the answer to come."""


@dataclass
class Recorder:
    """The calls of all callers of this process, by the clock of its event loop, the machine's monotonic one."""

    calls: list[Call] = field(default_factory=list)
    repeated: int = 0

    async def call(self, caller: str, verb: str, task_id: str, ask: Ask, *, patience: float) -> Task | None:
        """Ask, again and again for `patience` seconds, at least once, until there is an answer; returns it.

        None: it was refused, or nobody knows. Raises errors that callers of a sound hive never see.
        """
        clock = asyncio.get_running_loop().time
        start = clock()
        while True:
            asked = clock()
            via, answer = ask()
            call = Call(caller=caller, verb=verb, task_id=task_id, start=start, asked=asked, via=via)
            try:
                task = await answer
            except HiveError as error:
                if isinstance(error, _REFUSALS):
                    self._note(call, end=clock(), refusal=error.code.name, state=error.metadata.get("state", ""))
                    return None
                if not isinstance(error, _PASSING):
                    raise
                if clock() - start >= patience:
                    self._note(call)
                    return None
                self.repeated += 1
                await asyncio.sleep(_BREATH)
            else:
                self._note(call, end=clock(), task=task)
                return task

    def _note(self, call: Call, **outcome: object) -> None:
        if outcome or call.verb not in READING:
            self.calls.append(replace(call, **outcome))  # type: ignore[arg-type]  # fields of Call
