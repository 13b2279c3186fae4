"""What must hold at every moment of a simulation, worked out from the store and from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agenthive_server.kernel.assign import exclusions, requirement_of
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.index import Index
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.memory import Memory, is_open
from agenthive_server.kernel.pool import Pool
from agenthive_server.kernel.records import Key, Kind, Record, Ref
from agenthive_server.kernel.tasks import Task, TaskState
from agenthive_server.storage.memory import MemoryStore

S, E = TaskState, EventType

HELD = frozenset({S.ASSIGNED, S.RUNNING, S.INPUT_REQUIRED, S.PAUSED, S.CANCEL_REQUESTED})
"""States in which an attempt may be under way."""

OPEN = frozenset(S) - {S.SUCCEEDED, S.FAILED, S.CANCELED, S.EXPIRED, S.QUARANTINED}

PATHS: dict[EventType, tuple[frozenset[TaskState], TaskState | None]] = {
    E.TASK_RELEASED: (frozenset({S.BLOCKED}), S.QUEUED),
    E.TASK_ASSIGNED: (frozenset({S.QUEUED}), S.ASSIGNED),
    E.TASK_STARTED: (frozenset({S.ASSIGNED, S.PAUSED, S.CANCEL_REQUESTED}), None),
    E.TASK_REQUEUED: (frozenset({S.ASSIGNED, S.RUNNING, S.INPUT_REQUIRED, S.PAUSED, S.RETRY_WAIT}), None),
    E.TASK_RETRY_SCHEDULED: (frozenset({S.ASSIGNED, S.RUNNING, S.INPUT_REQUIRED, S.PAUSED}), None),
    E.TASK_REPORTED: (HELD - {S.ASSIGNED}, S.REPORTED),
    E.TASK_SUCCEEDED: (HELD - {S.ASSIGNED} | {S.REPORTED}, S.SUCCEEDED),
    E.TASK_FAILED: (OPEN - {S.RETRY_WAIT, S.CANCEL_REQUESTED}, S.FAILED),
    E.TASK_CANCEL_REQUESTED: (OPEN, S.CANCEL_REQUESTED),
    E.TASK_CANCELED: (OPEN, S.CANCELED),
    E.TASK_EXPIRED: (OPEN - {S.REPORTED}, S.EXPIRED),
    E.TASK_QUARANTINED: (HELD, S.QUARANTINED),
    E.TASK_PAUSED: (frozenset({S.BLOCKED, S.QUEUED, S.RETRY_WAIT, S.ASSIGNED, S.RUNNING}), S.PAUSED),
    E.TASK_RESUMED: (frozenset({S.PAUSED}), None),
    E.TASK_INPUT_REQUESTED: (frozenset({S.RUNNING}), S.INPUT_REQUIRED),
    E.TASK_INPUT_RECEIVED: (frozenset({S.INPUT_REQUIRED}), None),
    E.TASK_SENT_BACK: (frozenset({S.REPORTED}), S.QUEUED),
    E.TASK_RETRIED: (frozenset(S) - OPEN | {S.RETRY_WAIT}, S.QUEUED),
}
"""For each fact about a task: the states it may be told in, and the state it leads to (None: it depends)."""


class History:
    """One task as the log tells of it."""

    def __init__(self, told: Event) -> None:
        self.state = TaskState(told.data["state"])
        self.attempt = 0
        self.results: set[int] = set()
        self._open_result = False

    def follow(self, told: Event) -> None:
        """Take the next fact; raises `AssertionError` when it cannot come now."""
        kind = told.type
        allowed, leads_to = PATHS[kind]
        assert self.state in allowed, f"{kind.name} in {self.state}"
        if kind is E.TASK_ASSIGNED:
            assert told.data["lease_epoch"] == told.data["attempt"] == self.attempt + 1, "the epoch grows by one"
            self.attempt += 1
        elif kind is E.TASK_REPORTED or (kind is E.TASK_SUCCEEDED and self.state is not S.REPORTED):
            assert not self._open_result, "two results were accepted"
            assert told.data["attempt"] == self.attempt, "a result of another attempt was accepted"
            self._open_result = True
            self.results.add(self.attempt)
        elif kind in (E.TASK_RETRIED, E.TASK_SENT_BACK):
            self._open_result = False
        self.state = leads_to or self._leads_to(told)

    def _leads_to(self, told: Event) -> TaskState:
        match told.type:
            case E.TASK_STARTED:
                return S.RUNNING if self.state is S.ASSIGNED else self.state
            case E.TASK_REQUEUED:
                return self.state if self.state is S.PAUSED else S.QUEUED
            case E.TASK_RETRY_SCHEDULED:
                return self.state if self.state is S.PAUSED else S.RETRY_WAIT
            case E.TASK_RESUMED:
                return TaskState(told.data["state"])
            case _:
                # The answer to a question: whoever holds the task goes on.
                return S.RUNNING if told.session_id else S.QUEUED


class Log:
    """Follows the event log and checks what it tells."""

    def __init__(self) -> None:
        self.head = 0
        self.tasks: dict[Key, History] = {}

    def follow(self, events: Iterable[Event]) -> None:
        """Take the next events."""
        for event in events:
            self.head += 1
            assert event.sequence == self.head, "the log has a hole"
            assert event.last >= event.sequence
            if not event.task_id or (event.type not in PATHS and event.type is not E.TASK_DELEGATED):
                continue
            key = (event.namespace, event.task_id)
            if event.type is E.TASK_DELEGATED:
                assert key not in self.tasks, "delegated twice"
                self.tasks[key] = History(event)
            else:
                try:
                    self.tasks[key].follow(event)
                except AssertionError as error:
                    raise AssertionError(f"{key[1]}: {error}") from None


class Checks:
    """The invariants. Each raises `AssertionError`."""

    def __init__(self, store: MemoryStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.log = Log()
        self._epochs: dict[Key, int] = {}
        self.rounds = 0

    async def stored(self) -> None:
        """Check the log against the records in the store."""
        self.log.follow(await self._store.read_events(self.log.head, 1_000_000))
        tasks = [record for record in await self._store.scan(Kind.TASK) if isinstance(record, Task)]
        assert {task.key for task in tasks} == set(self.log.tasks)
        for task in tasks:
            told = self.log.tasks[task.key]
            assert task.state is told.state, f"{task.id} is {task.state}, but its events lead to {told.state}"
            assert task.lease_epoch == task.attempt == told.attempt
            assert task.lease_epoch >= self._epochs.get(task.key, 0), "an epoch went back"
            assert task.lease is None or task.state in HELD
            assert task.lease is None or task.lease.epoch == task.lease_epoch
            assert task.lease is not None or task.state not in (S.ASSIGNED, S.RUNNING)
            self._epochs[task.key] = task.lease_epoch

    async def memory(self, kernel: Kernel) -> None:
        """Check that memory holds what is committed. Not between a commit and what follows it."""
        self.rounds += 1
        memory = kernel.memory
        for kind in (Kind.TASK, Kind.AGENT, Kind.SESSION, Kind.MESSAGE, Kind.BROADCAST):
            stored = {record.key: record for record in await self._store.scan(kind)}
            for key, record in stored.items():
                known = memory.committed((kind, key))
                assert known == record or (known is None and not is_open(record)), _differ((kind, key), known, record)
            for ref in memory.refs(kind, "default"):
                known = memory.committed(ref)
                assert known is None or stored.get(ref[1]) == known, _differ(ref, known, stored.get(ref[1]))
                if memory.flight(ref) is None:
                    assert known is not None
                    assert is_open(known), f"{ref} is over and yet kept among the open ones"

    async def progress(self, kernel: Kernel) -> None:
        """Check that memory has how far open tasks are, and the progress of no others."""
        stored = {record.key: record for record in await self._store.scan(Kind.PROGRESS)}
        for task in kernel.memory.all(Task):
            ref = (Kind.PROGRESS, task.key)
            if kernel.memory.flight((Kind.TASK, task.key)) is None and kernel.memory.flight(ref) is None:
                known = kernel.memory.committed(ref)
                assert known == stored.get(task.key), _differ(ref, known, stored.get(task.key))

    def index(self, kernel: Kernel) -> None:
        """Check that the index and the pool are what follows from the latest records."""
        fresh = _derived(kernel, self._clock)
        index, pool = kernel.index, kernel.pool
        for name in (
            "leases_by_agent",
            "leases_by_session",
            "agents_by_session",
            "agents_by_runner",
            "children",
            "dependents",
            "mail_by_agent",
            "mail_by_task",
        ):
            is_now = {key: set(members) for key, members in getattr(index, name).items() if members}
            should = {key: set(members) for key, members in getattr(fresh, name).items() if members}
            assert is_now == should, f"{name}: {is_now} is not {should}"
        assert set(index.runners) == set(fresh.runners)
        assert set(pool.agents) == set(fresh.pool.agents)
        for key, agent in pool.agents.items():
            wanted = fresh.pool.agents[key]
            assert agent.used == wanted.used == index.open_leases(key), f"{key}: {agent.used} is not {wanted.used}"
            assert (agent.session_id, agent.obstacle) == (wanted.session_id, wanted.obstacle), key
        assert set(pool._waiting) == set(fresh.pool._waiting)
        assert set(index.task_timers._times) == set(fresh.task_timers._times)
        self.queues(kernel)

    def queues(self, kernel: Kernel) -> None:
        """Check that no queue is closed while an agent is free that fits."""
        pool = kernel.pool
        for need, queue in pool.queues.items():
            if pool.closed(queue):
                free = [agent.key for agent in pool.agents_of(need.namespace) if not exclusions(need, agent)]
                assert not free, f"{need} is closed although {free} are free"

    def starved(self, kernel: Kernel, tasks: Sequence[Task]) -> set[str]:
        """Return the tasks that wait at this moment although an agent is free that fits."""
        found: set[str] = set()
        for task in tasks:
            need = requirement_of(task, self._clock.now())
            if task.state is S.QUEUED and any(
                not exclusions(need, agent) for agent in kernel.pool.agents_of(task.namespace)
            ):
                found.add(task.id)
        return found

    def quiet(self, kernel: Kernel, tasks: Sequence[Task]) -> None:
        """Check that every task is over, or waits for a reason, when all is well again and time has passed."""
        waiting = {task.id: task for task in tasks if not task.terminal}
        for task in waiting.values():
            if task.state is S.QUEUED:
                need = requirement_of(task, self._clock.now())
                free = [a.key for a in kernel.pool.agents_of(task.namespace) if not exclusions(need, a)]
                assert not free, f"{task.id} is starved although {free} are free"
            elif task.state is S.BLOCKED:
                assert set(task.waiting_on) & waiting.keys(), f"{task.id} waits for what is over: {task.waiting_on}"
            else:
                assert task.state is S.CANCEL_REQUESTED, f"{task.id} hangs in {task.state}: {task}"
                children = [other.id for other in waiting.values() if other.spec.parent_task_id == task.id]
                assert children, f"{task.id} hangs in {task.state}: {task}"


def _differ(ref: Ref, known: Record | None, stored: Record | None) -> str:
    return f"memory and store differ in {ref}:\n  memory {known}\n  store  {stored}"


def _derived(kernel: Kernel, clock: Clock) -> Index:
    memory = Memory()
    fresh = Index(memory, Pool(), clock, kernel.limits.accept_timeout)
    fresh.context_usage = dict(kernel.index.context_usage)
    for kind in (Kind.SESSION, Kind.AGENT, Kind.MESSAGE, Kind.TASK):
        refs = kernel.memory.refs(kind, "default")
        found = [kernel.memory.latest(ref) for ref in refs]
        memory.load(record for record in found if record is not None and is_open(record))
    return fresh
