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

from .calls import Call, Interceptor, Outcome
from .cell import Act
from .driving import Rest, Steps, resumed, steps_of
from .patience import FAILURES, blame, skip, wait_after, wait_before

P = TypeVar("P", bound=Proposal)
G = TypeVarTuple("G")

_DONE: Final = object()


class Guarded:
    """An interceptor behind its wall; to the chain it is an interceptor like any other."""

    def __init__(self, interceptor: Interceptor, act: Act) -> None:
        self.stage = interceptor.stage
        self.inner = interceptor
        self.before = guard_before(interceptor.before, act)
        self.after = guard_after(interceptor.after, act)


def guard_before(
    before: Callable[[Call], Awaitable[None] | None], act: Act
) -> Callable[[Call], Awaitable[None] | None]:
    """Return `before` with its wall: raises only refusals, and those of a plugin whose failure means CLOSED."""
    cell, now = act.cell, perf_counter
    running, longest = cell.running, cell.bounds.inline

    def guarded(call: Call) -> Awaitable[None] | None:
        if not cell.live:
            skip(call, act)
            return None
        act.calls += 1
        running.act = act
        began = now()
        try:
            waits = before(call)
        except KernelError as error:
            blame(error, act)
            raise
        except FAILURES as error:
            cell.failed(act, error)
            skip(call, act)
            return None
        finally:
            running.act = None
            took = now() - began
            act.seconds += took
            if took > longest:
                cell.overran(act, took)
        if call.policy.brief:
            cell.in_flight += 1
        return None if waits is None else wait_before(waits, call, act)

    return guarded


def guard_after(
    after: Callable[[Call, Outcome], Awaitable[None] | None], act: Act
) -> Callable[[Call, Outcome], Awaitable[None] | None]:
    """Return `after` with its wall: raises nothing."""
    cell, now = act.cell, perf_counter
    running, longest = cell.running, cell.bounds.inline

    def guarded(call: Call, outcome: Outcome) -> Awaitable[None] | None:
        if call.skipped is not None and act in call.skipped:
            return None
        if call.policy.brief:
            cell.in_flight -= 1
        if not cell.live:
            return None
        running.act = act
        began = now()
        try:
            waits = after(call, outcome)
        except FAILURES as error:
            cell.failed(act, error)
            return None
        finally:
            running.act = None
            took = now() - began
            act.seconds += took
            if took > longest:
                cell.overran(act, took)
        return None if waits is None else wait_after(waits, call, act)

    return guarded


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
