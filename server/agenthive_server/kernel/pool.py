"""Free agents and waiting tasks, kept so that finding the next pair costs no more than the logarithm of their number.

Agents with the same capabilities and role form a *group*; tasks with the same requirement form a *queue*. Which
groups fit
which queue is worked out once, when either appears. Inside a group, a heap for each strategy in use finds the best
agent; entries of agents that have changed since are skipped.

Invariant: a queue that is not in `open` has no free agent that fits; so a free agent found while `open` is empty is
wanted by nobody who came earlier.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from .agents import AgentSpec
from .assign import URGENT, Candidate, Rank, Requirement, Scorer, exclusions, rank, requirement_of
from .ready import Fairness, Order, ReadyQueue
from .records import Key
from .tasks import Strategy, Task, TaskSpec

AFFINITY_KEPT = 10_000
SCORED = 32
"""Candidates shown to scoring hooks for one task."""

GroupKey = tuple[str, frozenset[str], str]


class Group:
    """Agents with the same namespace, capabilities and role."""

    def __init__(self, key: GroupKey) -> None:
        self.key = key
        self.members: dict[Key, Candidate] = {}
        self.free: set[Key] = set()
        # Share of the member that was assigned to last; where newcomers begin.
        self.share = 0.0
        self._changes = 0
        # Members changed since a heap was last asked; several changes in one turn then cost one entry.
        self._changed: dict[Key, Candidate] = {}
        # Queues of tasks that fit, and would take a free member.
        self.wanting: set[Requirement] = set()
        self._heaps: dict[tuple[Strategy, bool], list[tuple[Rank, Key, int]]] = {}

    def changed(self, agent: Candidate) -> None:
        """Note a change of an agent."""
        key = agent.key
        self._changed[key] = agent
        if agent.session_id and agent.used < agent.spec.slots:
            self.free.add(key)
        else:
            self.free.discard(key)

    def _catch_up(self) -> None:
        """Make the old entries of changed agents stale, and new ones for those that are free."""
        for agent in self._changed.values():
            # Counted by the group: an agent that was forgotten and comes back must not match entries of its former
            # self.
            self._changes += 1
            agent.version = self._changes
            if agent.key not in self.free:
                continue
            for (strategy, urgent), heap in self._heaps.items():
                heapq.heappush(heap, self._entry(strategy, urgent, agent))
                if len(heap) > 64 + 8 * len(self.members):
                    self._heaps[strategy, urgent] = self._filled(strategy, urgent)
        self._changed.clear()

    def remove(self, key: Key) -> None:
        """Forget an agent."""
        self.members.pop(key, None)
        self.free.discard(key)
        self._changed.pop(key, None)

    def _entry(self, strategy: Strategy, urgent: bool, agent: Candidate) -> tuple[Rank, Key, int]:
        need = Requirement(self.key[0])
        return (rank(strategy, need, 1 if urgent else 5, agent), agent.key, agent.version)

    def _filled(self, strategy: Strategy, urgent: bool) -> list[tuple[Rank, Key, int]]:
        heap = [self._entry(strategy, urgent, self.members[key]) for key in self.free]
        heapq.heapify(heap)
        return heap

    def best(self, strategy: Strategy, urgent: bool, count: int, avoid: frozenset[str]) -> list[Candidate]:
        """Return up to `count` free agents, best first, without taking them."""
        if self._changed:
            self._catch_up()
        heap = self._heaps.get((strategy, urgent))
        if heap is None:
            heap = self._heaps[strategy, urgent] = self._filled(strategy, urgent)
        found: list[Candidate] = []
        popped: list[tuple[Rank, Key, int]] = []
        while heap and len(found) < count:
            entry = heap[0]
            agent = self.members.get(entry[1])
            if agent is None or agent.version != entry[2] or agent.free <= 0:
                heapq.heappop(heap)
                continue
            if agent.key[1] not in avoid:
                found.append(agent)
                if len(found) == count:
                    break
            popped.append(heapq.heappop(heap))
        for entry in popped:
            heapq.heappush(heap, entry)
        return found


class Pool:
    """The dispatcher's view of agents and ready tasks, derived from the records in memory."""

    def __init__(self, default_strategy: Strategy = Strategy.CAPABILITY_FIRST) -> None:
        self.default_strategy = default_strategy
        self.scorers: tuple[Scorer, ...] = ()
        self.agents: dict[Key, Candidate] = {}
        self.groups: dict[GroupKey, Group] = {}
        self.queues: dict[Requirement, ReadyQueue] = {}
        self.open: set[Requirement] = set()
        self._waiting: dict[Key, Requirement] = {}
        self._fitting: dict[Requirement, list[Group]] = {}
        # The group each agent is in.
        self._groups: dict[Key, Group] = {}
        # Queues of tasks for one agent only; apart, so that they cost nothing to the others of its group.
        self._pinned: dict[Key, set[Requirement]] = {}
        # Turns count for all queues of a namespace: an agent that fits several serves their fairness keys in turn.
        self._fairness: dict[str, Fairness] = {}
        self._affinity: OrderedDict[tuple[str, str], Key] = OrderedDict()
        self._turn = 0

    # Agents ---------------------------------------------------------------------------------------------------------

    def put_agent(self, key: Key, spec: AgentSpec, session_id: str, obstacle: str, used: int = 0) -> None:
        """Add an agent or note how it has changed; an empty session means it takes nothing, because of `obstacle`.

        `used`: the leases it holds already when it is new here.
        """
        agent = self.agents.get(key)
        if agent is not None and agent.spec is not spec and self._groups[key].key != _group_key(key, spec):
            self._leave_group(agent)
            agent.spec = spec
            agent.capabilities = frozenset(spec.capabilities)
            self._join_group(agent)
        if agent is None:
            agent = self.agents[key] = Candidate(key, spec, frozenset(spec.capabilities), used=used)
            self._turn += 1
            agent.last_assigned = self._turn
            self._join_group(agent)
        agent.spec = spec
        agent.session_id = session_id
        agent.obstacle = obstacle
        self._agent_changed(agent, self._groups[key])

    def remove_agent(self, key: Key) -> None:
        """Forget an agent."""
        agent = self.agents.pop(key, None)
        if agent is not None:
            self._leave_group(agent)

    def use(self, key: Key, slots: int) -> None:
        """Note that leases of an agent were granted (positive) or ended (negative)."""
        agent = self.agents.get(key)
        if agent is None:
            return
        group = self._groups[key]
        agent.used += slots
        if slots > 0:
            self._turn += 1
            agent.last_assigned = self._turn
            group.share = agent.share
            agent.share += slots / agent.spec.weight
        self._agent_changed(agent, group)

    def _agent_changed(self, agent: Candidate, group: Group) -> None:
        group.changed(agent)
        if (group.wanting or self._pinned) and agent.free > 0:
            self.open.update(group.wanting, self._pinned.get(agent.key, ()))

    def _join_group(self, agent: Candidate) -> None:
        key = _group_key(agent.key, agent.spec)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(key)
            for need in self.queues:
                if not need.agent_id:
                    self._match(need, group)
        group.members[agent.key] = agent
        agent.share = group.share
        self._groups[agent.key] = group

    def _leave_group(self, agent: Candidate) -> None:
        group = self._groups.pop(agent.key)
        group.remove(agent.key)
        if not group.members:
            del self.groups[group.key]
            for need in group.wanting:
                self._fitting[need].remove(group)

    # Tasks ----------------------------------------------------------------------------------------------------------

    def put_task(self, task: Task, now: float) -> None:
        """Add a QUEUED task, or move it to the queue of its present requirement."""
        need = requirement_of(task, now)
        if self._waiting.get(task.key) == need:
            return
        self.remove_task(task.key)
        queue = self.queues.get(need)
        if queue is None:
            fairness = self._fairness.setdefault(need.namespace, Fairness())
            queue = self.queues[need] = ReadyQueue(need, fairness)
            self._fitting[need] = []
            if need.agent_id:
                self._pinned.setdefault((need.namespace, need.agent_id), set()).add(need)
            else:
                for group in self.groups.values():
                    self._match(need, group)
        queue.add(task)
        self._waiting[task.key] = need
        self.open.add(need)

    def remove_task(self, key: Key) -> None:
        """Forget a task that is no longer QUEUED."""
        need = self._waiting.pop(key, None)
        if need is None:
            return
        # Gone already when the last tasks of a queue were taken together.
        queue = self.queues.get(need)
        if queue is None:
            return
        queue.discard(key)
        if not queue:
            self._drop(need)

    def _drop(self, need: Requirement) -> None:
        del self.queues[need]
        self.open.discard(need)
        for group in self._fitting.pop(need):
            group.wanting.discard(need)
        if need.agent_id:
            agent = (need.namespace, need.agent_id)
            self._pinned[agent].discard(need)
            if not self._pinned[agent]:
                del self._pinned[agent]

    def _match(self, need: Requirement, group: Group) -> None:
        namespace, capabilities, role = group.key
        if namespace == need.namespace and need.fits(capabilities, role):
            self._fitting[need].append(group)
            group.wanting.add(need)

    @property
    def queued(self) -> int:
        """Tasks waiting for an agent."""
        return len(self._waiting)

    def position(self, key: Key) -> int:
        """Return how many tasks would be assigned before this one by order; -1 when it does not wait."""
        need = self._waiting.get(key)
        return self.queues[need].ahead_of(key) if need is not None else -1

    # Pairs ----------------------------------------------------------------------------------------------------------

    def next_queue(self) -> Requirement | None:
        """Return the open queue whose head is first in order; queues found without tasks are closed."""
        best: tuple[Order, Requirement] | None = None
        for need in list(self.open):
            head = self.queues[need].head() if need in self.queues else None
            if head is None:
                self.open.discard(need)
            elif best is None or head[0] < best[0]:
                best = (head[0], need)
        return best[1] if best else None

    def groups_for(self, need: Requirement) -> Sequence[Group]:
        """Return the groups that fit a requirement."""
        known = self._fitting.get(need)
        if known is not None:
            return known
        return [g for k, g in self.groups.items() if k[0] == need.namespace and need.fits(k[1], k[2])]

    def choose(self, need: Requirement, spec: TaskSpec, taken: dict[Key, int]) -> Candidate | None:
        """Return the best free agent for a task, or None. `taken` slots are spoken for by the decision under way."""
        if need.agent_id:
            agent = self.agents.get((need.namespace, need.agent_id))
            return agent if agent and _has_room(agent, taken) and not exclusions(need, agent) else None
        if spec.affinity_key:
            last = self._affinity.get((need.namespace, spec.affinity_key))
            agent = self.agents.get(last) if last else None
            if agent and _has_room(agent, taken) and not exclusions(need, agent):
                return agent
        strategy = spec.strategy or self.default_strategy
        if not self.scorers:
            return self._best(need, strategy, spec.priority, taken)
        candidates = self._candidates(need, strategy, spec.priority, taken)
        if not candidates:
            return None
        return max(candidates[:SCORED], key=lambda a: sum(s(spec, a) for s in self.scorers))

    def _best(self, need: Requirement, strategy: Strategy, priority: int, taken: dict[Key, int]) -> Candidate | None:
        """Return the first of `_candidates`; where one kind of agents fits and has one free, without ranking."""
        groups = self.groups_for(need)
        if len(groups) == 1 and len(groups[0].free) == 1 and not need.avoid:
            (key,) = groups[0].free
            agent = self.agents[key]
            return agent if _has_room(agent, taken) else None
        candidates = self._candidates(need, strategy, priority, taken)
        return candidates[0] if candidates else None

    def _candidates(
        self, need: Requirement, strategy: Strategy, priority: int, taken: dict[Key, int]
    ) -> list[Candidate]:
        wanted = len(taken) + (SCORED if self.scorers else 1)
        found: dict[Key, Candidate] = {}
        for group in self.groups_for(need):
            if group.free:
                found.update((a.key, a) for a in group.best(strategy, priority <= URGENT, wanted, need.avoid))
        if strategy is Strategy.PRIORITY_AWARE and priority > URGENT:
            # It packs, so those with slots taken are better than their heaps know.
            found.update((key, self.agents[key]) for key in taken if not exclusions(need, self.agents[key]))
        usable = [a for a in found.values() if _has_room(a, taken)]
        if len(usable) > 1:
            usable.sort(key=lambda a: rank(strategy, need, priority, a, taken.get(a.key, 0)))
        return usable

    def assigned(self, task: Task, agent: Key) -> None:
        """Remember who took a task that has an affinity."""
        key = (task.namespace, task.spec.affinity_key)
        self._affinity[key] = agent
        self._affinity.move_to_end(key)
        if len(self._affinity) > AFFINITY_KEPT:
            self._affinity.popitem(last=False)

    def agents_of(self, namespace: str) -> Iterable[Candidate]:
        """Yield the agents of a namespace."""
        return (agent for key, agent in self.agents.items() if key[0] == namespace)


def _group_key(key: Key, spec: AgentSpec) -> GroupKey:
    return (key[0], frozenset(spec.capabilities), spec.role)


def _has_room(agent: Candidate, taken: dict[Key, int]) -> bool:
    return agent.free > taken.get(agent.key, 0)
