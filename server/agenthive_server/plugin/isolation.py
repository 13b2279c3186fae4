"""Walls around the acts of a plugin: what it raises and how long it takes is its own affair, and is counted.

Each guard is made once, when the plugin is opened, and is itself plain code: two time stamps, no timers, no awaits and
no context managers unless the act is one that waits.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any, Final, Generic, TypeVar, TypeVarTuple, Unpack

from agenthive_server.kernel.assign import Candidate, Scorer
from agenthive_server.kernel.decide import NotLoaded
from agenthive_server.kernel.errors import KernelError
from agenthive_server.kernel.proposals import Proposal, Turn
from agenthive_server.kernel.tasks import TaskSpec

from .cell import Act, Cell
from .driving import Rest, Steps, resumed, steps_of
from .patience import FAILURES, blame

P = TypeVar("P", bound=Proposal)
G = TypeVarTuple("G")

_DONE: Final = object()


class Hooked(Generic[P]):
    """A hook of a plugin, to be put behind a wall."""

    __slots__ = ("act", "hook", "turn")

    def __init__(self, hook: Callable[[P], None], act: Act, amendable: frozenset[str] = frozenset()) -> None:
        self.hook = hook
        self.act = act
        self.turn = Turn(act.cell.name, amendable)


def guard_hooks(hooks: Sequence[Hooked[P]]) -> Callable[[P], None]:
    """Return hooks of plugins of one host, in this order, behind one wall, as one hook.

    It raises vetoes, `NotLoaded`, and what refuses where failure means CLOSED. What a hook did before it failed is
    taken back.
    """
    running, longest, now = hooks[0].act.cell.running, hooks[0].act.cell.bounds.inline, perf_counter
    acts = tuple((each.act, each.act.cell, each.hook, each.turn) for each in hooks)

    def guarded(proposal: P) -> None:
        present, outer = proposal.present, running.act
        began = now()
        try:
            for act, cell, hook, turn in acts:
                if not cell.live:
                    _pass_over(cell)
                    continue
                act.calls += 1
                proposal.turn = turn
                kept = present()
                running.act = act
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
                    proposal.undo(kept)
                    cell.failed(act, error)
                    _pass_over(cell)
                finally:
                    ended = now()
                    took = ended - began
                    began = ended
                    act.seconds += took
                    if took > longest:
                        cell.overran(act, took)
                        # To tell of it takes time, too, which is not the next one's.
                        began = now()
        finally:
            running.act = outer

    return guarded


def _pass_over(cell: Cell) -> None:
    """Let a decision go on without a hook; raises where nothing passes without it."""
    if cell.closed:
        raise cell.refusal() from None


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
