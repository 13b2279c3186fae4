"""Plugins made on the spot, and a server that has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from agenthive.client import Client
from agenthive_server.app import App
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.plugin.api import SECRET, Config, Failure, Plugin, PluginContext, Registration
from agenthive_server.plugin.cell import Bounds, Cell, Running
from agenthive_server.plugin.registry import Registry
from agenthive_server.testing.harness import open_served


class Knobs(Config, frozen=True, kw_only=True):
    """Settings of the plugins of these tests."""

    level: Annotated[int, msgspec.Meta(ge=0, le=9)] = 1
    name: str = ""
    token: Annotated[str, SECRET] = ""


class Journal:
    """What plugins have done, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.contexts: dict[str, PluginContext[Knobs]] = {}

    def __call__(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def journal() -> Journal:
    return Journal()


Acts = Callable[[PluginContext[Knobs]], Plugin]


@pytest.fixture
def make(journal: Journal) -> Callable[..., Registration[Any]]:
    """Make a plugin that writes down when it opens and closes; `acts` makes its acts from its context."""

    def made(name: str, acts: Acts = lambda ctx: Plugin(), **record: Any) -> Registration[Any]:
        @asynccontextmanager
        async def opening(ctx: PluginContext[Knobs]) -> AsyncIterator[Plugin]:
            journal(f"open {name} {ctx.config.level}")
            journal.contexts[name] = ctx
            try:
                yield acts(ctx)
            finally:
                journal(f"close {name} {ctx.config.level}")

        return Registration(name, config=Knobs, open=opening, summary=f"The plugin {name}.", **record)

    return made


Served = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path) -> Served:
    """Run a server that has these plugins installed; keys are settings."""

    @asynccontextmanager
    async def served(
        *registrations: Registration[Any], data_dir: Path | None = None, **settings: object
    ) -> AsyncIterator[tuple[App, Client]]:
        if data_dir is None:
            settings["server__data_dir"] = str(tmp_path)
        async with open_served(data_dir, registry=Registry(registrations), **settings) as both:
            yield both

    return served


class Told:
    """What the host is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, bool]] = []

    def __call__(self, cell: Cell, act: str, what: str, off: bool) -> None:
        self.lines.append((act, what, off))


def new_cell(failure: Failure = Failure.OPEN, **bounds: Any) -> tuple[Cell, Told, ManualClock]:
    told, clock = Told(), ManualClock()
    return Cell("p", failure, Running(), Bounds(**bounds), clock, told), told, clock
