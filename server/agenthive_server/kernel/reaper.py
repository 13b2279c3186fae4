"""The clocks: overdue tasks, leases whose pulse stopped, silent sessions, retention.

Of several replicas each listens to the sessions it has a stream of. The one with the role looks after everything else:
the deadlines of all records, sessions nobody has a stream of, and what is past its retention.

Time in which the control plane itself was away (its start, an outage of the store, a suspended machine) does not count:
afterwards every session and lease has the whole grace again, as in Nomad and etcd.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import cast

from . import attempts, transitions
from .clock import Clock
from .contact import Contacts
from .decide import Decisions, View
from .errors import KernelError
from .followups import Followups
from .index import Index
from .limits import Limits
from .listening import Listening
from .message_verbs import advance
from .messages import Message, MessageState
from .ports import Chance, Log, Release, Store
from .records import Key, Kind
from .replicas import Replicas, Role
from .session_verbs import SessionVerbs
from .tasks import ErrorClass, Task, TaskError

TICK = 0.25
"""Seconds between two looks at the clocks."""

AWAY = 5.0
"""A gap between two looks beyond this many seconds counts as absence of the control plane."""

BATCH = 200
SWEEP_EVERY = 30.0

_log = logging.getLogger(__name__)


class Reaper:
    """Looks at the clocks and ends what is over."""

    def __init__(
        self,
        decisions: Decisions,
        index: Index,
        contacts: Contacts,
        sessions: SessionVerbs,
        followups: Followups,
        store: Store,
        log: Log,
        clock: Clock,
        chance: Chance,
        limits: Limits,
        replicas: Replicas,
        role: Role,
    ) -> None:
        self._replicas = replicas
        self._role = role
        self._led = role.held
        self._decisions = decisions
        self._memory = decisions.memory
        self._index = index
        self._contacts = contacts
        self._sessions = sessions
        self._followups = followups
        self._store = store
        self._log = log
        self._clock = clock
        self._chance = chance
        self._limits = limits
        # Since when the control plane has been there without a break, on both clocks.
        self._present = clock.monotonic()
        self._present_wall = clock.now()
        self._looked = clock.monotonic()
        self._swept = clock.monotonic()
        self._listening = Listening(decisions, index, contacts, sessions, clock, chance, limits, replicas)
        self.release: Release = lambda until, _: until

    async def run(self) -> None:
        """Look at the clocks until cancelled; what fails is tried again at the next look."""
        while True:
            try:
                await self.look()
            except KernelError as error:
                _log.warning("reaping is delayed", extra={"reason": error.reason})
                self.returned()
            await self._clock.sleep(TICK)

    def returned(self) -> None:
        """Note that the control plane was away until now."""
        self._present = self._clock.monotonic()
        self._present_wall = self._clock.now()
        self._contacts.forgive()
        self._listening.forgive(self._present)

    async def look(self) -> None:
        """Look at every clock once."""
        now = self._clock.monotonic()
        if now - self._looked > AWAY or self._store.writable:
            self.returned()
        self._looked = now
        if not self._led and self._role.held:
            # What another replica has counted is not known here: everyone has the whole grace again.
            self.returned()
        self._led = self._role.held
        await self._overdue_tasks()
        await self._listening.look(self._present, led=self._led)
        if now - self._swept >= SWEEP_EVERY:
            self._swept = now
            if self._led:
                await self.sweep()

    # Tasks ----------------------------------------------------------------------------------------------------------

    async def _overdue_tasks(self) -> None:
        due = self._index.task_timers.due(self._clock.now())
        for start in range(0, len(due), BATCH):
            batch = due[start : start + BATCH]
            tired = await self._decisions.run(partial(self._overdue, batch))
            for key in tired:
                await self._sessions.end(*key, "assignments were not answered")

    def _overdue(self, batch: Sequence[Key], view: View) -> list[Key]:
        tired: list[Key] = []
        for key in batch:
            task = cast("Task | None", view.find((Kind.TASK, key)))
            due = transitions.next_deadline(task, self._limits.accept_timeout) if task else None
            now = self._clock.now()
            if task is None or due is None:
                continue
            if due[0] > now:
                self._index.refresh_task(task)
                continue
            if not self._is_mine(task, due[1]):
                continue
            step = self._expired(view, task, due[1], now, tired)
            if step is not None:
                view.put(step[0], *step[1])
        return tired

    def _is_mine(self, task: Task, clock: str) -> bool:
        """Whether this replica ends the wait: one for the answer of a worker is known where its stream is."""
        if clock == "ACCEPT" and task.lease is not None:
            return self._contacts.get((task.namespace, task.lease.session_id)) is not None
        return self._led

    def _expired(self, view: View, task: Task, clock: str, now: float, tired: list[Key]) -> attempts.Step | None:
        match clock:
            case "SCHEDULE_TO_CLOSE" | "SCHEDULE_TO_START":
                return transitions.expire(task, clock, now=now)
            case "RETRY":
                return transitions.due(task, now=now)
            case "INPUT":
                return self._unanswered_question(task, now)
            case "ACCEPT":
                return self._not_accepted(view, task, now, tired)
            case _:
                error = TaskError(
                    error_class=ErrorClass.TIMEOUT, reason=clock, message=f"the {clock} clock of the attempt ran out"
                )
                return attempts.fail_attempt(task, error, now=now, chance=self._chance())

    def _unanswered_question(self, task: Task, now: float) -> attempts.Step:
        if task.question is not None and task.question.default is not None:
            return transitions.respond(task, task.question.default, now=now, defaulted=True)
        error = TaskError(error_class=ErrorClass.TIMEOUT, reason="INPUT", message="nobody answered in time")
        if task.lease is None:
            return transitions.fail_without_lease(task, error, now=now)
        return attempts.fail_attempt(task, error, now=now, chance=self._chance())

    def _not_accepted(self, view: View, task: Task, now: float, tired: list[Key]) -> attempts.Step | None:
        lease = task.lease
        contact = self._contacts.get((task.namespace, lease.session_id)) if lease else None
        if lease is None or contact is None:
            return None
        if self._clock.monotonic() < contact.opened + self._limits.accept_timeout:
            # It was told again when its stream opened.
            return None
        if now < self._present_wall + self._limits.accept_timeout:
            return None
        agent = view.find_agent((task.namespace, lease.agent_id))
        if agent is not None:
            unanswered = agent.unanswered + 1
            view.put(agent.evolve(unanswered=unanswered))
            if unanswered >= self._limits.unanswered_limit:
                tired.append((task.namespace, lease.session_id))
        return attempts.give_back(task, "NO_ACCEPT", now=now, avoid_until=now + self._limits.accept_timeout)

    # Retention ------------------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Remove what is past its retention, in bounded steps."""
        now = self._clock.now()
        await self._remove(Kind.REQUEST, now - self._limits.retention_requests)
        await self._remove(Kind.TASK, now - self._limits.retention_tasks)
        await self._expire_messages(now)
        await self._store.expire_blobs(now - self._limits.retention_blobs)
        retention = self._limits.retention_events
        horizon = await self._store.sequence_at(now - retention)
        until, overdue = min(horizon, self._followups.position), await self._store.sequence_at(now - 2 * retention)
        await self._log.compact(self.release(until, min(until, overdue)) + 1)

    async def _remove(self, kind: Kind, before: float) -> None:
        while found := await self._store.expired(kind, before, BATCH):

            def decide(view: View, found: list[Key] = [record.key for record in found]) -> int:  # noqa: B006 - bound once, read only
                gone = 0
                view.need((k, key) for k in (kind, Kind.PROGRESS) for key in found if k is kind or kind is Kind.TASK)
                for key in found:
                    record = view.find((kind, key))
                    if record is None or (isinstance(record, Task) and not record.terminal):
                        continue
                    view.delete(record)
                    gone += 1
                    progress = view.find((Kind.PROGRESS, key)) if kind is Kind.TASK else None
                    if progress is not None:
                        view.delete(progress)
                return gone

            if not await self._decisions.run(decide):
                return

    async def _expire_messages(self, now: float) -> None:
        for record in await self._store.expired(Kind.MESSAGE, now, BATCH):

            def decide(view: View, key: Key = record.key) -> None:
                message = view.find_message(key)
                if not isinstance(message, Message):
                    return
                if message.state is MessageState.QUEUED:
                    advance(view, message, MessageState.EXPIRED)
                else:
                    view.delete(message)

            await self._decisions.run(decide)
