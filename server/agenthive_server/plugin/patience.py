"""Waiting for interceptors: a call has patience for all of them together, and a timer only when it needs one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from time import perf_counter
from typing import Final

from agenthive_server.kernel.errors import KernelError, Refused

from .calls import Call
from .cell import Act
from .driving import Rest, resumed, steps_of

FAILURES: Final = (Exception, SystemExit)
"""What a plugin raises that stays with it; all that is no cancellation, and no signal."""


def skip(call: Call, act: Act) -> None:
    """Let a call go on without the act; raises where nothing passes without it."""
    if act.cell.closed:
        raise act.cell.refusal()
    if call.skipped is None:
        call.skipped = set()
    call.skipped.add(act)


def blame(error: KernelError, act: Act) -> None:
    """Say in an error which plugin it comes from. What a hook simply refuses is a veto."""
    error.metadata.setdefault("plugin", act.cell.name)
    if type(error) is Refused and error.reason == Refused.reason:
        error.reason = "VETOED"


async def wait_before(waits: Awaitable[None], call: Call, act: Act) -> None:
    """Wait for an asynchronous `before`. One that failed has not been entered."""
    try:
        fine = await _wait(waits, call, act)
    except KernelError as error:
        blame(error, act)
        raise
    if not fine:
        skip(call, act)


async def wait_after(waits: Awaitable[None], call: Call, act: Act) -> None:
    """Wait for an asynchronous `after`; the call has been decided, so that nothing is refused any more."""
    try:
        await _wait(waits, call, act)
    except KernelError as error:
        act.cell.failed(act, error)


async def _wait(waits: Awaitable[None], call: Call, act: Act) -> bool:
    """Wait for what an interceptor does, as long as its call has patience; returns whether it went well.

    What never really waits costs no timer. Raises refusals, and the cancellation of the call.
    """
    cell, began = act.cell, perf_counter()
    try:
        await _patiently(waits, call, act)
    except KernelError:
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        cell.failed(act, error)
        return False
    except _OutOfPatience:
        if cell.live:
            cell.overran(act, perf_counter() - began)
        return False
    except FAILURES as error:
        cell.failed(act, error)
        return False
    finally:
        act.seconds += perf_counter() - began
    return True


class _OutOfPatience(Exception):
    """The interceptors of a call have waited as long as they may, or this one's plugin was switched off."""


async def _patiently(waits: Awaitable[None], call: Call, act: Act) -> None:
    cell, steps = act.cell, steps_of(waits)
    running = cell.running
    running.act = act
    try:
        yielded = steps.send(None)
    except StopIteration:
        return
    finally:
        running.act = None
    if not call.patience:
        call.patience = asyncio.get_running_loop().time() + cell.bounds.call
    limit = asyncio.timeout_at(call.patience)
    try:
        async with limit:
            cell.waits.add(limit)
            await Rest(resumed(steps, running, act, yielded, limit.expired))
    except TimeoutError:
        if limit.expired():
            raise _OutOfPatience from None
        raise
    finally:
        cell.waits.discard(limit)
