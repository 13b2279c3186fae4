"""Steps through the code of plugins that waits, so that whose turn it is is known at every moment."""

from __future__ import annotations

import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import aclosing
from typing import Any, TypeVar

from .cell import Act, Running

T = TypeVar("T")

Steps = Generator[Any, Any, T]


def steps_of(awaitable: Awaitable[T]) -> Steps[T]:
    """Return the steps of an awaitable, not begun."""
    steps = awaitable.__await__()
    if not hasattr(steps, "throw"):
        return _awaited(awaitable).__await__()
    return steps


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


@types.coroutine
def driven(steps: Steps[T], running: Running, act: Act | None) -> Generator[Any, Any, T]:
    """Go through steps to the end; while one runs, `running` names the act (None: nobody's)."""
    return (yield from resumed(steps, running, act, None, begun=False))


def resumed(
    steps: Steps[T],
    running: Running,
    act: Act | None,
    yielded: Any,
    *,
    begun: bool = True,
    given_up: Callable[[], bool] | None = None,
) -> Generator[Any, Any, T]:
    """Go on with steps of which the last yielded `yielded`.

    Once `given_up` says so, steps that go on waiting although they were cancelled are closed.
    """
    error: BaseException | None = None
    while True:
        if begun:
            try:
                yield yielded
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as thrown:  # noqa: BLE001 - whatever it is, it is the steps' to deal with
                error = thrown
        begun = True
        before = running.act
        running.act = act
        try:
            yielded = steps.send(None) if error is None else steps.throw(error)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            running.act = before
        if error is not None and given_up is not None and given_up():
            steps.close()
            raise error
        error = None


async def mark(work: Coroutine[Any, Any, T], running: Running, act: Act | None) -> T:
    """Run a coroutine so that each of its steps is known to be the act's."""
    return await driven(steps_of(work), running, act)


async def mark_each(items: AsyncIterator[T], running: Running, act: Act | None) -> AsyncIterator[T]:
    """Yield what an asynchronous generator yields, each of its steps known to be the act's."""
    async with aclosing(items) as open_items:  # type: ignore[type-var]  # a generator can be closed
        steps = aiter(open_items)
        while True:
            try:
                item = await driven(steps_of(anext(steps)), running, act)
            except StopAsyncIteration:
                return
            yield item
