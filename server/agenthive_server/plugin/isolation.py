"""Walls around the acts of a plugin: what it raises and how long it takes is its own affair, and is counted.

Each guard is made once, when the plugin is opened, and is itself plain code: two time stamps, no timers, no awaits and
no context managers unless the act is one that waits.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

from agenthive_server.kernel.assign import Candidate, Scorer
from agenthive_server.kernel.decide import NotLoaded
from agenthive_server.kernel.errors import KernelError
from agenthive_server.kernel.proposals import Proposal
from agenthive_server.kernel.tasks import TaskSpec

from .cell import Act
from .driving import Rest, Steps, resumed, steps_of
from .patience import FAILURES, blame

P = TypeVar("P", bound=Proposal)
G = TypeVarTuple("G")

_DONE: Final = object()


def guard_hook(hook: Callable[[P], None], act: Act, amendable: frozenset[str]) -> Callable[[P], None]:
    """Return a hook with its wall: raises vetoes, `NotLoaded`, and what refuses where failure means CLOSED.

    What a hook did before it failed is taken back.
    """
    cell, now, name = act.cell, perf_counter, act.cell.name
    running, longest = cell.running, cell.bounds.inline

    def guarded(proposal: P) -> None:
        if not cell.live:
            if cell.closed:
                raise cell.refusal()
            return
        act.calls += 1
        outer = running.act
        proposal.enter(name, amendable)
        running.act = act
        began = now()
        try:
            hook(proposal)
            if proposal.opened is not None:
                proposal.leave()
        except KernelError as error:
            blame(error, act)
            raise
        except NotLoaded:
            raise
        except FAILURES as error:
            proposal.undo()
            cell.failed(act, error)
            if cell.closed:
                raise cell.refusal() from None
        finally:
            running.act = outer
            took = now() - began
            act.seconds += took
            if took > longest:
                cell.overran(act, took)

    return guarded


def guard_handler(
    handler: Callable[[Unpack[G]], Awaitable[None]], act: Act
) -> Callable[[Unpack[G]], Awaitable[None] | None]:
    """Return a handler that is timed and counted. What it raises goes on to the dispatcher, which tries it again.

    It takes its first step when it is called, and returns None when that was all.
    """
    running, now = act.cell.running, perf_counter

    def guarded(*given: *G) -> Awaitable[None] | None:
        act.calls += 1
        outer = running.act
        running.act = act
        began = now()
        try:
            steps = steps_of(handler(*given))
            # Sending would end in an exception, which costs as much as a simple handler.
            yielded = next(steps, _DONE)
        except FAILURES:
            act.failures += 1
            raise
        finally:
            running.act = outer
            act.seconds += now() - began
        return None if yielded is _DONE else _go_on(steps, yielded, act)

    return guarded


async def _go_on(steps: Steps[None], yielded: Any, act: Act) -> None:
    began = perf_counter()
    try:
        await Rest(resumed(steps, act.cell.running, act, yielded))
    except FAILURES:
        act.failures += 1
        raise
    finally:
        act.seconds += perf_counter() - began


def guard_score(score: Scorer, act: Act) -> Scorer:
    """Return a scorer with its wall: raises nothing; one that fails has no say."""
    cell, now = act.cell, perf_counter
    running, longest = cell.running, cell.bounds.inline

    def guarded(task: TaskSpec, candidate: Candidate) -> float:
        if not cell.live:
            return 0.0
        act.calls += 1
        outer = running.act
        running.act = act
        began = now()
        try:
            value = score(task, candidate)
            if not math.isfinite(value):
                raise ValueError(f"a score is a number, not {value}")
        except FAILURES as error:
            cell.failed(act, error)
            return 0.0
        finally:
            running.act = outer
            took = now() - began
            act.seconds += took
            if took > longest:
                cell.overran(act, took)
        return value

    return guarded
