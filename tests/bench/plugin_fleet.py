"""Ten plugins as first-party ones are: all look at calls and tasks, some follow events; and three that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from agenthive_server.plugin.api import (
    Background,
    Call,
    Config,
    Delegating,
    Event,
    EventType,
    Handler,
    Hooks,
    Outcome,
    Plugin,
    PluginContext,
    Registration,
    Stage,
)

COUNT = 10
ACTS = frozenset({"interceptors", "hooks", "handlers"})
FOLLOWING = 3
"""How many of them follow the ends of tasks."""


class Measure:
    """Counts calls by method and outcome, as a plugin that watches does."""

    stage = Stage.OBSERVE

    def __init__(self, ctx: PluginContext[Any]) -> None:
        self._calls = ctx.metrics.counter("calls", ("method", "code"))

    def before(self, call: Call) -> None:
        """Look for a header."""
        call.header("x-tenant")

    def after(self, call: Call, outcome: Outcome) -> None:
        """Count it."""
        self._calls.add(1.0, call.method, outcome.code)


def label(task: Delegating) -> None:
    """Look at a task as a policy does."""
    if task.spec.labels.get("tier") == "gold" and task.spec.priority > 2:
        task.amend(priority=2)


def ends(ctx: PluginContext[Any]) -> dict[EventType, Handler]:
    """Return handlers that keep a tally of how tasks end."""
    ended = ctx.metrics.counter("ended", ("type",))

    async def count(event: Event) -> None:
        ended.add(1.0, event.type.name)

    return dict.fromkeys((EventType.TASK_SUCCEEDED, EventType.TASK_FAILED), count)


def _opening(
    number: int, acts: frozenset[str]
) -> Callable[[PluginContext[Config]], AbstractAsyncContextManager[Plugin]]:
    @asynccontextmanager
    async def opening(ctx: PluginContext[Config]) -> AsyncIterator[Plugin]:
        async def turn() -> None:
            while True:
                await ctx.clock.sleep(1.0)

        yield Plugin(
            interceptors=(Measure(ctx),) if "interceptors" in acts else (),
            hooks=Hooks(before_delegate=label) if "hooks" in acts else Hooks(),
            handlers=ends(ctx) if "handlers" in acts and number < FOLLOWING else {},
            tasks=(Background("turn", turn),),
        )

    return opening


NAMES = [f"bench-{number}" for number in range(COUNT)]


def fleet(acts: frozenset[str] = ACTS) -> list[Registration[Config]]:
    """Return ten plugins that have these acts, and a loop each."""
    return [
        Registration(
            name,
            open=_opening(number, acts),
            after=(NAMES[number - 1],) if number else (),
            hooks_amend={"before_delegate": frozenset({"priority"})},
            summary="One of ten.",
        )
        for number, name in enumerate(NAMES)
    ]


FLEET = fleet()


class Raises:
    """Raises at every call."""

    stage = Stage.OBSERVE

    def before(self, call: Call) -> None:
        """Raise."""
        raise RuntimeError("as it does")

    def after(self, call: Call, outcome: Outcome) -> None:
        """Do nothing."""


class Hangs(Raises):
    """Never lets a call go on."""

    async def before(self, call: Call) -> None:  # type: ignore[override]  # either is an interceptor
        """Wait for ever."""
        await asyncio.Event().wait()


class Leaks(Raises):
    """Leaves a task behind at every call."""

    def __init__(self) -> None:
        self.kept: list[object] = []

    def before(self, call: Call) -> None:
        """Make a task that never ends."""
        self.kept.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))


def _offender(kind: type[Raises]) -> Registration[Config]:
    @asynccontextmanager
    async def opening(ctx: PluginContext[Config]) -> AsyncIterator[Plugin]:
        yield Plugin(interceptors=(kind(),))

    return Registration(kind.__name__.lower(), open=opening, summary="Misbehaves.")


OFFENDERS = [_offender(kind) for kind in (Raises, Hangs, Leaks)]


def __getattr__(name: str) -> Registration[Config]:
    """Return the registration an entry point names: `bench_3`, `hangs`."""
    for registration in (*FLEET, *OFFENDERS):
        if registration.name.replace("-", "_") == name:
            return registration
    raise AttributeError(name)
