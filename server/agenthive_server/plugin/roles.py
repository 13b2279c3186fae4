"""The right to do on one replica at a time what would go wrong twice: the handlers of a plugin, its loops.

An embedded store has one process, which holds every role as long as it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agenthive_server.kernel.decide import View


class Role(Protocol):
    """One role of this replica. What is committed under it names it, so that a holder that lost it commits nothing."""

    @property
    def held(self) -> bool:
        """Whether this replica holds it, as far as it knows."""

    async def acquire(self) -> None:
        """Wait until this replica holds it."""

    def check(self, view: View) -> None:
        """Let the change set of a decision stand only if the role is then still held."""

    async def release(self) -> None:
        """Let another replica have it at once."""


Roles = Callable[[str], Role]
"""Makes the role of a name."""


class AlwaysHeld:
    """The role of the only replica there is."""

    held = True

    async def acquire(self) -> None:
        """Return at once."""

    def check(self, view: View) -> None:
        """Check nothing: there is nobody to lose it to."""

    async def release(self) -> None:
        """Do nothing."""


def sole(_name: str) -> Role:
    """Return the role of a server that is the only one on its store."""
    return AlwaysHeld()
