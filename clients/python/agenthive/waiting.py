"""Waiting between tries, and for the first of several things."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from agenthive import errors
from agenthive.errors import Cancelled, DeadlineExceeded, HiveError, Internal, ResourceExhausted, Unavailable, Unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

_FINAL = (
    errors.AlreadyExists,
    errors.FailedPrecondition,
    errors.InvalidArgument,
    errors.NotFound,
    errors.PermissionDenied,
    errors.Unauthenticated,
    errors.Unimplemented,
)


@dataclass
class Backoff:
    """Growing waits in seconds with full jitter: random between zero and a bound that doubles up to `maximum`."""

    first: float = 0.1
    maximum: float = 5.0
    share: Callable[[], float] = field(default=random.random)
    _tries: int = 0

    def next(self) -> float:
        """Return how long to wait before the next try."""
        bound = min(self.maximum, self.first * 2.0 ** min(self._tries, 30))
        self._tries += 1
        return bound * self.share()

    def reset(self) -> None:
        """Begin anew: the last try succeeded."""
        self._tries = 0


def passing(error: HiveError) -> bool:
    """Say whether a broken stream should be opened again: the moment or the way is at fault, not the request."""
    if isinstance(error, Unavailable | Cancelled | DeadlineExceeded):
        return True
    if isinstance(error, ResourceExhausted):
        return error.reason == "OVERLOADED"
    # The control plane gives every error a reason; without one it is the transport: a reset stream (INTERNAL), or one
    # whose replica died behind a balancer that then ends it without a status (UNKNOWN).
    return isinstance(error, Internal | Unknown) and not error.reason


def final(error: HiveError) -> bool:
    """Say whether a session is over with this: it is refused for what it is, and would be again."""
    return isinstance(error, _FINAL) or error.reason == "MESSAGE_TOO_LARGE"


async def first_of(*coroutines: Coroutine[object, object, T]) -> T:
    """Run all until the first ends, end the others, and return what it returned or raise what it raised.

    The others are cancelled and waited for, also when the caller is cancelled; what they raise then is dropped.
    """
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return next(task for task in tasks if task in done).result()
