"""Messages: to an agent, a task, a role and all; receipts; expiry; the bound of unread ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from agenthive_server.kernel import message_verbs
from agenthive_server.kernel.agent_verbs import NewAgent
from agenthive_server.kernel.agents import AgentSpec
from agenthive_server.kernel.errors import BadRequest, NotFound, Overloaded, Refused
from agenthive_server.kernel.events import EventType
from agenthive_server.kernel.messages import MessageState, Urgency
from agenthive_server.kernel.records import Kind, Payload
from agenthive_server.kernel.session_items import (
    Accept,
    Mail,
    MessagesDelivered,
    MessagesRead,
    Outgoing,
    Reject,
    Result,
)
from agenthive_server.testing.hive import NAMESPACE, Hive, PlayedWorker, open_hive

HELLO = Payload(data=b"hello")


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


def _mail(worker: PlayedWorker) -> list[tuple[str, str]]:
    return [(told.agent_id, m.id) for told in worker.link.told if isinstance(told, Mail) for m in told.messages]


async def _spawn(hive: Hive, *names: str, role: str = "") -> None:
    await hive.kernel.agents.spawn(hive.caller(), [NewAgent(id=name, spec=AgentSpec(role=role)) for name in names])


async def test_a_message_goes_to_its_agent_and_its_receipts_come_back(hive: Hive) -> None:
    worker = await hive.worker("a")
    sent = await hive.kernel.messages.send(hive.caller(), agent_id="a", payload=HELLO, urgency=Urgency.NOW)
    assert _mail(worker) == [("a", sent.id)]
    await worker.say(MessagesDelivered("a", (sent.id,)))
    (unread,) = await hive.kernel.messages.unread(NAMESPACE, "a")
    assert unread.state is MessageState.DELIVERED
    await worker.say(MessagesRead("a", (sent.id,)), MessagesDelivered("a", (sent.id,)))
    assert await hive.kernel.messages.unread(NAMESPACE, "a") == []
    kinds = [e.type for e in await hive.store.read_events(0, 100) if e.data.get("message_id") == sent.id]
    assert kinds == [EventType.MESSAGE_SENT, EventType.MESSAGE_DELIVERED, EventType.MESSAGE_READ]


async def test_a_message_waits_for_an_agent_that_is_away(hive: Hive) -> None:
    await _spawn(hive, "a")
    first = await hive.kernel.messages.send(hive.caller(), agent_id="a", payload=HELLO)
    await hive.advance(1.0)
    second = await hive.kernel.messages.send(hive.caller(), agent_id="a", payload=HELLO)
    worker = await hive.worker("a")
    assert _mail(worker) == [("a", first.id), ("a", second.id)]


async def test_steering_reaches_whoever_holds_the_task(hive: Hive) -> None:
    await hive.delegate("t")
    sent = await hive.kernel.messages.send(hive.caller(), task_id="t", payload=HELLO)
    one = await hive.worker("a")
    await hive.settle()
    assert _mail(one) == [("a", sent.id)]
    await one.say(Reject("t", 1, "busy", 100.0))
    two = await hive.worker("b")
    await hive.settle()
    assert _mail(two) == [("b", sent.id)]
    await two.say(Accept("t", 2), MessagesDelivered("b", (sent.id,)))
    now = await hive.kernel.messages.send(hive.caller(), task_id="t", payload=HELLO)
    assert _mail(two)[-1] == ("b", now.id)


async def test_steering_that_came_too_late_expires_with_its_task(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    sent = await hive.kernel.messages.send(hive.caller(), task_id="t", payload=HELLO)
    await worker.say(Result("t", 1, result=Payload(data=b"x")))
    await hive.settle()
    (stored,) = await hive.store.get(Kind.MESSAGE, [(NAMESPACE, sent.id)])
    assert stored is not None
    assert stored.state is MessageState.EXPIRED  # type: ignore[attr-defined]  # it is a message
    with pytest.raises(Refused):
        await hive.kernel.messages.send(hive.caller(), task_id="t", payload=HELLO)


async def test_a_broadcast_reaches_every_agent_of_a_role_once(hive: Hive) -> None:
    await _spawn(hive, "c1", "c2", role="coder")
    await _spawn(hive, "x")
    broadcast_id = await hive.kernel.messages.broadcast(hive.caller(), role="coder", payload=HELLO)
    await hive.settle()
    for name in ("c1", "c2"):
        assert [m.id for m in await hive.kernel.messages.unread(NAMESPACE, name)] == [f"{broadcast_id}/{name}"]
    assert await hive.kernel.messages.unread(NAMESPACE, "x") == []


async def test_a_broadcast_to_hundreds_goes_out_in_bounded_steps(hive: Hive) -> None:
    names = [f"a{n:03}" for n in range(450)]
    for start in range(0, 450, 150):
        await _spawn(hive, *names[start : start + 150])
    await hive.kernel.messages.broadcast(hive.caller(), payload=HELLO, sender_agent_id="a007")
    await hive.advance(2.0)
    got = [len(await hive.kernel.messages.unread(NAMESPACE, name)) for name in names]
    assert got == [0 if name == "a007" else 1 for name in names]
    assert await hive.store.scan(Kind.BROADCAST) == []


async def test_a_message_that_was_not_delivered_in_time_expires(hive: Hive) -> None:
    await _spawn(hive, "a")
    await hive.kernel.messages.send(hive.caller(), agent_id="a", payload=HELLO, ttl=10.0)
    await hive.advance(45.0)
    assert await hive.kernel.messages.unread(NAMESPACE, "a") == []
    kinds = [e.type for e in await hive.store.read_events(0, 100)]
    assert EventType.MESSAGE_EXPIRED in kinds


async def test_an_agent_with_too_much_unread_gets_no_more(hive: Hive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_verbs, "MAX_UNREAD", 2)
    await _spawn(hive, "a")
    for _ in range(2):
        await hive.kernel.messages.send(hive.caller(), agent_id="a", payload=HELLO)
    with pytest.raises(Overloaded) as caught:
        await hive.kernel.messages.send(hive.caller(), agent_id="a", payload=HELLO)
    assert caught.value.reason == "QUOTA_EXCEEDED"


async def test_agents_write_to_each_other_and_a_repeat_is_sent_once(hive: Hive) -> None:
    worker, other = await hive.worker("a"), await hive.worker("b")
    item = Outgoing(request_id="r", sender_agent_id="a", agent_id="b", payload=HELLO)
    assert await worker.say(item) == []
    assert await worker.say(item) == []
    assert len(_mail(other)) == 1
    refusals = await worker.say(
        Outgoing(request_id="r2", sender_agent_id="b", agent_id="a", payload=HELLO),
        Outgoing(request_id="", sender_agent_id="a", agent_id="b", payload=HELLO),
        Outgoing(request_id="r3", sender_agent_id="a", agent_id="nobody", payload=HELLO),
    )
    assert [refusal.reason for refusal in refusals] == ["INVALID_FIELD", "INVALID_FIELD", "AGENT_NOT_FOUND"]


async def test_a_recipient_has_to_exist_and_to_be_one(hive: Hive) -> None:
    with pytest.raises(NotFound):
        await hive.kernel.messages.send(hive.caller(), agent_id="nobody", payload=HELLO)
    with pytest.raises(BadRequest):
        await hive.kernel.messages.send(hive.caller(), payload=HELLO)
    with pytest.raises(NotFound):
        await hive.kernel.messages.read(hive.caller(), "a", ["none"])


async def test_waiting_for_a_message_ends_with_it_or_at_drain(hive: Hive) -> None:
    await _spawn(hive, "a")
    waiting = asyncio.create_task(hive.kernel.messages.arrival(NAMESPACE, "a", 60.0))
    await hive.settle()
    await hive.kernel.messages.send(hive.caller(), agent_id="a", payload=HELLO)
    assert await waiting is True
    waiting = asyncio.create_task(hive.kernel.messages.arrival(NAMESPACE, "a", 60.0))
    await hive.settle()
    hive.kernel.drain()
    assert await waiting is False
