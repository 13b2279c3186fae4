"""Messages over a real port."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from agenthive.v1 import message_pb2, payload_pb2
from agenthive.v1 import messaging_service_pb2 as pb

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Edge

Failure = Callable[[Any], Any]
HI = payload_pb2.Payload(data=b"hi")


def send(**fields: Any) -> pb.SendMessageRequest:
    return pb.SendMessageRequest(**{"payload": HI, **fields})


async def test_a_message_waits_is_delivered_and_is_read(edge: Edge) -> None:
    await edge.hive.worker("a")
    request = send(agent_id="a", request_id="r", urgency=message_pb2.MESSAGE_URGENCY_NOW)
    sent = (await edge.messaging.SendMessage(request)).message
    assert (sent.agent_id, sent.state, sent.urgency) == ("a", message_pb2.MESSAGE_STATE_QUEUED, 1)
    assert sent.expire_time.seconds - sent.create_time.seconds == 86_400
    assert (await edge.messaging.SendMessage(request)).message.message_id == sent.message_id
    stream = edge.messaging.StreamMessages(pb.StreamMessagesRequest(agent_id="a", no_follow=True))
    (message,) = (await stream.read()).messages
    assert (message.message_id, message.payload) == (sent.message_id, HI)
    assert await stream.read() is grpc.aio.EOF
    stream = edge.messaging.StreamMessages(pb.StreamMessagesRequest(agent_id="a", no_follow=True))
    assert (await stream.read()).messages[0].state == message_pb2.MESSAGE_STATE_DELIVERED
    ids = [sent.message_id]
    await edge.messaging.AcknowledgeMessages(pb.AcknowledgeMessagesRequest(agent_id="a", message_ids=ids))
    stream = edge.messaging.StreamMessages(pb.StreamMessagesRequest(agent_id="a", no_follow=True))
    assert await stream.read() is grpc.aio.EOF


async def test_a_stream_tells_of_what_arrives_and_ends_at_drain(edge: Edge) -> None:
    await edge.hive.worker("a")
    stream = edge.messaging.StreamMessages(pb.StreamMessagesRequest(agent_id="a"))
    await edge.messaging.SendMessage(send(agent_id="a"))
    assert len((await stream.read()).messages) == 1
    await edge.messaging.SendMessage(send(agent_id="a"))
    assert len((await stream.read()).messages) == 1
    edge.messaging_methods.drain()
    edge.hive.kernel.messages.drain()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_stream_ends_by_itself_when_it_is_old_enough(edge: Edge) -> None:
    await edge.hive.worker("a")
    edge.messaging_methods._longest = lambda: 0.05
    stream = edge.messaging.StreamMessages(pb.StreamMessagesRequest(agent_id="a"))
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_many_messages_come_in_pages(edge: Edge) -> None:
    await edge.hive.worker("a")
    for _ in range(70):
        await edge.hive.kernel.messages.send(edge.hive.caller(), agent_id="a", payload=edge.payload(b"x"))
    stream = edge.messaging.StreamMessages(pb.StreamMessagesRequest(agent_id="a", no_follow=True))
    sizes = []
    while (response := await stream.read()) is not grpc.aio.EOF:
        sizes.append(len(response.messages))
    assert sizes == [64, 6]


async def test_a_broadcast_reaches_a_role(edge: Edge) -> None:
    await edge.hive.worker("a", role="r")
    await edge.hive.worker("b", role="other")
    answer = await edge.messaging.BroadcastMessage(pb.BroadcastMessageRequest(role="r", payload=HI))
    await edge.hive.settle()
    stream = edge.messaging.StreamMessages(pb.StreamMessagesRequest(agent_id="a", no_follow=True))
    (message,) = (await stream.read()).messages
    assert message.message_id == f"{answer.broadcast_id}/a"
    acknowledge = pb.AcknowledgeMessagesRequest(agent_id="a", message_ids=[message.message_id])
    await edge.messaging.AcknowledgeMessages(acknowledge)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (send(), "recipient"),
        (send(agent_id=""), "agent_id"),
        (pb.SendMessageRequest(agent_id="a"), "payload"),
        (send(agent_id="a", urgency=9), "urgency"),
        (send(agent_id="a", sender_agent_id="a b"), "sender_agent_id"),
    ],
)
async def test_a_message_is_checked(edge: Edge, failure: Failure, request_: Any, field: str) -> None:
    failed = await failure(edge.messaging.SendMessage(request_))
    assert failed.details["BadRequest"].field_violations[0].field == field


async def test_who_is_not_there_is_not_found(edge: Edge, failure: Failure) -> None:
    assert (await failure(edge.messaging.SendMessage(send(agent_id="none")))).reason == "AGENT_NOT_FOUND"
    assert (await failure(edge.messaging.SendMessage(send(task_id="none")))).reason == "TASK_NOT_FOUND"
    stream = edge.messaging.StreamMessages(pb.StreamMessagesRequest(agent_id="none"))
    assert (await failure(stream)).reason == "AGENT_NOT_FOUND"
    await edge.hive.worker("a")
    request = pb.AcknowledgeMessagesRequest(agent_id="a", message_ids=["none"])
    assert (await failure(edge.messaging.AcknowledgeMessages(request))).reason == "MESSAGE_NOT_FOUND"
