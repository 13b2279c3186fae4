"""What stands where a plugin should be without which nothing passes, and which cannot be opened here: it refuses.

Another replica may have switched it on, or given it settings, with success. This one tries again and again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agenthive_server.kernel.errors import PluginFailed
from agenthive_server.kernel.proposals import Proposal

from .calls import Audience, Call, Outcome, Stage
from .context import PluginContext
from .registration import Config, Failure, Hooks, Plugin, Registration


class Refusal:
    """Refuses every call but those that are for anyone."""

    stage = Stage.IDENTIFY

    def __init__(self, name: str) -> None:
        self._name = name

    def before(self, call: Call) -> None:
        """Refuse."""
        if call.policy.audience is not Audience.ANYONE:
            raise self._error()

    def after(self, call: Call, outcome: Outcome) -> None:
        """Do nothing."""

    def decide(self, proposal: Proposal) -> None:
        """Refuse what goes on in sessions that were open before."""
        raise self._error()

    def _error(self) -> PluginFailed:
        text = f"plugin {self._name}, without which nothing passes, cannot be opened on this server; try another one"
        return PluginFailed(text, metadata={"plugin": self._name})


def sealed(name: str) -> Registration[Any]:
    """Return what refuses in the place of a plugin."""

    @asynccontextmanager
    async def opening(_: PluginContext[Config]) -> AsyncIterator[Plugin]:
        refusal = Refusal(name)
        hooks = Hooks(
            before_spawn=refusal.decide,
            before_delegate=refusal.decide,
            before_complete=refusal.decide,
            before_join=refusal.decide,
        )
        yield Plugin(interceptors=(refusal,), hooks=hooks, protects=True)

    return Registration(name, open=opening, failure=Failure.CLOSED, summary="It is not installed here.")
