"""Messages: sending to an agent, a task, a role or all; receipts; waiting for arrivals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from .clock import Clock
from .decide import Caller, Decisions, View, recall, remember
from .errors import BadRequest, NotFound, Overloaded, Refused
from .events import Event, EventType
from .index import Index
from .messages import Broadcast, Message, MessageState, Urgency
from .ports import NewId
from .records import Key, Kind, Payload, RequestRecord
from .session_items import Outgoing
from .sessions import Session

MAX_UNREAD = 1_000
"""Messages an agent may have waiting."""

DEFAULT_TTL = 86_400.0
"""Seconds after which a message that was not delivered is dropped."""

FACTS = {
    MessageState.DELIVERED: EventType.MESSAGE_DELIVERED,
    MessageState.READ: EventType.MESSAGE_READ,
    MessageState.EXPIRED: EventType.MESSAGE_EXPIRED,
}


def message_event(kind: EventType, message: Message, **data: object) -> Event:
    """Return a fact about a message."""
    return Event(
        type=kind,
        namespace=message.namespace,
        agent_id=message.agent_id,
        task_id=message.task_id,
        data={"message_id": message.id, **data},
    )


def advance(view: View, message: Message, state: MessageState) -> None:
    """Move a message on to DELIVERED, READ or EXPIRED; going back is ignored."""
    order = [MessageState.QUEUED, MessageState.DELIVERED, MessageState.READ]
    if message.state in (MessageState.READ, MessageState.EXPIRED) or message.state is state:
        return
    if state in order and order.index(state) < order.index(message.state):
        return
    view.put(message.evolve(state=state), message_event(FACTS[state], message))


def put_message(view: View, message: Message) -> Message:
    """Write a new message with its fact."""
    return view.put(message, message_event(EventType.MESSAGE_SENT, message, urgency=message.urgency.value))


def put_broadcast(view: View, broadcast: Broadcast) -> None:
    """Write a broadcast, to be fanned out after the commit."""
    fact = Event(
        type=EventType.MESSAGE_SENT,
        namespace=broadcast.namespace,
        role=broadcast.role,
        data={"message_id": broadcast.id, "urgency": broadcast.urgency.value},
    )
    view.put(broadcast, fact)


def send_from_agent(view: View, session: Session, item: Outgoing, new_id: Callable[[], str], now: float) -> None:
    """Apply a message an agent sends; a known request id makes it a repeat."""
    caller = Caller(
        namespace=session.namespace,
        principal=f"agent:{item.sender_agent_id}",
        method="WorkerService.Connect/message",
        request_id=item.request_id,
        digest="-",
    )
    ref = (Kind.REQUEST, (session.namespace, f"{caller.principal}|{caller.method}|{caller.request_id}"))
    if view.find(ref) is not None:
        return
    message_id = new_id()
    if item.role or item.all:
        put_broadcast(
            view,
            Broadcast(
                namespace=session.namespace,
                id=message_id,
                role=item.role,
                sender_agent_id=item.sender_agent_id,
                payload=item.payload,
                urgency=item.urgency,
                create_time=now,
                expire_time=now + DEFAULT_TTL,
            ),
        )
    else:
        _addressed(view, session.namespace, item.agent_id, item.task_id)
        put_message(
            view,
            Message(
                namespace=session.namespace,
                id=message_id,
                agent_id=item.agent_id,
                task_id=item.task_id,
                sender_agent_id=item.sender_agent_id,
                payload=item.payload,
                urgency=item.urgency,
                create_time=now,
                expire_time=now + DEFAULT_TTL,
            ),
        )
    view.put(RequestRecord(namespace=session.namespace, id=ref[1][1], digest="-", refs=(message_id,), create_time=now))


def _addressed(view: View, namespace: str, agent_id: str, task_id: str) -> None:
    if bool(agent_id) == bool(task_id):
        raise BadRequest("exactly one of agent_id and task_id names the recipient", field="recipient")
    if agent_id:
        view.agent(namespace, agent_id)
    else:
        task = view.task(namespace, task_id)
        if task.terminal:
            raise Refused(f"task {task_id!r} is over", metadata={"task_id": task_id, "state": str(task.state)})


def _sent(view: View, namespace: str, message_id: str) -> Message:
    message = view.find_message((namespace, message_id))
    if message is None:
        raise NotFound(f"message {message_id!r} has expired", reason="MESSAGE_NOT_FOUND")
    return message


class MessageVerbs:
    """Every mutating method answers when what it changed is durable."""

    def __init__(self, decisions: Decisions, index: Index, clock: Clock, new_id: NewId) -> None:
        self._decisions = decisions
        self._memory = decisions.memory
        self._index = index
        self._clock = clock
        self._new_id = new_id
        self._waiters: dict[Key, list[asyncio.Future[bool]]] = {}

    async def send(
        self,
        caller: Caller,
        *,
        agent_id: str = "",
        task_id: str = "",
        sender_agent_id: str = "",
        payload: Payload,
        urgency: Urgency = Urgency.QUEUE,
        ttl: float = DEFAULT_TTL,
    ) -> Message:
        """Send to one agent, or to whichever agent holds a task.

        Raises `NotFound`, `Refused` (the task is over) and `Overloaded` (too much is waiting for the agent).
        """
        message_id = self._new_id()

        def decide(view: View) -> Message:
            known = recall(view, caller)
            if known is not None:
                return _sent(view, caller.namespace, known.refs[0])
            _addressed(view, caller.namespace, agent_id, task_id)
            if len(self._index.mail_by_agent.get((caller.namespace, agent_id), ())) >= MAX_UNREAD:
                raise Overloaded(f"{MAX_UNREAD} messages wait for this agent", reason="QUOTA_EXCEEDED", retry_after=5.0)
            now = self._clock.now()
            message = put_message(
                view,
                Message(
                    namespace=caller.namespace,
                    id=message_id,
                    agent_id=agent_id,
                    task_id=task_id,
                    sender_agent_id=sender_agent_id,
                    payload=payload,
                    urgency=urgency,
                    create_time=now,
                    expire_time=now + ttl,
                ),
            )
            remember(view, caller, [message.id], now)
            return message

        return await self._decisions.run(decide)

    async def broadcast(
        self,
        caller: Caller,
        *,
        role: str = "",
        sender_agent_id: str = "",
        payload: Payload,
        urgency: Urgency = Urgency.QUEUE,
        ttl: float = DEFAULT_TTL,
    ) -> str:
        """Send to every agent of a role, or to all; returns the broadcast's id."""
        broadcast_id = self._new_id()

        def decide(view: View) -> str:
            known = recall(view, caller)
            if known is not None:
                return known.refs[0]
            now = self._clock.now()
            put_broadcast(
                view,
                Broadcast(
                    namespace=caller.namespace,
                    id=broadcast_id,
                    role=role,
                    sender_agent_id=sender_agent_id,
                    payload=payload,
                    urgency=urgency,
                    create_time=now,
                    expire_time=now + ttl,
                ),
            )
            remember(view, caller, [broadcast_id], now)
            return broadcast_id

        return await self._decisions.run(decide)

    async def unread(self, namespace: str, agent_id: str) -> list[Message]:
        """Return an agent's messages that are not read yet, oldest first; raises `NotFound`."""
        await self._decisions.fresh()
        if self._memory.committed((Kind.AGENT, (namespace, agent_id))) is None:
            raise NotFound(f"no agent {agent_id!r} in this namespace", reason="AGENT_NOT_FOUND")
        keys = self._index.mail_by_agent.get((namespace, agent_id), {})
        found = [self._memory.committed((Kind.MESSAGE, key)) for key in keys]
        return sorted((cast(Message, m) for m in found if m is not None), key=lambda m: (m.create_time, m.id))

    async def delivered(self, namespace: str, agent_id: str, ids: Sequence[str]) -> None:
        """Mark messages as delivered; those that are further on stay."""
        await self._mark(Caller(namespace=namespace), agent_id, ids, MessageState.DELIVERED)

    async def read(self, caller: Caller, agent_id: str, ids: Sequence[str]) -> None:
        """Mark messages as read, all or none; raises `NotFound`."""
        await self._mark(caller, agent_id, ids, MessageState.READ)

    async def _mark(self, caller: Caller, agent_id: str, ids: Sequence[str], state: MessageState) -> None:
        def decide(view: View) -> None:
            if recall(view, caller) is not None:
                return
            for message_id in ids:
                message = view.find_message((caller.namespace, message_id))
                if message is None or message.agent_id not in (agent_id, ""):
                    raise NotFound(f"no message {message_id!r} for this agent", reason="MESSAGE_NOT_FOUND")
                advance(view, message, state)
            remember(view, caller, list(ids), self._clock.now())

        await self._decisions.run(decide)

    async def arrival(self, namespace: str, agent_id: str, timeout: float) -> bool:  # noqa: ASYNC109 - a long poll's span is part of its meaning
        """Wait until a message for an agent was committed; False after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        waiters = self._waiters.setdefault((namespace, agent_id), [])
        waiters.append(future)
        timer = loop.call_later(timeout, _end, future, False)
        try:
            return await future
        finally:
            timer.cancel()
            waiters.remove(future)
            if not waiters:
                self._waiters.pop((namespace, agent_id), None)

    def observe(self, events: Iterable[Event]) -> None:
        """Wake those who wait for messages that these committed facts tell of."""
        if not self._waiters:
            return
        for event in events:
            if event.type is EventType.MESSAGE_SENT and event.agent_id:
                for future in self._waiters.get((event.namespace, event.agent_id), ()):
                    _end(future, True)

    def drain(self) -> None:
        """End every wait."""
        for waiters in self._waiters.values():
            for future in waiters:
                _end(future, False)


def _end(future: asyncio.Future[bool], answer: bool) -> None:
    if not future.done():
        future.set_result(answer)
