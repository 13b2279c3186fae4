"""What plugins call of the server: while it runs, the event loop is in nobody's code but the server's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from .cell import Running
from .driving import driven, steps_of

T = TypeVar("T")


def outside(thing: T, running: Running) -> T:
    """Return an object with the methods of another.

    The tasks they make are not the plugin's that calls them, and the time they take is not held against it.
    """
    return cast(T, _Outside(thing, running))


class _Outside:
    def __init__(self, thing: object, running: Running) -> None:
        self._thing = thing
        self._running = running

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        method = getattr(self._thing, name)
        if callable(method):
            method = _wrapped(method, self._running)
            self.__dict__[name] = method
        return method


def _wrapped(method: Callable[..., Any], running: Running) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(method):

        async def awaited(*arguments: Any, **named: Any) -> Any:
            return await driven(steps_of(method(*arguments, **named)), running, None)

        return awaited

    def called(*arguments: Any, **named: Any) -> Any:
        act = running.act
        running.act = None
        try:
            return method(*arguments, **named)
        finally:
            running.act = act

    return called
