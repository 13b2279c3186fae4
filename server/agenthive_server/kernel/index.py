"""What follows from the records in memory: open leases, children, dependents, mail, deadlines, the pool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from .agents import Agent, AgentState, Wanted
from .clock import Clock
from .memory import TASK, Changed, Memory
from .messages import Message, MessageState
from .pool import Pool
from .records import Key, Kind
from .sessions import Session, SessionState
from .tasks import TERMINAL, Lease, Progress, Task
from .timers import Timers
from .transitions import QUEUED, next_deadline

Sets = defaultdict[Key, dict[Key, None]]


def _sets() -> Sets:
    return defaultdict(dict)


class Index:
    """Kept from the latest states; every entry can be derived anew from them."""

    def __init__(self, memory: Memory, pool: Pool, clock: Clock, accept_timeout: float) -> None:
        self.memory = memory
        self.pool = pool
        self.clock = clock
        self.accept_timeout = accept_timeout
        self.leases_by_agent = _sets()
        self.leases_by_session = _sets()
        self.agents_by_session = _sets()
        self.agents_by_runner = _sets()
        # Sessions of runners, few among many.
        self.runners: dict[Key, None] = {}
        self.children = _sets()
        self.dependents = _sets()
        self.mail_by_agent = _sets()
        self.mail_by_task = _sets()
        self.task_timers: Timers[Key] = Timers()
        self.agent_timers: Timers[Key] = Timers()
        # Agents whose record changed since the supervisor looked, tasks since the dispatcher did.
        self.unsettled_agents: dict[Key, None] = {}
        self.context_usage: dict[Key, float] = {}
        self.context_threshold = 0.85
        # Where others change records too: what is known of agents comes with the progress of their tasks, and a session
        # whose agents went to another one is told of.
        self.listens = False
        # By agent: leases that ended in changes which were in flight then.
        self._ending = _sets()
        self.deserted: Callable[[Key], None] = lambda _: None
        self.wake_supervisor: Callable[[], None] = lambda: None
        self.wake_dispatcher: Callable[[], None] = lambda: None
        # Leases granted (positive) or ended that the pool has not been told of: it is told once a change set.
        self._used: dict[Key, int] = {}
        memory.listeners.append(self._changed)

    def _changed(self, changes: Iterable[Changed]) -> None:
        for (kind, key), old, new in changes:
            if kind is TASK:
                self._task(key, old, new)  # type: ignore[arg-type]  # the kind says so
            elif kind is Kind.AGENT:
                self._agent(key, old, new)  # type: ignore[arg-type]  # the kind says so
            elif kind is Kind.SESSION:
                self._session(key, new)  # type: ignore[arg-type]  # the kind says so
            elif kind is Kind.MESSAGE:
                self._message(key, old, new)  # type: ignore[arg-type]  # the kind says so
            elif kind is Kind.PROGRESS and self.listens and new is not None:
                self._progress(key, new)  # type: ignore[arg-type]  # the kind says so
        self._tell_pool()

    # Tasks ----------------------------------------------------------------------------------------------------------

    def _task(self, key: Key, old: Task | None, new: Task | None) -> None:
        was, now = old.lease if old is not None else None, new.lease if new is not None else None
        if was is not now and (was is None or now is None or _differ(was, now)):
            if was is not None:
                self._lease_ended(key, was)
            if now is not None and new is not None:
                self._lease_granted(key, new, now)
        was_open = old is not None and old.state not in TERMINAL
        is_open = new is not None and new.state not in TERMINAL
        if was_open is not is_open:
            self._parent(key, new or old, is_open)
        waited = old.waiting_on if old is not None and was_open else ()
        waits = new.waiting_on if new is not None and is_open else ()
        if waited != waits:
            self._waits(key, waited, waits)
        if new is not None and new.state is QUEUED:
            self.pool.put_task(new, self.clock.now())
            self.wake_dispatcher()
        elif old is not None and old.state is QUEUED:
            self.pool.remove_task(key)
        if is_open and new is not None:
            self._task_timer(key, new)
        else:
            self.task_timers.set(key, None)

    def _task_timer(self, key: Key, task: Task) -> None:
        due = next_deadline(task, self.accept_timeout)
        time = due[0] if due else None
        if task.avoid and task.state is QUEUED:
            ends = [until for _, until in task.avoid if until > self.clock.now()]
            if ends and time is not None:
                time = min(time, *ends)
        self.task_timers.set(key, time)

    def refresh_task(self, task: Task) -> None:
        """Look anew at a task whose avoided agents may have come free."""
        if task.state is QUEUED:
            self.pool.put_task(task, self.clock.now())
            self.wake_dispatcher()
        self._task_timer(task.key, task)

    def _lease_granted(self, key: Key, task: Task, lease: Lease) -> None:
        agent = (key[0], lease.agent_id)
        self.leases_by_agent[agent][key] = None
        self.leases_by_session[key[0], lease.session_id][key] = None
        self._used[agent] = self._used.get(agent, 0) + 1
        if task.spec.affinity_key:
            self.pool.assigned(task, agent)

    def _lease_ended(self, key: Key, lease: Lease) -> None:
        agent = (key[0], lease.agent_id)
        _discard(self.leases_by_agent, agent, key)
        _discard(self.leases_by_session, (key[0], lease.session_id), key)
        self._used[agent] = self._used.get(agent, 0) - 1
        if self.listens and self.memory.flight((Kind.TASK, key)) is not None:
            self._ending[agent][key] = None

    def ending(self, agent: Key, wanted: int) -> list[Task]:
        """Return tasks of an agent whose ends are in flight: with another replica they may come to nothing.

        Who takes their slots rests on them. Where as many as are `wanted` are free besides, nobody does.
        """
        found: list[Task] = []
        ending = self._ending.get(agent)
        if not ending or self.pool.agents[agent].free - len(ending) >= wanted:
            return found
        for key in list(ending):
            task = self.memory.task(key)
            if task is not None and self.memory.flight((Kind.TASK, key)) is not None:
                found.append(task)
            else:
                _discard(self._ending, agent, key)
        return found

    def _tell_pool(self) -> None:
        if not self._used:
            return
        used, self._used = self._used, {}
        for key, slots in used.items():
            self.pool.use(key, slots)
            agent = self.memory.agent(key)
            if agent is not None and agent.state is AgentState.DRAINING:
                self._unsettled(key)
        if self.pool.open:
            self.wake_dispatcher()

    def _waits(self, key: Key, waited: Iterable[str], waits: Iterable[str]) -> None:
        for task_id in waited:
            _discard(self.dependents, (key[0], task_id), key)
        for task_id in waits:
            self.dependents[key[0], task_id][key] = None

    def _parent(self, key: Key, task: Task | None, is_open: bool) -> None:
        if task is None or not task.spec.parent_task_id:
            return
        parent = (key[0], task.spec.parent_task_id)
        if is_open:
            self.children[parent][key] = None
        else:
            _discard(self.children, parent, key)

    # Agents and sessions ---------------------------------------------------------------------------------------------

    def _agent(self, key: Key, old: Agent | None, new: Agent | None) -> None:
        if old is not None and new is not None and old.start_epoch != new.start_epoch:
            # Another process, with a context of its own.
            self.context_usage.pop(key, None)
        before, after = old.session_id if old else "", new.session_id if new else ""
        if before != after:
            if before:
                _discard(self.agents_by_session, (key[0], before), key)
                if after:
                    self.deserted((key[0], before))
            if after:
                self.agents_by_session[key[0], after][key] = None
                self.context_usage.pop(key, None)
        before, after = old.runner_session_id if old else "", new.runner_session_id if new else ""
        if before != after:
            if before:
                _discard(self.agents_by_runner, (key[0], before), key)
            if after:
                self.agents_by_runner[key[0], after][key] = None
        self._into_pool(key, new)
        self.agent_timers.set(key, _agent_deadline(new) if new else None)
        self._unsettled(key)

    def _unsettled(self, key: Key) -> None:
        self.unsettled_agents[key] = None
        self.wake_supervisor()

    def _into_pool(self, key: Key, agent: Agent | None) -> None:
        # A new agent is put there with the leases it holds, and they must not be told twice.
        self._tell_pool()
        if agent is None:
            self.pool.remove_agent(key)
            self._ending.pop(key, None)
            self.context_usage.pop(key, None)
            return
        obstacle = self._obstacle(agent)
        session_id = "" if obstacle else agent.session_id
        self.pool.put_agent(key, agent.spec, session_id, obstacle, used=self.open_leases(key))
        if self.pool.open:
            self.wake_dispatcher()

    def _obstacle(self, agent: Agent) -> str:
        if agent.state is not AgentState.READY or agent.wanted is not Wanted.RUNNING:
            return "STATE"
        session = self.memory.session((agent.namespace, agent.session_id))
        if session is None or session.state is not SessionState.OPEN:
            return "NOT_IN_CONTACT"
        if session.draining:
            return "DRAINING"
        if self.context_usage.get(agent.key, 0.0) >= self.context_threshold:
            return "CONTEXT_FULL"
        return ""

    def _session(self, key: Key, session: Session | None) -> None:
        for agent_key in self.agents_by_session.get(key, {}):
            self._into_pool(agent_key, self.memory.agent(agent_key))
        if session is None:
            self.runners.pop(key, None)
        elif session.runner is not None:
            self.runners[key] = None
        if session is None or session.runner is not None:
            for agent_key in self.agents_by_runner.get(key, {}):
                self.unsettled_agents[agent_key] = None
            self.wake_supervisor()

    def _progress(self, key: Key, progress: Progress) -> None:
        task = self.memory.task(key)
        if task is None or task.lease is None or progress.attempt != task.attempt:
            return
        agent = (key[0], task.lease.agent_id)
        if self.context_usage.get(agent, 0.0) != progress.context_usage:
            self.set_context_usage(agent, progress.context_usage)

    def set_context_usage(self, key: Key, usage: float) -> bool:
        """Note how full an agent's context is; a full one takes nothing new. Whether another replica must know that."""
        was, self.context_usage[key] = self.context_usage.get(key, 0.0), usage
        self._into_pool(key, self.memory.agent(key))
        return self.listens and (was >= self.context_threshold) != (usage >= self.context_threshold)

    # Messages -------------------------------------------------------------------------------------------------------

    def _message(self, key: Key, old: Message | None, new: Message | None) -> None:
        if old is not None and (new is None or new.agent_id != old.agent_id):
            _discard(self.mail_by_agent, (key[0], old.agent_id), key)
            _discard(self.mail_by_task, (key[0], old.task_id), key)
        if new is not None and new.state in (MessageState.QUEUED, MessageState.DELIVERED):
            if new.agent_id:
                self.mail_by_agent[key[0], new.agent_id][key] = None
            if new.task_id:
                self.mail_by_task[key[0], new.task_id][key] = None
        elif new is not None:
            _discard(self.mail_by_agent, (key[0], new.agent_id), key)
            _discard(self.mail_by_task, (key[0], new.task_id), key)

    def open_leases(self, key: Key) -> int:
        """Return how many leases an agent holds."""
        return len(self.leases_by_agent.get(key, ()))


def _differ(one: Lease, other: Lease) -> bool:
    """Whether two leases of a task are not the same: of an epoch there are two where one comes to nothing."""
    return one.epoch != other.epoch or one.agent_id != other.agent_id or one.session_id != other.session_id


def _agent_deadline(agent: Agent) -> float | None:
    times = [t for t in (agent.start_deadline, agent.next_start_time, agent.stop_deadline) if t]
    return min(times, default=None)


def _discard(sets: Sets, key: Key, member: Key) -> None:
    members = sets.get(key)
    if members is not None:
        members.pop(member, None)
        if not members:
            del sets[key]
