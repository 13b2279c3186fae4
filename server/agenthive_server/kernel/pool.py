"""Free agents and waiting tasks, kept so that finding the next pair costs no more than the logarithm of their number.

Agents of the same kind form a *group*; tasks with the same requirement form a *queue*. Which groups fit which queue is
worked out once, when either appears. A group knows the best of its free members, and which queue is next to get one;
the groups that have both stand in line themselves, and so do the queues of tasks for one agent only.

Invariant: what is not in line has no task, or no free agent that fits it; so a free agent found while nothing is
`open` is wanted by nobody who came earlier.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from .agents import AgentSpec
from .assign import URGENT, Candidate, Requirement, Scorer, exclusions, rank, requirement_of
from .group import Group, GroupKey, Space
from .line import Line
from .ready import ReadyQueue
from .records import Key
from .tasks import Strategy, Task, TaskSpec

AFFINITY_KEPT = 10_000
SCORED = 32
"""Candidates shown to scoring hooks for one task."""

Standing = tuple[int, int, float]
"""Slots used, place in the order of assignments, share."""


class Pool:
    """The dispatcher's view of agents and ready tasks, derived from the records in memory."""

    def __init__(self, default_strategy: Strategy = Strategy.CAPABILITY_FIRST) -> None:
        self.default_strategy = default_strategy
        self.scorers: tuple[Scorer, ...] = ()
        self.agents: dict[Key, Candidate] = {}
        self.groups: dict[GroupKey, Group] = {}
        self.queues: dict[Requirement, ReadyQueue] = {}
        self._line: Line[Group | ReadyQueue] = Line()
        self._spaces: dict[str, Space] = {}
        self._waiting: dict[Key, Requirement] = {}
        self._fitting: dict[Requirement, list[Group]] = {}
        # The group each agent is in.
        self._groups: dict[Key, Group] = {}
        # Queues of tasks for one agent only; apart, so that they cost nothing to the others of its group.
        self._pinned: dict[Key, dict[ReadyQueue, None]] = {}
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

    def restore(self, key: Key, before: Standing) -> None:
        """Let an agent stand as it did before a decision took slots of it; no queue is told that it is free."""
        agent = self.agents[key]
        agent.used, agent.last_assigned, agent.share = before
        self._note(agent, self._groups[key])

    def _agent_changed(self, agent: Candidate, group: Group) -> None:
        if self._note(agent, group):
            if group.look_again() or (group.line and group not in self._line):
                self._line.put(group)
            for queue in self._pinned.get(agent.key, ()) if self._pinned else ():
                self._line.put(queue)

    def _note(self, agent: Candidate, group: Group) -> bool:
        """Note a change of an agent; returns whether it was full and is free now."""
        if not group.changed(agent):
            return False
        free = self._spaces[agent.key[0]].free
        if group.free:
            free[group] = None
        else:
            free.pop(group, None)
        return agent.key in group.free

    def _join_group(self, agent: Candidate) -> None:
        key = _group_key(agent.key, agent.spec)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(key)
            space = self._space(key[0])
            space.groups[group] = None
            for queue in space.queues:
                self._match(queue, group)
        group.members[agent.key] = agent
        agent.share = group.share
        self._groups[agent.key] = group

    def _leave_group(self, agent: Candidate) -> None:
        group, space = self._groups.pop(agent.key), self._space(agent.key[0])
        group.remove(agent.key)
        if not group.free:
            space.free.pop(group, None)
        if not group.members:
            del self.groups[group.key], space.groups[group]
            self._line.discard(group)
            for queue in group.queues:
                self._fitting[queue.need].remove(group)

    def _space(self, namespace: str) -> Space:
        found = self._spaces.get(namespace)
        if found is None:
            found = self._spaces[namespace] = Space()
        return found

    # Tasks ----------------------------------------------------------------------------------------------------------

    def put_task(self, task: Task, now: float) -> None:
        """Add a QUEUED task, or move it to the queue of its present requirement."""
        need = requirement_of(task, now)
        if self._waiting.get(task.key) == need:
            return
        self.remove_task(task.key)
        queue = self.queues.get(need) or self._add(need)
        queue.add(task)
        self._waiting[task.key] = need
        head = queue.head()
        if head is not None and head[1] == task.key:
            self._offer(queue)

    def _add(self, need: Requirement) -> ReadyQueue:
        space = self._space(need.namespace)
        queue = self.queues[need] = ReadyQueue(need, space.fairness)
        self._fitting[need] = []
        if need.agent_id:
            self._pinned.setdefault((need.namespace, need.agent_id), {})[queue] = None
        else:
            space.queues[queue] = None
            for group in space.groups:
                self._match(queue, group)
        return queue

    def _offer(self, queue: ReadyQueue) -> None:
        """Let a queue with a new first task have its turn wherever it fits."""
        if queue.need.agent_id:
            self._line.put(queue)
        for group in self._fitting[queue.need]:
            group.ask(queue)
            self._line.put(group)

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
            self._drop(queue)

    def _drop(self, queue: ReadyQueue) -> None:
        need = queue.need
        del self.queues[need]
        self._line.discard(queue)
        self._space(need.namespace).queues.pop(queue, None)
        for group in self._fitting.pop(need):
            group.forget(queue)
        if need.agent_id:
            agent = (need.namespace, need.agent_id)
            del self._pinned[agent][queue]
            if not self._pinned[agent]:
                del self._pinned[agent]

    def _match(self, queue: ReadyQueue, group: Group) -> None:
        if group.fits(queue.need):
            self._fitting[queue.need].append(group)
            group.ask(queue)

    @property
    def queued(self) -> int:
        """Tasks waiting for an agent."""
        return len(self._waiting)

    def position(self, key: Key) -> int:
        """Return how many tasks would be assigned before this one by order; -1 when it does not wait."""
        need = self._waiting.get(key)
        return self.queues[need].ahead_of(key) if need is not None else -1

    # Pairs ----------------------------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether a task may wait for which an agent is free."""
        return bool(self._line)

    def next_queue(self) -> ReadyQueue | None:
        """Return the queue whose first task is the next one to get an agent, None when no agent is free for any."""
        found = self._line.first()
        return found.line.first() if isinstance(found, Group) else found

    def close(self, queue: ReadyQueue) -> None:
        """Note that no agent that is free fits a queue; the next one that comes free is looked at again."""
        self._line.discard(queue)
        for group in self._fitting[queue.need]:
            if group.free:
                group.pass_over(queue)

    def reopen(self) -> None:
        """Look at every queue again."""
        for group in self.groups.values():
            group.look_again()
            self._line.put(group)
        for queues in self._pinned.values():
            for queue in queues:
                self._line.put(queue)

    def closed(self, queue: ReadyQueue) -> bool:
        """Whether no agent is given to a queue before one comes free that is not now."""
        fitting = self._fitting[queue.need]
        return queue not in self._line and not any(queue in g.line and g in self._line for g in fitting)

    def groups_for(self, need: Requirement) -> Sequence[Group]:
        """Return the groups that fit a requirement and have a free member."""
        space, known = self._space(need.namespace), self._fitting.get(need)
        if known is not None and len(known) <= len(space.free):
            return [group for group in known if group.free]
        return [group for group in space.free if group.fits(need)]

    def choose(self, need: Requirement, spec: TaskSpec, groups: Sequence[Group] | None = None) -> Candidate | None:
        """Return the best free agent for a task, or None.

        `groups`, where they are known, are those for its requirement; they may have filled up since.
        """
        if need.agent_id:
            agent = self.agents.get((need.namespace, need.agent_id))
            return agent if agent and not exclusions(need, agent) else None
        if spec.affinity_key:
            last = self._affinity.get((need.namespace, spec.affinity_key))
            agent = self.agents.get(last) if last else None
            if agent and not exclusions(need, agent):
                return agent
        if groups is None:
            groups = self.groups_for(need)
        strategy, priority = spec.strategy or self.default_strategy, spec.priority
        wanted = SCORED if self.scorers else 1
        found = [a for group in groups for a in group.best(strategy, priority <= URGENT, wanted, need.avoid)]
        if not self.scorers or len(found) < 2:
            return min(found, key=lambda a: rank(strategy, need, priority, a), default=None)
        found.sort(key=lambda a: rank(strategy, need, priority, a))
        return max(found[:SCORED], key=lambda a: sum(s(spec, a) for s in self.scorers))

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
