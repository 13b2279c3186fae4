"""One server among the replicas of a database: it hears of what the others commit, and knows when it must not act."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from agenthive_server.events.log import EventLog
from agenthive_server.events.subscriptions import Subscriptions
from agenthive_server.kernel.changes import ChangeSet, Committed, Outcome
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.health import Reading
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.lifecycle import Loop
from agenthive_server.storage.committer import Committer

from .stores import Shared, build_listener

if TYPE_CHECKING:
    from agenthive_server.sharing import Sharing


class Replica:
    """What a server does because there are others."""

    def __init__(
        self,
        store: Shared,
        kernel: Kernel,
        log: EventLog,
        committer: Committer,
        subscriptions: Subscriptions,
        clock: Clock,
        facts: Callable[[], str],
        sharing: Sharing | None,
        present: Callable[[bool], None],
    ) -> None:
        """`sharing`: what they share over Redis, None without it. `present` is told when it is away, and back."""
        self._kernel = kernel
        self._log = log
        self._committer = committer
        self._subscriptions = subscriptions
        self._listener = build_listener(store, clock, self._heard, sharing)
        self._sharing = sharing
        self._present = present
        store.follow(
            caught_up=kernel.decisions.fresh,
            went=self._away,
            recover=self._recover,
            facts=facts,
            came=lambda: present(True),
        )

    def loops(self) -> dict[str, Loop]:
        """Return the loops it needs by name; after the log was opened."""
        if self._sharing is None:
            return {"listener": self._listener.run}
        self._sharing.begin(self._log.log_id)
        return {"listener": self._listener.run, **self._sharing.loops()}

    def probe(self) -> list[tuple[str, Reading]]:
        """Return how it hears of others."""
        return self._listener.probe()

    def settled(self, group: Sequence[tuple[ChangeSet, Outcome]]) -> None:
        """Let the others know of a group that was committed here."""
        for changes, outcome in reversed(group):
            if changes.events and isinstance(outcome, Committed):
                self._listener.announce(changes.events[-1].sequence)
                return

    def _heard(self, head: int) -> None:
        if self._kernel.following is not None:
            self._kernel.following.ring(head, busy=self._committer.committing)

    def _away(self) -> None:
        """Send everyone elsewhere: this replica may have been replaced, and acknowledges nothing."""
        self._present(False)
        self._kernel.sessions.send_away()
        self._subscriptions.send_away()

    async def _recover(self) -> None:
        """Know everything anew, after others took over what this replica did."""
        if self._kernel.following is not None:
            await self._kernel.following.fill()
        await self._log.refresh()
