"""MessagingService: agents and callers talking to agents."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence

from agenthive.v1 import messaging_service_pb2 as pb

from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.message_verbs import DEFAULT_TTL, MessageVerbs
from agenthive_server.kernel.messages import Message, MessageState
from agenthive_server.plugin.api import Call

from . import validate
from .calls import mutation
from .convert.messages import fill_message, urgency_from
from .convert.values import required_payload

SILENCE = 15.0
"""Seconds after which an idle stream of messages sends an empty response."""

PAGE = 64
"""Messages in one response at most."""

PAGE_BYTES = 1024 * 1024
"""Bytes of payload after which a response is full."""


class MessagingMethods:
    """Parse, call one verb, convert back. `longest`: seconds after which a stream ends by itself; None: never."""

    def __init__(self, verbs: MessageVerbs, *, longest: Callable[[], float | None] = lambda: None) -> None:
        self._verbs = verbs
        self._longest = longest
        self._draining = False

    def drain(self) -> None:
        """Let the streams end as soon as their wait does, which `MessageVerbs.drain` brings about."""
        self._draining = True

    async def SendMessage(self, request: pb.SendMessageRequest, call: Call) -> pb.SendMessageResponse:
        """Send to one agent, or to whichever agent holds a task."""
        recipient = request.WhichOneof("recipient")
        if recipient is None:
            raise BadRequest("required", field="recipient")
        message = await self._verbs.send(
            mutation(call, request),
            agent_id=validate.required_id(request.agent_id, "agent_id") if recipient == "agent_id" else "",
            task_id=validate.required_id(request.task_id, "task_id") if recipient == "task_id" else "",
            sender_agent_id=validate.optional_id(request.sender_agent_id, "sender_agent_id"),
            payload=required_payload(request, "payload", "payload"),
            urgency=urgency_from(request.urgency, "urgency"),
            ttl=validate.span(request.ttl, "ttl") or DEFAULT_TTL,
        )
        response = pb.SendMessageResponse()
        fill_message(response.message, message)
        return response

    async def BroadcastMessage(self, request: pb.BroadcastMessageRequest, call: Call) -> pb.BroadcastMessageResponse:
        """Send to every agent of a role, or to all."""
        broadcast_id = await self._verbs.broadcast(
            mutation(call, request),
            role=validate.text(request.role, "role"),
            sender_agent_id=validate.optional_id(request.sender_agent_id, "sender_agent_id"),
            payload=required_payload(request, "payload", "payload"),
            urgency=urgency_from(request.urgency, "urgency"),
            ttl=validate.span(request.ttl, "ttl") or DEFAULT_TTL,
        )
        return pb.BroadcastMessageResponse(broadcast_id=broadcast_id)

    async def AcknowledgeMessages(
        self, request: pb.AcknowledgeMessagesRequest, call: Call
    ) -> pb.AcknowledgeMessagesResponse:
        """Mark messages as read."""
        agent_id = validate.required_id(request.agent_id, "agent_id")
        ids = validate.message_ids(request.message_ids, "message_ids")
        await self._verbs.read(mutation(call, request), agent_id, ids)
        return pb.AcknowledgeMessagesResponse()

    async def StreamMessages(
        self, request: pb.StreamMessagesRequest, call: Call
    ) -> AsyncIterator[pb.StreamMessagesResponse]:
        """Stream an agent's unread messages and then those that arrive; ends when the server drains, and with age."""
        agent_id = validate.required_id(request.agent_id, "agent_id")
        sent: set[str] = set()
        silent = False
        now, seconds = asyncio.get_running_loop().time, self._longest()
        end = math.inf if seconds is None else now() + seconds
        while True:
            # The wait begins before the messages are read, so that none falls between the two.
            arrival = asyncio.ensure_future(self._verbs.arrival(call.namespace, agent_id, min(SILENCE, end - now())))
            try:
                await asyncio.sleep(0)
                unread = await self._verbs.unread(call.namespace, agent_id)
                fresh = [message for message in unread if message.id not in sent]
                sent = {message.id for message in unread}
                for page in _pages(fresh):
                    yield _response(page)
                    await self._delivered(call.namespace, agent_id, page)
                if request.no_follow or self._draining or now() >= end:
                    return
                if silent and not fresh:
                    yield pb.StreamMessagesResponse()
                silent = not await arrival
            finally:
                arrival.cancel()

    async def _delivered(self, namespace: str, agent_id: str, messages: Sequence[Message]) -> None:
        queued = [message.id for message in messages if message.state is MessageState.QUEUED]
        if queued:
            await self._verbs.delivered(namespace, agent_id, queued)


def _pages(messages: Sequence[Message]) -> list[list[Message]]:
    pages: list[list[Message]] = []
    size = PAGE_BYTES
    for message in messages:
        if size >= PAGE_BYTES or len(pages[-1]) >= PAGE:
            pages.append([])
            size = 0
        pages[-1].append(message)
        size += len(message.payload.data or b"") + 4 * len(message.payload.json or "")
    return pages


def _response(messages: Sequence[Message]) -> pb.StreamMessagesResponse:
    response = pb.StreamMessagesResponse()
    for message in messages:
        fill_message(response.messages.add(), message)
    return response
