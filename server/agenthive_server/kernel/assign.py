"""Which agent gets which task: pure predicates and scores, the same for the dispatcher and for ExplainRouting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from .agents import AgentSpec
from .records import Key
from .tasks import Strategy, Task, TaskSpec

URGENT = 2
"""Priorities up to this one are urgent for the priority-aware strategy."""


@dataclass(slots=True)
class Candidate:
    """An agent as the dispatcher sees it. Mutable; owned by the pool."""

    key: Key
    spec: AgentSpec
    capabilities: frozenset[str]
    # The session it is in contact through, empty while it takes nothing; `obstacle` then says why.
    session_id: str = ""
    obstacle: str = "STATE"
    used: int = 0
    # Position in the order of assignments: grows with each one it gets.
    last_assigned: int = 0
    # Assignments so far divided by weight; the weighted strategy levels it.
    share: float = 0.0
    # Another one whenever it changes, so that old entries in heaps show.
    version: int = 0

    @property
    def free(self) -> int:
        """Slots it could take a task in now."""
        return self.spec.slots - self.used if self.session_id else 0


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a task asks of an agent; tasks with the same requirement wait in one queue."""

    namespace: str
    capabilities: frozenset[str] = frozenset()
    role: str = ""
    agent_id: str = ""
    avoid: frozenset[str] = frozenset()

    def fits(self, capabilities: frozenset[str], role: str) -> bool:
        """Whether agents of this kind can do it; pins and avoided agents are looked at one by one."""
        return self.capabilities <= capabilities and (not self.role or self.role == role)


Scorer = Callable[[TaskSpec, Candidate], float]
"""A hook's contribution to the score of an eligible agent; added to the strategy's."""


def requirement_of(task: Task, now: float) -> Requirement:
    """Return what a task asks of an agent at a time."""
    plain = requirement(task.namespace, task.spec)
    avoid = frozenset(a for a, until in task.avoid if until > now) if task.avoid else None
    return replace(plain, avoid=avoid) if avoid else plain


def requirement(namespace: str, spec: TaskSpec) -> Requirement:
    """Return what a new task asks of an agent: the same object for all that ask the same, as long as there are few."""
    return _requirement(namespace, spec.required_capabilities, spec.role, spec.agent_id)


@lru_cache(maxsize=4_096)
def _requirement(namespace: str, capabilities: tuple[str, ...], role: str, agent_id: str) -> Requirement:
    return Requirement(namespace, frozenset(capabilities), role, agent_id)


def exclusions(need: Requirement, agent: Candidate) -> list[str]:
    """Return one word for each predicate that keeps an agent from a task; empty when it is eligible."""
    words: list[str] = []
    if need.agent_id and need.agent_id != agent.key[1]:
        words.append("PINNED_ELSEWHERE")
    if need.role and need.role != agent.spec.role:
        words.append("ROLE")
    if not need.capabilities <= agent.capabilities:
        words.append("CAPABILITIES")
    if agent.key[1] in need.avoid:
        words.append("AVOIDED")
    if not agent.session_id:
        words.append(agent.obstacle)
    elif agent.used >= agent.spec.slots:
        words.append("NO_FREE_SLOT")
    return words


Rank = tuple[float, ...]
"""Smaller is better; equal ranks are decided by who was assigned to longest ago."""


def rank(strategy: Strategy, need: Requirement, priority: int, agent: Candidate) -> Rank:
    """Rank an eligible agent for a task."""
    load, turn = agent.used / agent.spec.slots, agent.last_assigned
    if strategy is Strategy.CAPABILITY_FIRST:
        return (len(agent.capabilities) - len(need.capabilities), load, turn)
    if strategy is Strategy.LOAD_BALANCED:
        return (load, turn)
    if strategy is Strategy.ROUND_ROBIN:
        return (turn,)
    if strategy is Strategy.WEIGHTED:
        return (agent.share, turn)
    return (load, turn) if priority <= URGENT else (-load, turn)


def score(strategy: Strategy, need: Requirement, priority: int, agent: Candidate) -> float:
    """Return the leading part of the rank as a score in (0, 1], for people: higher is better."""
    lead = rank(strategy, need, priority, agent)[0]
    if strategy is Strategy.PRIORITY_AWARE and priority > URGENT:
        return 0.5 - lead / 2
    return 1.0 / (1.0 + max(0.0, lead))
