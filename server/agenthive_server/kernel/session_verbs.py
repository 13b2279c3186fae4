"""Sessions: the frames of workers, their pulse, and the end of contact. How they begin is in `session_opening.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, cast

from . import items
from .clock import Clock
from .contact import Contact, Contacts
from .decide import Decisions, View
from .errors import SessionFenced
from .events import EventType
from .hooks import Hooks
from .index import Index
from .limits import Limits
from .owed import Owed
from .ports import Chance, NewId
from .records import Key, Kind
from .session_items import (
    Beat,
    Drained,
    HandBack,
    Hello,
    Item,
    Link,
    Reconnect,
    Refusal,
    Result,
    Revoke,
    Welcome,
)
from .session_opening import Guest, SessionOpening, session_event
from .sessions import Session, SessionState
from .tasks import Task

ITEMS_AT_ONCE = 256
"""Items decided in one change set; with at most four rows each they stay within its bound."""


class Outputs(Protocol):
    """Where the output of attempts is kept while they run."""

    @property
    def empty(self) -> bool:
        """Whether no attempt has any."""

    async def save(self, namespace: str, task_id: str, attempt: int) -> str:
        """Keep the tail of an attempt's output as a blob and return its id; empty when there was no output."""

    def progress(self, task: Task, attempt: int, fraction: float, text: str = "") -> object:
        """Tell readers of the OUTPUT class how far an attempt is."""


class SessionVerbs:
    """What the edge calls for the streams of workers.

    Every write of a stream is checked against the session's record.
    """

    def __init__(
        self,
        decisions: Decisions,
        index: Index,
        contacts: Contacts,
        owed: Owed,
        clock: Clock,
        new_id: NewId,
        chance: Chance,
        limits: Limits,
        hooks: Hooks,
        outputs: Outputs | None = None,
        replica: str = "",
    ) -> None:
        self._hooks = hooks
        self._decisions = decisions
        self._memory = decisions.memory
        self._index = index
        self._contacts = contacts
        self._opening = SessionOpening(decisions, index, contacts, owed, clock, new_id, chance, limits, hooks, replica)
        self._clock = clock
        self._new_id = new_id
        self._chance = chance
        self._limits = limits
        self._outputs = outputs

    async def connect(
        self,
        namespace: str,
        principal: str,
        hello: Hello,
        link: Link,
        *,
        peer: str = "",
        notes: Mapping[str, Any] | None = None,
    ) -> Welcome:
        """Open a session or resume one; the older stream of the session, and older sessions of its agents, are fenced.

        When this returns the session is durable and `link` gets deliveries, beginning with what is owed. Raises
        `NotFound`: SESSION_NOT_FOUND, the session to resume is over; AGENT_NOT_FOUND, an agent that does not exist and
        is not to be registered; and what the hooks refuse with. `peer` and `notes` are for them.
        """
        guest = Guest(namespace, principal, hello, peer, notes or {})
        if hello.replaces and not hello.session_id and await self._opening.may_replace(guest):
            await self.end(namespace, hello.replaces, "its worker was started again")
        return await self._opening.open(guest, link)

    def deserted(self, key: Key) -> None:
        """Note that an agent of a session went to another one; without any left its stream is fenced."""
        self._opening.fence(key)

    # Frames ---------------------------------------------------------------------------------------------------------

    async def apply(self, namespace: str, session_id: str, epoch: int, entries: Sequence[Item]) -> list[Refusal]:
        """Apply the items of one or more frames; they are durable or refused when this returns.

        Raises `SessionFenced` when the stream is not the session's current one, `StoreUnavailable` and `Overloaded`
        when nothing
        was applied and the worker has to send the frames again.
        """
        key = (namespace, session_id)
        refusals: list[Refusal] = []
        for start in range(0, len(entries), ITEMS_AT_ONCE):
            batch = entries[start : start + ITEMS_AT_ONCE]
            outputs = await self._save_outputs(namespace, batch)
            refusals += await self._decisions.run(partial(self._frame, key, epoch, batch, start, outputs))
        return refusals

    def _frame(
        self, key: Key, epoch: int, entries: Sequence[Item], start: int, outputs: dict[str, str], view: View
    ) -> list[Refusal]:
        session = view.find_session(key)
        if session is None or session.epoch != epoch:
            raise SessionFenced("this stream is not the session's current one")
        view.check(session)
        frame = items.Frame(view, session, self._clock.now(), self._chance, self._new_id, outputs, self._hooks.current)
        refusals = items.apply_items(frame, entries, start)
        if view.changes.empty:
            view.changes.checks.clear()
        return refusals

    async def _save_outputs(self, namespace: str, batch: Sequence[Item]) -> dict[str, str]:
        saved: dict[str, str] = {}
        if self._outputs is None or self._outputs.empty:
            return saved
        for item in batch:
            if isinstance(item, (Result, HandBack)):
                task = self._memory.task((namespace, item.task_id))
                if task is not None and task.lease is not None and task.lease.epoch == item.epoch:
                    blob_id = await self._outputs.save(namespace, item.task_id, task.attempt)
                    if blob_id:
                        saved[item.task_id] = blob_id
        return saved

    # The pulse ------------------------------------------------------------------------------------------------------

    def heard(self, namespace: str, session_id: str, epoch: int) -> None:
        """Note a sign of life of a stream."""
        contact = self._contact((namespace, session_id), epoch)
        if contact is not None:
            contact.heard = self._clock.monotonic()

    def _contact(self, key: Key, epoch: int) -> Contact | None:
        contact = self._contacts.get(key)
        return contact if contact is not None and contact.epoch == epoch else None

    def beat(self, namespace: str, session_id: str, epoch: int, beats: Sequence[Beat]) -> Awaitable[None] | None:
        """Renew the leases a heartbeat names; those that are over are revoked. Costs no commit unless there is news.

        Returns None, or what has to be awaited until the news (progress, checkpoint, usage) is durable.
        """
        contact = self._contact((namespace, session_id), epoch)
        if contact is None:
            return None
        now = contact.heard = self._clock.monotonic()
        news: list[Beat] = []
        for beat in beats:
            task = self._memory.task((namespace, beat.task_id))
            lease = task.lease if task else None
            if task is None or lease is None or lease.epoch != beat.epoch or lease.session_id != session_id:
                if not (task is not None and task.reported_epoch == beat.epoch):
                    contact.link.deliver(Revoke(beat.task_id, beat.epoch, "the lease is over"))
                continue
            contact.renewed[task.key] = now
            full = False
            if beat.context_usage is not None:
                full = self._index.set_context_usage((namespace, lease.agent_id), beat.context_usage)
            if self._is_news(contact, task, beat, now) or full:
                news.append(beat)
        return self._write_news(namespace, news) if news else None

    def _is_news(self, contact: Contact, task: Task, beat: Beat, now: float) -> bool:
        if beat.fraction is None and beat.text is None and beat.checkpoint is None and beat.usage is None:
            return False
        if beat.fraction is not None or beat.checkpoint is not None:
            contact.progressed[task.key] = now
        if self._outputs is not None and (beat.fraction is not None or beat.text is not None):
            self._outputs.progress(task, task.attempt, beat.fraction or 0.0, beat.text or "")
        # A checkpoint and usage are always written; mere progress at most once a second a task.
        if beat.checkpoint is None and beat.usage is None and now - contact.written.get(task.key, -1.0) < 1.0:
            return False
        contact.written[task.key] = now
        return True

    async def _write_news(self, namespace: str, news: Sequence[Beat]) -> None:
        def decide(view: View) -> None:
            now = self._clock.now()
            for beat in news:
                task = cast("Task | None", view.find((Kind.TASK, (namespace, beat.task_id))))
                if task is None or task.lease is None or task.lease.epoch != beat.epoch:
                    continue
                items.write_progress(
                    view,
                    task,
                    now,
                    fraction=beat.fraction,
                    text=beat.text,
                    checkpoint=beat.checkpoint,
                    usage=beat.usage,
                    context_usage=beat.context_usage,
                )

        await self._decisions.run(decide)

    # The end of contact ---------------------------------------------------------------------------------------------

    async def lost(self, namespace: str, session_id: str, epoch: int, reason: str) -> None:
        """Note that the stream of a session broke: SUSPECT; its leases go on for the grace.

        Later streams are not touched.
        """
        key = (namespace, session_id)
        self._contacts.drop(key, epoch)

        def decide(view: View) -> None:
            session = view.find_session(key)
            if session is None or session.epoch != epoch or session.state is not SessionState.OPEN:
                return
            now = self._clock.now()
            suspect = session.evolve(state=SessionState.SUSPECT, suspect_time=now)
            fact = session_event(
                EventType.SESSION_SUSPECT, suspect, reason=reason, expire_time=now + self._limits.reconnect_grace
            )
            view.put(suspect, fact)

        await self._decisions.run(decide)

    async def leave(self, namespace: str, session_id: str, epoch: int, reason: str) -> None:
        """End a session as its worker asks: what it holds goes back to the queue, not counted."""
        self._contacts.drop((namespace, session_id), epoch)
        await self.end(namespace, session_id, f"{LEFT}{reason}", epoch=epoch)

    async def end(self, namespace: str, session_id: str, reason: str, *, epoch: int = 0) -> None:
        """End a session (with `epoch`, only if no newer stream has taken it over); its leases and agents follow."""
        key = (namespace, session_id)

        def decide(view: View) -> None:
            session = view.find_session(key)
            if session is None or (epoch and session.epoch != epoch):
                return
            view.delete(session)
            view.emit(session_event(EventType.SESSION_ENDED, session, reason=reason))

        await self._decisions.run(decide)

    async def drain(self, namespace: str, session_id: str, epoch: int) -> None:
        """Hand nothing new to a session, as its worker asks."""

        def decide(view: View) -> Session:
            session = view.find_session((namespace, session_id))
            if session is None or session.epoch != epoch:
                raise SessionFenced("this stream is not the session's current one")
            return session if session.draining else view.put(session.evolve(draining=True))

        await self._decisions.run(decide)
        self._contacts.deliver((namespace, session_id), Drained("as asked"))

    def holds(self, namespace: str, session_id: str) -> int:
        """Return how many leases are held through a session."""
        return len(self._index.leases_by_session.get((namespace, session_id), ()))

    def send_away(self, delay: Callable[[], float] = lambda: 0.0) -> None:
        """Tell every session to go on elsewhere; nothing is lost by it."""
        for contact in self._contacts:
            contact.link.deliver(Reconnect(delay()))


LEFT = "left: "
"""Begins the reason of sessions that ended because their worker said so."""
