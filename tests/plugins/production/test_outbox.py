"""The outbox against a real web server: delivered, signed, repeated, kept over a restart, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from agenthive_plugins.production import outbox as module
from agenthive_plugins.production.alerts import AlertSeverity, AlertSource, Plan, Sighting
from agenthive_plugins.production.egress import Egress
from agenthive_plugins.production.ledger import Ledger
from agenthive_plugins.production.outbox import DELIVERIES, Outbox
from agenthive_plugins.production.webhook import GIVE_UP_AFTER
from agenthive_server.plugin.api import ManualClock
from agenthive_server.testing.hive import Hive
from agenthive_server.testing.waiting import eventually

HOT = Sighting(source=AlertSource.RULE, severity=AlertSeverity.HIGH, title="hot", rule_id="r")
INSIDE = Egress(hosts=("127.0.0.1",), private=True, timeout=5.0)
Desks = Callable[..., Any]


@asynccontextmanager
async def running(outbox: Outbox) -> AsyncIterator[None]:
    task = asyncio.create_task(outbox.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def attempted(ledger: Ledger, times: int) -> Any:
    (kept,) = await ledger.all(DELIVERIES)
    return kept if kept.attempts == times else None


async def test_an_alert_is_delivered_with_a_signature_that_verifies(
    desks: Desks, receiver: Any, ledger: Ledger
) -> None:
    made = desks([receiver.webhook()], INSIDE)
    async with running(made.outbox):
        await made.desk.see("f", Plan(), HOT)
        await eventually(lambda: receiver.bodies)
        await eventually(lambda: not made.outbox.waiting)
    assert receiver.unsigned == 0
    assert receiver.types == ["alert.fired"]
    assert receiver.bodies[0]["data"]["title"] == "hot"
    assert receiver.headers[0]["webhook-id"].startswith("msg_")
    assert await ledger.all(DELIVERIES) == []
    assert made.sent() == {("ops", "delivered"): 1}


async def test_what_was_not_taken_is_repeated_later_under_the_same_id(
    desks: Desks, receiver: Any, hive: Hive, ledger: Ledger
) -> None:
    made = desks([receiver.webhook()], INSIDE)
    receiver.status = 503
    async with running(made.outbox):
        await made.desk.see("f", Plan(), HOT)
        first = await eventually(partial(attempted, ledger, 1))
        await hive.clock.advance(0.5)
        second = await eventually(partial(attempted, ledger, 2))
        # The jitter here is a half: half of one second, then half of two.
        assert [each.due - each.created for each in (first, second)] == [0.5, 1.5]
        await hive.clock.advance(1.0)
        await eventually(partial(attempted, ledger, 3))
        assert made.troubles["ops"] == "answered 503"
        receiver.status = 204
        await hive.clock.advance(10)
        await eventually(lambda: receiver.bodies)
        await eventually(lambda: made.troubles["ops"] == "")
    assert receiver.headers[0]["webhook-id"] == first.id
    assert receiver.unsigned == 0


async def test_what_was_not_delivered_survives_a_restart(desks: Desks, receiver: Any) -> None:
    made = desks([receiver.webhook()], INSIDE)
    await made.desk.see("f", Plan(), HOT)
    again = desks([receiver.webhook()], INSIDE)
    await again.outbox.load()
    async with running(again.outbox):
        await eventually(lambda: receiver.bodies)
    assert receiver.types == ["alert.fired"]


async def test_what_another_server_wrote_is_sent_by_the_one_that_sends_and_once(desks: Desks, receiver: Any) -> None:
    sends, other = desks([receiver.webhook()], INSIDE), desks([receiver.webhook()], INSIDE)
    other.outbox.sending = False
    await other.desk.see("f", Plan(), HOT)
    assert other.outbox.waiting == 0
    async with running(sends.outbox):
        await sends.outbox.look()
        await sends.outbox.look()
        await eventually(lambda: receiver.bodies)
        await eventually(lambda: sends.outbox.waiting == 0)
        await sends.outbox.look()
        assert sends.outbox.waiting == 0
    assert receiver.types == ["alert.fired"]


async def test_one_that_does_not_answer_holds_up_nobody_else(desks: Desks, receiver: Any) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    hanging = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with hanging:
        slow = replace(receiver.webhook("slow"), url=f"http://127.0.0.1:{hanging.sockets[0].getsockname()[1]}/")
        made = desks([slow, receiver.webhook()], Egress(hosts=("127.0.0.1",), private=True, timeout=0.5))
        async with running(made.outbox):
            await made.desk.see("f", Plan(), HOT)
            await eventually(lambda: receiver.bodies)
            assert made.sent().get(("slow", "delivered")) is None
            await eventually(lambda: made.sent().get(("slow", "failed")))


@pytest.mark.parametrize("status", [301, 400, 410])
async def test_a_refusal_for_good_is_not_repeated(desks: Desks, receiver: Any, status: int, ledger: Ledger) -> None:
    made = desks([receiver.webhook()], INSIDE)
    receiver.status = status
    async with running(made.outbox):
        await made.desk.see("f", Plan(), HOT)
        await eventually(lambda: made.sent().get(("ops", "given_up")))
    assert await ledger.all(DELIVERIES) == []


async def test_after_a_day_it_is_given_up(desks: Desks, receiver: Any, clock: ManualClock) -> None:
    made = desks([receiver.webhook()], INSIDE)
    await made.desk.see("f", Plan(), HOT)
    receiver.status = 500
    clock.move(GIVE_UP_AFTER + 1)
    async with running(made.outbox):
        await eventually(lambda: made.sent().get(("ops", "given_up")))


async def test_where_nothing_may_be_sent_nothing_is(desks: Desks, receiver: Any) -> None:
    """The settings refuse such a webhook; a name whose addresses change later is refused here."""
    made = desks([receiver.webhook()], Egress(hosts=("127.0.0.1",)))
    async with running(made.outbox):
        await made.desk.see("f", Plan(), HOT)
        await eventually(lambda: made.sent().get(("ops", "given_up")))
    assert receiver.bodies == []


async def test_beyond_its_bound_it_drops_and_counts(
    desks: Desks, receiver: Any, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    made = desks([receiver.webhook()], INSIDE)
    for n in range(5):
        await made.desk.see(f"f{n}", Plan(), HOT)
    assert made.outbox.waiting == len(await ledger.all(DELIVERIES)) == 2
    assert made.sent() == {("ops", "dropped"): 3}


async def test_what_is_for_a_webhook_that_is_gone_is_dropped(desks: Desks, receiver: Any, ledger: Ledger) -> None:
    made = desks([receiver.webhook()], INSIDE)
    await made.desk.see("f", Plan(), HOT)
    without = desks([], INSIDE)
    await without.outbox.load()
    assert await ledger.all(DELIVERIES) == []
