"""One wall around the interceptors of plugins that stand side by side: to the chain they are one interceptor.

All acts of a call's way in, and all of its way out, run in one loop: the reading of the clock at the end of one is that
at the start of the next. There are no timers and no awaits unless an act is one that waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from time import perf_counter

from agenthive_server.kernel.errors import KernelError

from .calls import Call, Interceptor, Outcome
from .cell import Act, Cell
from .patience import FAILURES, blame, skip, wait_after, wait_before

Before = Callable[[Call], Awaitable[None] | None]
After = Callable[[Call, Outcome], Awaitable[None] | None]


class Guarded:
    """An interceptor of a plugin, to be put behind a wall."""

    __slots__ = ("act", "inner", "stage")

    def __init__(self, interceptor: Interceptor, act: Act) -> None:
        self.stage = interceptor.stage
        self.inner = interceptor
        self.act = act


class Wall:
    """Interceptors of plugins of one host, outermost first.

    Way in: raises only refusals, and those of a plugin whose failure means CLOSED. Way out: raises nothing but a
    cancellation, when all have been left. It is to be left also by a call that it refused: those who come first have
    let that in.
    """

    def __init__(self, interceptors: Sequence[Guarded]) -> None:
        cell = interceptors[0].act.cell
        self._running, self._longest = cell.running, cell.bounds.inline
        self._inwards = tuple((each.act, each.act.cell, each.inner.before) for each in interceptors)
        self._outwards = tuple((each.act, each.act.cell, each.inner.after) for each in reversed(interceptors))
        # Brief calls that have come in and not left yet; others are not waited for. A plain number, because every call
        # changes it twice.
        self.calls = 0
        for each in interceptors:
            each.act.cell.walls.add(self)

    # In -------------------------------------------------------------------------------------------------------------

    def before(self, call: Call) -> Awaitable[None] | None:
        """Let all look at a call that comes in."""
        if call.policy.brief:
            self.calls += 1
        return self._enter(call, iter(self._inwards))

    def _enter(self, call: Call, acts: Iterator[tuple[Act, Cell, Before]]) -> Awaitable[None] | None:
        running, longest, now = self._running, self._longest, perf_counter
        act: Act | None = None
        began = now()
        try:
            for act, cell, before in acts:
                if not cell.live:
                    skip(call, act)
                    continue
                act.calls += 1
                running.act = act
                try:
                    waits = before(call)
                except KernelError as error:
                    blame(error, act)
                    raise
                except FAILURES as error:
                    waits = None
                    cell.failed(act, error)
                    skip(call, act)
                finally:
                    ended = now()
                    took = ended - began
                    began = ended
                    act.seconds += took
                    if took > longest:
                        cell.overran(act, took)
                        # To tell of it takes time, too, which is not the next one's.
                        began = now()
                if waits is not None:
                    return self._enter_later(call, act, waits, acts)
        except BaseException:
            _stop(call, act, acts)
            raise
        finally:
            running.act = None
        return None

    async def _enter_later(
        self, call: Call, act: Act, waits: Awaitable[None], acts: Iterator[tuple[Act, Cell, Before]]
    ) -> None:
        try:
            await wait_before(waits, call, act)
        except BaseException:
            _stop(call, act, acts)
            raise
        more = self._enter(call, acts)
        if more is not None:
            await more

    # Out ------------------------------------------------------------------------------------------------------------

    def after(self, call: Call, outcome: Outcome) -> Awaitable[None] | None:
        """Let those that let it in look at how a call ended, innermost first."""
        return self._leave(call, outcome, iter(self._outwards))

    def _leave(self, call: Call, outcome: Outcome, acts: Iterator[tuple[Act, Cell, After]]) -> Awaitable[None] | None:
        running, longest, now, skipped = self._running, self._longest, perf_counter, call.skipped
        began = now()
        try:
            for act, cell, after in acts:
                if not cell.live or (skipped is not None and act in skipped):
                    continue
                running.act = act
                try:
                    waits = after(call, outcome)
                except FAILURES as error:
                    waits = None
                    cell.failed(act, error)
                except asyncio.CancelledError as error:
                    waits = _raise(error)
                finally:
                    ended = now()
                    took = ended - began
                    began = ended
                    act.seconds += took
                    if took > longest:
                        cell.overran(act, took)
                        # To tell of it takes time, too, which is not the next one's.
                        began = now()
                if waits is not None:
                    return self._leave_later(call, outcome, act, waits, acts)
        finally:
            running.act = None
        if call.policy.brief:
            self.calls -= 1
        return None

    async def _leave_later(
        self,
        call: Call,
        outcome: Outcome,
        act: Act,
        waits: Awaitable[None],
        acts: Iterator[tuple[Act, Cell, After]],
    ) -> None:
        try:
            await wait_after(waits, call, act)
        finally:
            # A cancellation goes on when all have been left.
            more = self._leave(call, outcome, acts)
            if more is not None:
                await more


def _stop(call: Call, act: Act | None, rest: Iterator[tuple[Act, Cell, Before]]) -> None:
    """Have an act that ended the way in, and those that had not come to the call, left out on the way out."""
    if call.skipped is None:
        call.skipped = set()
    call.skipped.update((act, *(each for each, _, _ in rest)))


async def _raise(error: BaseException) -> None:
    raise error
