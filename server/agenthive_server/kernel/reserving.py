"""Slots that a decision under way has spoken for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from .assign import Candidate, Requirement
from .group import Group
from .pool import Pool, Standing
from .records import Key
from .tasks import TaskSpec


class Reserving:
    """Lets the pool count slots as used within a `with` in which nothing is awaited.

    At its end they are as they were: the decision's change set says who was given them, or it comes to nothing.

    Nothing else changes the pool meanwhile, so what fits a requirement is looked up once for all tasks that have it one
    after the other; and where only one agent is free for them, its slots are counted here and told to it together.
    """

    __slots__ = ("_before", "_groups", "_left", "_need", "_only", "_pool", "_untold", "most")

    def __init__(self, pool: Pool, most: int) -> None:
        """`most`: slots that are taken at most."""
        self._pool = pool
        self.most = most
        self._before: dict[Key, Standing] = {}
        # The requirement asked for last, and the groups that fit it.
        self._need: Requirement | None = None
        self._groups: Sequence[Group] = ()
        # The only agent that is free for it, what it has left, and what was taken of it that the pool does not know of.
        self._only: Candidate | None = None
        self._left = 0
        self._untold = 0

    def __contains__(self, agent: Key) -> bool:
        return agent in self._before

    def choose(self, need: Requirement, spec: TaskSpec) -> Candidate | None:
        """Return the best free agent for a task, as the pool does, or None."""
        if need is not self._need:
            self._look(need)
        return self._only if self._left else self._pool.choose(need, spec, self._groups)

    def _look(self, need: Requirement) -> None:
        self._tell_pool()
        self._need, self._groups, self._only, self._left = need, self._pool.groups_for(need), None, 0
        # One that is the only one is the best, whatever strategy, affinity and hooks say.
        if not need.agent_id and not need.avoid and len(self._groups) == 1 and len(self._groups[0].free) == 1:
            (key,) = self._groups[0].free
            self._only = self._pool.agents[key]
            self._left = self._only.free

    def take(self, agent: Candidate) -> None:
        """Take a slot of an agent."""
        if agent.key not in self._before:
            self._before[agent.key] = (agent.used, agent.last_assigned, agent.share)
        if agent is not self._only or not self._left:
            self._pool.use(agent.key, 1)
            return
        self._left -= 1
        self._untold += 1
        if not self._left:
            # It is free for nobody any more.
            self._tell_pool()

    def _tell_pool(self) -> None:
        if self._only is not None and self._untold:
            self._pool.use(self._only.key, self._untold)
            self._untold = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for key, before in self._before.items():
            self._pool.restore(key, before)
