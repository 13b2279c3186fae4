"""Slots that a decision under way has spoken for."""

from __future__ import annotations

from typing import Self

from .assign import Candidate
from .pool import Pool, Standing
from .records import Key


class Reserving:
    """Lets the pool count slots as used within a `with` in which nothing is awaited.

    At its end they are as they were: the decision's change set says who was given them, or it comes to nothing.
    """

    __slots__ = ("_before", "_pool", "most")

    def __init__(self, pool: Pool, most: int) -> None:
        """`most`: slots that are taken at most."""
        self._pool = pool
        self.most = most
        self._before: dict[Key, Standing] = {}

    def __contains__(self, agent: Key) -> bool:
        return agent in self._before

    def take(self, agent: Candidate) -> None:
        """Take a slot of an agent."""
        self._before.setdefault(agent.key, (agent.used, agent.last_assigned, agent.share))
        self._pool.use(agent.key, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for key, before in self._before.items():
            self._pool.restore(key, before)
