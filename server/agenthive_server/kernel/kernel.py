"""The kernel: agents, tasks, sessions and messages, and the verbs on them.

Every verb goes one way: read from memory (`memory.py`), decide in pure code (`transitions.py`, `agent_transitions.py`),
commit by compare-and-set (`decide.py`), and let everyone else learn of it from the events.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from .agent_verbs import AgentVerbs
from .changes import ChangeSet, Committed, Outcome
from .clock import Clock
from .contact import Contacts
from .decide import Decisions, Submit
from .dispatcher import Dispatcher
from .errors import KernelError, OutcomeUnknown
from .events import Event
from .following import Following
from .followups import Followups
from .health import Reading, Status
from .hooks import Hooks
from .index import Index
from .limits import Limits
from .memory import Memory
from .message_verbs import MessageVerbs
from .owed import Owed
from .pool import Pool
from .ports import Chance, Feed, Log, NewId, Notifier, Store
from .reaper import Reaper
from .records import CursorRecord, Kind, Record
from .replicas import DISPATCHER, Alone, Replicas
from .restored import EPOCHS
from .session_verbs import Outputs, SessionVerbs
from .sessions import SessionState
from .state import StateVerbs
from .supervisor import Supervisor
from .task_queries import TaskQueries
from .task_verbs import TaskVerbs
from .tasks import Task

_log = logging.getLogger(__name__)


class Kernel:
    """Agents, tasks, leases, sessions and messages behind verbs. One event loop owns it."""

    def __init__(
        self,
        store: Store,
        submit: Submit,
        log: Log,
        notifier: Notifier,
        *,
        clock: Clock,
        new_id: NewId,
        chance: Chance,
        limits: Limits | None = None,
        outputs: Outputs | None = None,
        replicas: Replicas | None = None,
        feed: Feed | None = None,
    ) -> None:
        """`replicas` and `feed` where others commit to the store as well."""
        self.limits = limits = limits or Limits()
        self.memory = Memory()
        self.pool = Pool()
        self.index = Index(self.memory, self.pool, clock, limits.accept_timeout)
        self.index.context_threshold = limits.context_threshold
        self.contacts = Contacts(clock)
        self._store = store
        self._owed = Owed(self.memory, self.index, self.contacts)
        self.feed = feed
        self.replicas = replicas = replicas or Alone()
        self.leading = leading = replicas.role(DISPATCHER)
        self.following = (
            Following(self.memory, store, feed, self._announce, clock, concerns=self._held_here)
            if feed is not None
            else None
        )
        fresh = self.following.fresh if self.following is not None else None
        decisions = self.decisions = Decisions(self.memory, store, submit, fresh)
        # For the loops, which look again whatever they decided on a memory that was late.
        loops = Decisions(self.memory, store, submit) if fresh is not None else decisions
        self.hooks = hooks = Hooks(self.pool)
        self.tasks = TaskVerbs(
            decisions, self.index, clock, new_id, hooks, dispatching=leading, maximum_queued=limits.maximum_queued
        )
        self.queries = TaskQueries(decisions, store, self.index, clock)
        self.agents = AgentVerbs(decisions, store, self.index, clock, new_id, hooks)
        self.messages = MessageVerbs(decisions, self.index, clock, new_id)
        self.state = StateVerbs(decisions, store)
        self.sessions = SessionVerbs(
            decisions, self.index, self.contacts, self._owed, clock, new_id, chance, limits, hooks, outputs, replicas.me
        )
        if feed is not None:
            self.index.deserted = self.sessions.deserted
            self.index.listens = True
        self.dispatcher = Dispatcher(loops, self.index, clock, leading)
        self.followups = Followups(loops, self.index, store, log, notifier, clock, chance, leading, self._known)
        self.reaper = Reaper(
            loops,
            self.index,
            self.contacts,
            self.sessions,
            self.followups,
            store,
            log,
            clock,
            chance,
            limits,
            replicas,
            leading,
        )
        self.supervisor = Supervisor(loops, self.index, clock, leading)
        self.draining = False
        # Called with the committed events of each group, after the kernel's own memory has followed.
        self.observers: list[Callable[[Sequence[Event]], None]] = []

    async def open(self) -> None:
        """Fill the memory from the store. Call once, before anything else."""
        if self.following is not None:
            await self.following.fill()
        else:
            await self._load()
        floor = self.memory.latest((Kind.CURSOR, EPOCHS))
        self.memory.epoch_floor = floor.sequence if isinstance(floor, CursorRecord) else 0
        self.followups.begin()

    async def _load(self) -> None:
        for kind in (Kind.SESSION, Kind.AGENT, Kind.MESSAGE, Kind.BROADCAST, Kind.CURSOR):
            self.memory.load(await self._store.scan(kind, open_only=True))
        tasks = await self._store.scan(Kind.TASK, open_only=True)
        self.memory.load(tasks)
        keys = [task.key for task in tasks]
        for start in range(0, len(keys), 500):
            found = await self._store.get(Kind.PROGRESS, keys[start : start + 500])
            self.memory.load(record for record in found if record is not None)

    def _known(self) -> float:
        """Return up to where in the log the memory knows what was committed."""
        return self.following.head if self.following is not None else math.inf

    def loops(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """Return the background loops by name; each runs until it is cancelled."""
        loops: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "dispatcher": self.dispatcher.run,
            "followups": self.followups.run,
            "reaper": self.reaper.run,
            "supervisor": self.supervisor.run,
        }
        if self.following is not None:
            loops |= {"following": self.following.run, "following_look": self.following.look}
        return loops

    # What follows a commit; called by the committer, never by a caller's task -----------------------------------------

    def settled(self, group: Sequence[tuple[ChangeSet, Outcome]]) -> None:
        """Let memory, waiters and sessions follow a group whose outcome is known."""
        events: list[Event] = []
        written: list[ChangeSet] = []
        known = self.following is not None and self.following.overtaken
        for changes, outcome in group:
            if isinstance(outcome, Committed):
                self.memory.settle(changes, known=known)
                written.append(changes)
                events.extend(changes.events)
            else:
                self.memory.revert(changes)
        if self.following is not None:
            self.following.settled(written, events)
        elif events:
            self._announce(events)

    def _announce(self, events: Sequence[Event]) -> None:
        """Tell everyone here what was committed, in the order of the log; the memory knows it already."""
        for observer in self.observers:
            observer(events)
        self.queries.observe(events)
        self.messages.observe(events)
        self._owed.observe(events)

    def failed(self, group: Sequence[ChangeSet], error: KernelError) -> None:
        """Let the memory fall back after a group that was not written."""
        if isinstance(error, OutcomeUnknown):
            _log.critical("a commit's outcome stays unknown", extra={"change_sets": len(group)})
        for changes in group:
            self.memory.revert(changes)

    def _held_here(self, record: Record) -> bool:
        """Whether a task is held by an agent whose session has its stream here, which is told when that is over."""
        lease = record.lease if isinstance(record, Task) else None
        return lease is not None and self.contacts.get((record.namespace, lease.session_id)) is not None

    # Drain and health -----------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Let waiting calls answer as things stand; sessions are sent away by `sessions.send_away`."""
        self.draining = True
        self.queries.drain()
        self.messages.drain()

    def probe(self) -> list[tuple[str, Reading]]:
        """Return readings of the dispatcher, the follow-ups and each runner."""
        elsewhere = "" if self.leading.held else "another replica does this"
        readings: list[tuple[str, Reading]] = []
        for name, failing in (("dispatcher", self.dispatcher.failing), ("followups", self.followups.failing)):
            readings.append((name, Reading(Status.DEGRADED if failing else Status.OK, failing or elsewhere)))
        if self.following is not None:
            failing = self.following.failing
            readings.append(("following", Reading(Status.DEGRADED if failing else Status.OK, failing)))
        for session in self.supervisor.runners():
            live = session.state is SessionState.OPEN
            drivers = ", ".join(session.runner.drivers) if session.runner else ""
            status = Status.OK if live else Status.DEGRADED
            readings.append((f"runner/{session.id}", Reading(status, drivers if live else "not in contact")))
        return readings
