"""Steps through the code of plugins that waits, so that whose turn it is is known at every moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import aclosing
from types import CoroutineType
from typing import Any, TypeVar

from .cell import Act, Running

T = TypeVar("T")

Steps = Generator[Any, Any, T]


def never() -> bool:
    """Say no."""
    return False


def steps_of(awaitable: Awaitable[T]) -> Steps[T]:
    """Return the steps of an awaitable, not begun."""
    steps = awaitable.__await__()
    if type(awaitable) is CoroutineType or hasattr(steps, "throw"):
        return steps
    return steps_of(_awaited(awaitable))


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


class driven(Coroutine[Any, Any, T]):  # noqa: N801 - reads as a verb: `await driven(steps, running, act)`
    """Steps to be awaited, or to be made a task of; while one of them runs, `running` names the act (None: nobody's).

    A task that is cancelled before its first step closes its steps as it would without this.
    """

    __slots__ = ("_act", "_running", "_steps")

    def __init__(self, steps: Steps[T] | Coroutine[Any, Any, T], running: Running, act: Act | None) -> None:
        self._steps = steps
        self._running = running
        self._act = act

    def send(self, value: Any) -> Any:
        """Take a step."""
        running = self._running
        outer = running.act
        running.act = self._act
        try:
            return self._steps.send(value)
        finally:
            running.act = outer

    def throw(self, *error: Any) -> Any:
        """Take a step that begins with an error."""
        running = self._running
        outer = running.act
        running.act = self._act
        try:
            return self._steps.throw(*error)
        finally:
            running.act = outer

    def close(self) -> None:
        """End."""
        running = self._running
        outer = running.act
        running.act = self._act
        try:
            self._steps.close()
        finally:
            running.act = outer

    def __await__(self) -> Any:
        """Let the steps be awaited."""
        return self

    def __iter__(self) -> Any:
        """Return the steps."""
        return self

    def __next__(self) -> Any:
        """Take a step."""
        return self.send(None)


class Rest(Awaitable[T]):
    """Steps that have begun, to be awaited; `resumed` makes them."""

    __slots__ = ("_steps",)

    def __init__(self, steps: Generator[Any, Any, T]) -> None:
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, T]:
        """Let the steps be awaited."""
        return self._steps


def resumed(
    steps: Steps[T], running: Running, act: Act | None, yielded: Any, given_up: Callable[[], bool] = never
) -> Generator[Any, Any, T]:
    """Go on with steps that have begun, of which the last yielded `yielded`.

    Once `given_up` says so, steps that go on waiting although they were cancelled are closed.
    """
    while True:
        error: BaseException | None = None
        try:
            yield yielded
        except GeneratorExit:
            outer, running.act = running.act, act
            try:
                steps.close()
            finally:
                running.act = outer
            raise
        except BaseException as thrown:  # noqa: BLE001 - whatever it is, it is the steps' to deal with
            error = thrown
        outer = running.act
        running.act = act
        try:
            yielded = steps.send(None) if error is None else steps.throw(error)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            running.act = outer
        if error is not None and given_up():
            steps.close()
            raise error


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
