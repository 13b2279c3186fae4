"""Waiting for what has to come true, with a deadline: what tests use instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

LIMIT = 20.0
"""Seconds after which a test gives up; nothing in it takes that long."""

_LOOK = 0.02


@overload
async def eventually(condition: Callable[[], Awaitable[T]], *, limit: float = ..., what: str = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T], *, limit: float = ..., what: str = ...) -> T: ...
async def eventually(condition: Callable[[], Any], *, limit: float = LIMIT, what: str = "") -> Any:
    """Return what `condition` returns as soon as that is true; AssertionError with its last answer after `limit` s."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limit
    while True:
        found = condition()
        answer = await found if inspect.isawaitable(found) else found
        if answer:
            return answer
        if loop.time() > end:
            raise AssertionError(f"not within {limit:g} s: {what or inspect.getsource(condition).strip()}: {answer!r}")
        await asyncio.sleep(_LOOK)
