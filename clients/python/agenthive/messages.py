# ruff: noqa: ASYNC109 - `timeout` is sent as the deadline of the call, it is not a wait of ours
"""The calls about messages between agents and callers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from agenthive.connection import Connection, new_request_id
from agenthive.errors import error_from_rpc
from agenthive.payload import payload
from agenthive.v1 import message_pb2
from agenthive.v1 import messaging_service_pb2 as messaging
from agenthive.waiting import Backoff, passing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from agenthive.v1.message_pb2 import Message, MessageUrgency


class MessageCalls(Connection):
    """Messages: send, receive, acknowledge. Every call raises a HiveError; `timeout` and `ttl` are in seconds."""

    async def send_message(
        self,
        content: object,
        *,
        agent_id: str = "",
        task_id: str = "",
        sender_agent_id: str = "",
        urgency: MessageUrgency.ValueType = message_pb2.MESSAGE_URGENCY_UNSPECIFIED,
        ttl: float | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Message:
        """Send a message to one agent, or to whichever agent holds a task; it is durable, not delivered yet.

        Raises ValueError unless exactly one recipient is given.
        """
        if bool(agent_id) == bool(task_id):
            raise ValueError("give either an agent_id or a task_id")
        request = messaging.SendMessageRequest(
            request_id=new_request_id(request_id),
            sender_agent_id=sender_agent_id,
            payload=payload(content),
            urgency=urgency,
        )
        if agent_id:
            request.agent_id = agent_id
        else:
            request.task_id = task_id
        if ttl is not None:
            request.ttl.FromNanoseconds(round(ttl * 1e9))
        return (await self._call(self._messaging.SendMessage, request, timeout)).message

    async def broadcast(
        self,
        content: object,
        *,
        role: str = "",
        sender_agent_id: str = "",
        urgency: MessageUrgency.ValueType = message_pb2.MESSAGE_URGENCY_UNSPECIFIED,
        ttl: float | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Send a message to every agent of a role, or to all; return the broadcast's id."""
        request = messaging.BroadcastMessageRequest(
            request_id=new_request_id(request_id), role=role, sender_agent_id=sender_agent_id, payload=payload(content),
            urgency=urgency,
        )  # fmt: skip
        if ttl is not None:
            request.ttl.FromNanoseconds(round(ttl * 1e9))
        return (await self._call(self._messaging.BroadcastMessage, request, timeout)).broadcast_id

    async def messages(self, agent_id: str, *, follow: bool = True) -> AsyncIterator[Message]:
        """Yield the messages of an agent that are not read, oldest first, then those that arrive.

        It reconnects by itself. A message that was not acknowledged may come again, after a reconnect or in another
        call, but not twice within one unbroken stream. Closing the iterator ends the stream.
        """
        request = messaging.StreamMessagesRequest(agent_id=agent_id, no_follow=not follow)
        backoff = Backoff()
        while True:
            call = self._messaging.StreamMessages(request, metadata=self._metadata)
            try:
                async for response in call:
                    backoff.reset()
                    for message in response.messages:
                        yield message
            except grpc.aio.AioRpcError as error:
                if not passing(failure := error_from_rpc(error)):
                    raise failure from error
            else:
                if not follow:
                    return
            finally:
                call.cancel()
            await asyncio.sleep(backoff.next())

    async def acknowledge(
        self, agent_id: str, message_ids: Iterable[str], *, request_id: str | None = None, timeout: float | None = None
    ) -> None:
        """Mark messages of an agent as read, at most 256. Raises NotFound, marking none, if one is not the agent's."""
        request = messaging.AcknowledgeMessagesRequest(
            request_id=new_request_id(request_id), agent_id=agent_id, message_ids=message_ids
        )
        await self._call(self._messaging.AcknowledgeMessages, request, timeout)
