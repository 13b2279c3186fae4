"""The servers of a hive: which of them this one is, which are there, and who does what would go wrong twice.

An embedded store has one process, which holds every role as long as it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

from .decide import View

DISPATCHER: Final = "dispatcher"
"""The role of assigning tasks, following events up, placing agents, and looking at the clocks of all records."""


class Told(NamedTuple):
    """What a replica said of itself last, as `members.py` reads it, and when by the database's clock."""

    text: str
    time: float


class Roll(NamedTuple):
    """All replicas as they were last read."""

    told: Mapping[str, Told]
    holders: Mapping[str, str]
    """Who acts in which role; empty when nobody does."""
    time: float
    """When that was, by the database's clock."""


class Role(Protocol):
    """One role of this replica. What is committed under it names it, so that a holder that lost it commits nothing."""

    @property
    def held(self) -> bool:
        """Whether this replica holds it, as far as it knows."""

    async def acquire(self) -> None:
        """Wait until this replica holds it, and knows everything that was committed before."""

    def check(self, view: View) -> None:
        """Let the change set of a decision stand only if the role is then still held."""

    async def release(self) -> None:
        """Let another replica have it at once."""

    def when_lost(self, tell: Callable[[], None]) -> None:
        """Have `tell` called whenever this replica has it no more, however that came; it replaces the one before."""


Roles = Callable[[str], Role]
"""Makes the role of a name."""


class Replicas(Protocol):
    """The replicas as this one knows them."""

    @property
    def me(self) -> str:
        """The id of this one; empty where there is only one."""

    def role(self, name: str) -> Role:
        """Return the role of a name."""

    def there(self, replica: str) -> bool:
        """Whether a replica serves. One that does not will commit nothing any more, and has no session."""

    async def retire(self) -> None:
        """Leave every role to others at once and take none any more: this one is about to stop."""


class AlwaysHeld:
    """The role of the only replica there is."""

    held = True

    async def acquire(self) -> None:
        """Return at once."""

    def check(self, view: View) -> None:
        """Check nothing: there is nobody to lose it to."""

    async def release(self) -> None:
        """Do nothing."""

    def when_lost(self, tell: Callable[[], None]) -> None:
        """Do nothing: it is never lost."""


def sole(_name: str) -> Role:
    """Return the role of a server that is the only one on its store."""
    return AlwaysHeld()


class Alone:
    """The replicas of a store that one process has to itself."""

    me = ""

    def role(self, name: str) -> Role:
        """Return a role, held."""
        return sole(name)

    def there(self, replica: str) -> bool:
        """Whether it is this one: others have been before, and are not there any more."""
        return not replica

    async def retire(self) -> None:
        """Do nothing: there are no others."""
