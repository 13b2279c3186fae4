"""What sessions are told: from committed facts as they come, and from the records when a session opens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from .agent_transitions import STOP_MARGIN
from .agents import Agent, AgentState
from .contact import Contact, Contacts
from .errors import SessionFenced
from .events import Event, EventType
from .index import Index
from .memory import TASK, Memory
from .messages import Message, MessageState
from .records import Key, Kind
from .session_items import Answer, Assign, Cancel, Delivery, Link, Mail, Pause, Revoke, Start, Stop
from .sessions import Session
from .tasks import Progress, Task, TaskState

LEASE_OVER = frozenset(
    {
        EventType.TASK_REQUEUED,
        EventType.TASK_RETRY_SCHEDULED,
        EventType.TASK_FAILED,
        EventType.TASK_CANCELED,
        EventType.TASK_EXPIRED,
        EventType.TASK_QUARANTINED,
    }
)
PULSE_OVER = LEASE_OVER | {
    EventType.TASK_ASSIGNED,
    EventType.TASK_REPORTED,
    EventType.TASK_SUCCEEDED,
    EventType.TASK_INPUT_REQUESTED,
}
"""What was noted of a task's pulse does not count for what comes after these."""

TASK_NEWS = LEASE_OVER | {
    EventType.TASK_ASSIGNED,
    EventType.TASK_CANCEL_REQUESTED,
    EventType.TASK_PAUSED,
    EventType.TASK_RESUMED,
    EventType.TASK_INPUT_RECEIVED,
}
_TASK_EVENTS = PULSE_OVER | TASK_NEWS
AGENT_NEWS = frozenset(
    {EventType.AGENT_PLACED, EventType.AGENT_DRAINING, EventType.AGENT_SLEEPING, EventType.AGENT_WAKING}
)
SESSION_NEWS = frozenset({EventType.SESSION_RESUMED, EventType.SESSION_ENDED})
_NEWS = _TASK_EVENTS | AGENT_NEWS | SESSION_NEWS | {EventType.AGENT_FAILED, EventType.MESSAGE_SENT}
"""Whatever may be told; of most tasks half of what happens is not."""

_ASSIGNED = EventType.TASK_ASSIGNED


class Owed:
    """Turns facts and records into deliveries. Everything it says follows from what is committed."""

    def __init__(self, memory: Memory, index: Index, contacts: Contacts) -> None:
        self._memory = memory
        self._index = index
        self._contacts = contacts

    # From facts -----------------------------------------------------------------------------------------------------

    def observe(self, events: Iterable[Event]) -> None:
        """Tell the sessions on this server what these committed facts mean for them."""
        for event in events:
            kind = event.type
            if kind not in _NEWS:
                continue
            if kind in _TASK_EVENTS:
                if event.session_id:
                    contact = self._contacts.get((event.namespace, event.session_id))
                    if contact is not None:
                        self._task_news(event, contact)
            elif kind in AGENT_NEWS:
                self._agent_news(event)
            elif kind is EventType.AGENT_FAILED and event.session_id:
                # Given up by the control plane while its runner was starting it.
                stop = Stop(event.agent_id, 0.0, sleep=False, reason="not ready in time")
                self._contacts.deliver((event.namespace, event.session_id), stop)
            elif kind in SESSION_NEWS:
                self._session_news(event)
            elif kind is EventType.MESSAGE_SENT and (event.agent_id or event.task_id):
                self._mail_news(event)

    def _task_news(self, event: Event, contact: Contact) -> None:
        key = (event.namespace, event.task_id)
        if contact.renewed and event.type in PULSE_OVER:
            contact.forget(key)
        if event.type not in TASK_NEWS:
            return
        task = cast("Task | None", self._memory.committed((TASK, key)))
        if task is None:
            return
        if event.type in LEASE_OVER:
            if task.reported_epoch != task.lease_epoch and (task.lease is None or task.lease.epoch != task.lease_epoch):
                contact.link.deliver(Revoke(task.id, task.lease_epoch, event.type.name))
            return
        lease = task.lease
        if lease is None or lease.session_id != event.session_id:
            return
        if event.type is _ASSIGNED:
            if event.data["lease_epoch"] == lease.epoch:
                contact.link.deliver(self._assignment(task, repeated=False))
                self._steering(task, contact.link)
        else:
            for delivery in _state_of(task, event.type):
                contact.link.deliver(delivery)

    def _assignment(self, task: Task, *, repeated: bool) -> Assign:
        # A first attempt follows nobody's.
        if task.attempt <= 1 and not repeated:
            return Assign(task, b"", repeated)
        progress = cast("Progress | None", self._memory.committed((Kind.PROGRESS, task.key)))
        return Assign(task, progress.checkpoint if progress else b"", repeated)

    def _steering(self, task: Task, link: Link) -> None:
        for key in self._index.mail_by_task.get(task.key, {}):
            message = cast("Message | None", self._memory.committed((Kind.MESSAGE, key)))
            if message is not None and message.state is MessageState.QUEUED and task.lease is not None:
                link.deliver(Mail(task.lease.agent_id, (message,)))

    def _session_news(self, event: Event) -> None:
        """End a stream whose session went on elsewhere, or is over."""
        contact = self._contacts.get((event.namespace, event.session_id))
        if contact is None:
            return
        if event.type is EventType.SESSION_RESUMED:
            if event.data["session_epoch"] > contact.epoch:
                contact.link.fence(SessionFenced("the session was taken over by a newer stream"))
        elif self._memory.session(contact.key) is None:
            self._contacts.drop(contact.key, contact.epoch)
            contact.link.fence(SessionFenced("the session has ended", reason="SESSION_NOT_FOUND"))

    def _agent_news(self, event: Event) -> None:
        agent = cast("Agent | None", self._memory.committed((Kind.AGENT, (event.namespace, event.agent_id))))
        if agent is None:
            return
        session_id = agent.runner_session_id or agent.session_id
        for delivery in _agent_owes(agent):
            self._contacts.deliver((agent.namespace, session_id), delivery)

    def _mail_news(self, event: Event) -> None:
        key = (event.namespace, event.data["message_id"])
        message = cast("Message | None", self._memory.committed((Kind.MESSAGE, key)))
        if message is None or message.state is not MessageState.QUEUED:
            return
        agent_id, session_id = message.agent_id, ""
        if message.task_id:
            task = cast("Task | None", self._memory.committed((Kind.TASK, (event.namespace, message.task_id))))
            if task is None or task.lease is None:
                return
            agent_id, session_id = task.lease.agent_id, task.lease.session_id
        else:
            agent = cast("Agent | None", self._memory.committed((Kind.AGENT, (event.namespace, agent_id))))
            session_id = agent.session_id if agent else ""
        self._contacts.deliver((event.namespace, session_id), Mail(agent_id, (message,)))

    # From records ---------------------------------------------------------------------------------------------------

    def deliver(self, session: Session, link: Link, named: set[str]) -> None:
        """Tell a session that has just opened what it is owed; `named` are the valid leases its worker knows of."""
        for key in list(self._index.leases_by_session.get(session.key, {})):
            task = cast("Task | None", self._memory.committed((Kind.TASK, key)))
            lease = task.lease if task else None
            if task is None or lease is None or lease.session_id != session.id:
                continue
            if task.id not in named:
                link.deliver(self._assignment(task, repeated=bool(lease.start_time)))
            for delivery in _state_of(task, None):
                link.deliver(delivery)
            self._steering(task, link)
        for key in self._agents(session):
            agent = cast("Agent | None", self._memory.committed((Kind.AGENT, key)))
            if agent is not None:
                for delivery in _agent_owes(agent):
                    link.deliver(delivery)
                self._mail(agent, link)

    def _agents(self, session: Session) -> list[Key]:
        here = self._index.agents_by_session.get(session.key, {})
        return list({**here, **self._index.agents_by_runner.get(session.key, {})})

    def _mail(self, agent: Agent, link: Link) -> None:
        found = [
            message
            for key in self._index.mail_by_agent.get(agent.key, {})
            if (message := cast("Message | None", self._memory.committed((Kind.MESSAGE, key)))) is not None
            and message.state is MessageState.QUEUED
        ]
        if found:
            link.deliver(Mail(agent.id, sorted(found, key=lambda m: (m.create_time, m.id))))


def _state_of(task: Task, told: EventType | None) -> list[Delivery]:
    """Return what the holder of a task has to know beside its assignment; with `told`, only what that fact means."""
    lease = task.lease
    if lease is None:
        return []
    if task.state is TaskState.CANCEL_REQUESTED and told in (None, EventType.TASK_CANCEL_REQUESTED):
        return [Cancel(task.id, lease.epoch, task.reason)]
    if task.state is TaskState.PAUSED and told in (None, EventType.TASK_PAUSED):
        return [Pause(task.id, lease.epoch, resume=False)]
    if told is EventType.TASK_RESUMED:
        return [Pause(task.id, lease.epoch, resume=True)]
    if told is EventType.TASK_INPUT_RECEIVED and task.answers:
        return [Answer(task.id, lease.epoch, task.answers[-1])]
    return []


def _agent_owes(agent: Agent) -> list[Delivery]:
    """Return what the worker or runner of an agent has to do about it now."""
    grace = agent.spec.stop_grace
    match agent.state:
        case AgentState.STARTING if agent.runner_session_id:
            return [Start(agent, wake=False)]
        case AgentState.WAKING:
            return [Start(agent, wake=True)]
        case AgentState.DRAINING:
            return [Stop(agent.id, _left(agent), sleep=False, reason=agent.reason)]
        case AgentState.SLEEPING if agent.stop_deadline:
            return [Stop(agent.id, grace, sleep=True, reason=agent.reason)]
        case _:
            return []


def _left(agent: Agent) -> float:
    span = agent.stop_deadline - STOP_MARGIN - agent.update_time
    return max(0.0, span)
