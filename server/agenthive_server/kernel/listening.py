"""The pulse: leases nobody renews, attempts without progress, sessions nobody hears of.

Each replica listens to the sessions it has a stream of; the one with the role also to those that have none anywhere.
What is looked at are all leases and sessions there are: seldom when that takes long, and never all of them at once.
"""

from __future__ import annotations

import asyncio

from . import attempts
from .clock import Clock
from .contact import Contact, Contacts
from .decide import Decisions, View
from .errors import DeadlineExceeded
from .followups import progressed
from .index import Index
from .limits import Limits
from .ports import Chance
from .records import Key
from .replicas import Replicas
from .session_verbs import SessionVerbs
from .sessions import Session, SessionState
from .tasks import ErrorClass, Task, TaskError, TaskState

EVERY = 1.0
LATEST = 5.0
"""Seconds between two looks: so many times longer than a look took as `SHARE` says, within these."""

SHARE = 20

AT_ONCE = 500
"""Leases or sessions looked at before others have their turn."""


class Listening:
    """Looks at pulses and ends what has none."""

    def __init__(
        self,
        decisions: Decisions,
        index: Index,
        contacts: Contacts,
        sessions: SessionVerbs,
        clock: Clock,
        chance: Chance,
        limits: Limits,
        replicas: Replicas,
    ) -> None:
        self._decisions = decisions
        self._memory = decisions.memory
        self._index = index
        self._contacts = contacts
        self._sessions = sessions
        self._clock = clock
        self._chance = chance
        self._limits = limits
        self._replicas = replicas
        self._led = False
        self._next = clock.monotonic() + EVERY
        # By session and its epoch: one that came back in between has the whole grace again.
        self._suspect_since: dict[tuple[Key, int], float] = {}

    def forgive(self, present: float) -> None:
        """Count no silence before a time: the control plane itself was away."""
        for name in self._suspect_since:
            self._suspect_since[name] = present

    async def look(self, present: float, *, led: bool) -> None:
        """Look if it is time. `present`: since when the control plane has been there; `led`: whether it has the role.

        Raises `StoreUnavailable`.
        """
        began = self._clock.monotonic()
        if began < self._next:
            return
        self._led = led
        self._next = began + EVERY
        await self._silent_leases()
        await self._silent_sessions(present)
        took = self._clock.monotonic() - began
        self._next = began + max(EVERY, min(SHARE * took, LATEST))

    async def _silent_leases(self) -> None:
        now, looked = self._clock.monotonic(), 0
        for contact in self._contacts:
            for key in list(self._index.leases_by_session.get(contact.key, ())):
                looked += 1
                if looked % AT_ONCE == 0:
                    await asyncio.sleep(0)
                task = self._memory.task(key)
                if task is None or task.lease is None:
                    continue
                agent = self._memory.agent((task.namespace, task.lease.agent_id))
                if agent is not None and agent.session_id not in ("", contact.key[1]):
                    await self._end_lease(contact, task, None)
                elif task.lease.start_time:
                    over, error = self._pulse(contact, task, now)
                    if over:
                        await self._end_lease(contact, task, error)

    @staticmethod
    def _pulse(contact: Contact, task: Task, now: float) -> tuple[bool, TaskError | None]:
        """Return whether a lease is over, and with which error if it is not for want of a heartbeat."""
        timeouts = task.spec.timeouts
        if now - contact.renewed.setdefault(task.key, now) > timeouts.heartbeat:
            return True, None
        if task.state is not TaskState.RUNNING:
            # Paused, or waiting for an answer: the wait for progress begins anew when it goes on.
            contact.progressed.pop(task.key, None)
        elif timeouts.progress and now - contact.progressed.setdefault(task.key, now) > timeouts.progress:
            text = "no progress although the pulse goes on"
            return True, TaskError(error_class=ErrorClass.TIMEOUT, reason="PROGRESS", message=text)
        return False, None

    async def _end_lease(self, contact: Contact, task: Task, error: TaskError | None) -> None:
        epoch = task.lease_epoch

        def decide(view: View) -> None:
            held, session = view.task(*task.key), view.find_session(contact.key)
            if held.lease is None or held.lease.epoch != epoch:
                return
            if session is None or session.epoch != contact.epoch:
                # Its pulse is heard elsewhere.
                return
            view.check(session)
            now, chance = self._clock.now(), self._chance()
            if error is not None:
                step = attempts.fail_attempt(held, error, now=now, chance=chance)
            else:
                step = attempts.lose(
                    held, "HEARTBEAT_TIMEOUT", now=now, chance=chance, progressed=progressed(view, held)
                )
            view.put(step[0], *step[1])

        await self._decisions.run(decide)

    async def _silent_sessions(self, present: float) -> None:
        now = self._clock.monotonic()
        for contact in self._contacts:
            if now - contact.heard > self._limits.silence:
                # A stream that is still there would have its heartbeats acknowledged, for a session that is over.
                contact.link.fence(DeadlineExceeded("the session was silent for too long; connect again"))
                await self._sessions.lost(*contact.key, contact.epoch, "no sign of life")
        silent: set[tuple[Key, int]] = set()
        for number, session in enumerate(self._memory.all(Session), 1):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
            if not self._is_alone(session):
                continue
            name = (session.key, session.epoch)
            silent.add(name)
            since = self._suspect_since.setdefault(name, max(now, present))
            if session.state is SessionState.OPEN and now - since >= EVERY:
                await self._sessions.lost(*session.key, session.epoch, "the server was restarted")
            if now - since > self._limits.reconnect_grace:
                await self._sessions.end(*session.key, "contact was lost", epoch=session.epoch)
        for name in self._suspect_since.keys() - silent:
            del self._suspect_since[name]

    def _is_alone(self, session: Session) -> bool:
        """Whether a session has no stream anywhere, and it is for this replica to say so."""
        if session.state is not SessionState.OPEN:
            return self._led
        if self._contacts.live(session.key):
            return False
        return session.replica == self._replicas.me or (self._led and not self._replicas.there(session.replica))
