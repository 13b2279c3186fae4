"""Two hundred times on, other settings, and off, while calls go on: none fails, nothing is left, order holds."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agenthive.client import Client
from agenthive_server.app import App
from agenthive_server.plugin.api import (
    Background,
    Call,
    Delegating,
    Event,
    EventType,
    Hooks,
    Outcome,
    Plugin,
    PluginContext,
    Registration,
    Stage,
)
from agenthive_server.plugin.cell import Cell
from agenthive_server.plugin.instance import Instance
from agenthive_server.testing.waiting import eventually

if TYPE_CHECKING:
    from tests.server.plugin.conftest import Journal, Knobs

Make = Callable[..., Registration[Any]]
Serve = Callable[..., Any]

TIMES = 200
ORDER = ("first", "second", "third")


class Marks:
    """Leaves its mark on a call, and looks at those of the others."""

    stage = Stage.ADMIT

    def __init__(self, name: str, wrong: list[list[str]]) -> None:
        self.name = name
        self.wrong = wrong
        self.left = 0

    def before(self, call: Call) -> None:
        marks: list[str] = call.notes.setdefault("marks", [])
        marks.append(self.name)
        if marks != sorted(marks, key=ORDER.index):
            self.wrong.append(list(marks))

    def after(self, call: Call, outcome: Outcome) -> None:
        self.left += 1


class WaitsALittle(Marks):
    """The same, asynchronously."""

    stage = Stage.ADMIT

    async def before(self, call: Call) -> None:  # type: ignore[override]  # either is an interceptor
        await asyncio.sleep(0)
        super().before(call)


def acts(
    name: str, kind: type[Marks], wrong: list[list[str]], handled: list[int]
) -> Callable[[PluginContext[Knobs]], Plugin]:
    """Return what makes the acts of a plugin: one of every kind."""

    def made(ctx: PluginContext[Knobs]) -> Plugin:
        def hook(task: Delegating) -> None:
            seen = task.spec.labels.get("hooks", "").split()
            if [*seen, name] != sorted([*seen, name], key=ORDER.index):
                wrong.append([*seen, name])
            task.amend(labels={**task.spec.labels, "hooks": " ".join([*seen, name])})

        async def handle(event: Event) -> None:
            handled.append(event.sequence)

        async def loop() -> None:
            ctx.spawn(asyncio.Event().wait(), "waits")  # type: ignore[arg-type]  # it never ends
            await asyncio.Event().wait()

        return Plugin(
            interceptors=(kind(name, wrong),),
            hooks=Hooks(before_delegate=hook),
            handlers={EventType.TASK_DELEGATED: handle},
            tasks=(Background("loop", loop),),
        )

    return made


async def call_on(client: Client, stop: asyncio.Event) -> int:
    """Delegate tasks until told to stop; returns how many. Raises when one fails."""
    made = 0
    while not stop.is_set():
        await client.delegate("work", required_capabilities=["none"], request_id="")
        made += 1
    return made


def left_over(app: App) -> dict[str, int]:
    """Count what a plugin that is off must not leave."""
    gc.collect()
    found = gc.get_objects()
    # Of this server: what plugins of another test hold on to is not its own.
    running = app.plugins._rack.running
    return {
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "instances": sum(isinstance(each, Instance) and each.cell.running is running for each in found),
        "cells": sum(isinstance(each, Cell) and each.running is running for each in found),
        "interceptors": len(app.adapter._switch.current.entries),
        "hooks": len(app.kernel.hooks.current.before_delegate),
        "followers": len(app.handlers._followers),
        "work": len(app.plugins._work),
    }


async def test_switched_two_hundred_times_under_load_no_call_fails_and_nothing_is_left(
    make: Make, serve: Serve, journal: Journal
) -> None:
    wrong: list[list[str]] = []
    handled: list[int] = []
    amends = {"before_delegate": frozenset({"labels"})}
    plugins = (
        make("first", acts("first", Marks, wrong, handled), hooks_amend=amends),
        make("second", acts("second", WaitsALittle, wrong, handled), after=("first",), hooks_amend=amends),
        make("third", acts("third", Marks, wrong, handled), after=("second",), hooks_amend=amends, overlaps=False),
    )
    async with serve(*plugins) as (app, client):
        stop = asyncio.Event()
        # Once before counting: what is made on first use stays.
        await switch(client, "third", 1)
        async with asyncio.TaskGroup() as group:
            calling = [group.create_task(call_on(client, stop)) for _ in range(4)]
            await asyncio.sleep(0)
            async with asyncio.TaskGroup() as switching:
                for name in ORDER:
                    switching.create_task(switch(client, name, TIMES))
            stop.set()
        assert sum(task.result() for task in calling) > TIMES
        journal.contexts.clear()
        after = left_over(app)
        assert wrong == []
        assert (after["instances"], after["cells"]) == (0, 0)
        assert (after["interceptors"], after["hooks"], after["followers"], after["work"]) == (5, 0, 0, 0)
        assert len(handled) > 0
        before_more = left_over(app)
        await switch(client, "first", 20)
        journal.contexts.clear()
        # Other parts of the server have a task now and then, also when it was counted before: so less is no fault, and
        # what twenty switches left behind would stay.
        await eventually(
            lambda: all(count <= before_more[what] for what, count in left_over(app).items()), what="nothing is left"
        )


async def switch(client: Client, name: str, times: int) -> None:
    """Enable, configure and disable a plugin so many times."""
    for turn in range(times):
        await client.enable_plugin(name)
        await client.configure_plugin(name, {"level": turn % 10})
        await client.disable_plugin(name)
