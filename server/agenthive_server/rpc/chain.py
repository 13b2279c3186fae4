"""The order of interceptors, on one page.

    CallId            a call id for logs and for the caller
    AccessLog         counts and times every call
    DeadlineCap       a deadline for every unary call, none beyond the longest allowed
    ConcurrencyLimit  not more calls at once than the server can hold
    IDENTIFY          plugins: who calls, and may they
    ADMIT             plugins: whether the call is taken on now
    OBSERVE           plugins: what it costs
    (the method)

A call runs through it downwards with `before` and upwards with `after`. Plugins that stand side by side share a wall,
which is one link of the chain.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from agenthive_server import telemetry
from agenthive_server.plugin.api import Call, Interceptor, Outcome, Stage
from agenthive_server.plugin.walls import Guarded, Wall

_log = logging.getLogger(__name__)

Before = Callable[[Call], Awaitable[None] | None]
After = Callable[[Call, Outcome], Awaitable[None] | None]


class Entry(NamedTuple):
    """An interceptor and where it comes from: `built in`, or the plugin's name."""

    interceptor: Interceptor | Guarded
    source: str


@dataclass(frozen=True, slots=True)
class Chain:
    """An immutable chain: bound methods, outermost first; `afters[n]` is what to run when n links were entered."""

    entries: tuple[Entry, ...]
    befores: tuple[Before, ...]
    afters: tuple[tuple[After, ...], ...]

    async def leave(self, call: Call, outcome: Outcome, entered: int) -> None:
        """Run what was entered, innermost first. Errors are logged; a cancellation goes on when all have run."""
        cancelled: asyncio.CancelledError | None = None
        for after in self.afters[entered]:
            try:
                waits = after(call, outcome)
                if waits is not None:
                    await waits
            except asyncio.CancelledError as error:
                cancelled = error
            except Exception:  # noqa: BLE001 - logged; a failing plugin cannot reach the call
                name = getattr(after, "__qualname__", repr(after))
                _log.exception("interceptor failed on the way out", extra={telemetry.INTERCEPTOR: name})
        if cancelled is not None:
            raise cancelled


def build_chain(built_in: Iterable[Interceptor], plugins: Iterable[Entry] = ()) -> Chain:
    """Return the chain: what is built in, then the plugins' by stage; within a stage in the order given."""
    entries = (
        *(Entry(interceptor, "built in") for interceptor in built_in),
        *sorted(plugins, key=lambda entry: entry.interceptor.stage),
    )
    links = tuple(_links(entries))
    return Chain(
        entries=entries,
        befores=tuple(link.before for link in links),
        afters=tuple(_afters(links, n) for n in range(len(links) + 1)),
    )


def _links(entries: Iterable[Entry]) -> Iterator[Interceptor | Wall]:
    for guarded, group in groupby((entry.interceptor for entry in entries), lambda each: isinstance(each, Guarded)):
        if guarded:
            yield Wall([each for each in group if isinstance(each, Guarded)])
        else:
            yield from (each for each in group if not isinstance(each, Guarded))


def _afters(links: tuple[Interceptor | Wall, ...], entered: int) -> tuple[After, ...]:
    # Of those behind a wall some may have let the call in before another one refused it.
    last = links[entered : entered + 1]
    left = (*links[:entered], *(link for link in last if isinstance(link, Wall)))
    return tuple(link.after for link in reversed(left))


EMPTY = build_chain(())


class Switch:
    """Holds the chain in effect. Setting `current` changes it for calls that begin afterwards."""

    __slots__ = ("current",)

    def __init__(self, current: Chain = EMPTY) -> None:
        self.current = current


def describe(chain: Chain) -> list[tuple[str, str, str]]:
    """Return stage, name and source of each interceptor, outermost first, for `agenthived show-chain`."""
    return [(Stage(entry.interceptor.stage).name, _name(entry.interceptor), entry.source) for entry in chain.entries]


def _name(interceptor: Interceptor | Guarded) -> str:
    # A plugin's stands behind a wall, and is the one of interest.
    return type(getattr(interceptor, "inner", interceptor)).__name__
