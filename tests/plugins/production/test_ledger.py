"""The ledger: records, pages, first records once, and request ids that make a repeat harmless."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from agenthive.v1 import production_service_pb2 as pb
from agenthive_plugins.production.ledger import MEMO, REMEMBERED, Family, Ledger, Rows
from agenthive_server.plugin.api import BadRequest, Call, ManualClock, NotFound, Overloaded
from agenthive_server.plugin.state import PluginState


@dataclass(frozen=True, kw_only=True)
class Note:
    text: str


NOTES = Family("note/", Note, "note", 3)
Calls = Callable[..., Call]


async def put(ledger: Ledger, *names: str) -> None:
    for name in names:
        await ledger.change(lambda rows, name=name: rows.put(NOTES, name, Note(text=name)))  # type: ignore[misc]  # bound now


async def test_records_come_back_and_what_is_missing_says_so(ledger: Ledger) -> None:
    await put(ledger, "b", "a")
    assert await ledger.get(NOTES, "a") == Note(text="a")
    assert [note.text for note in await ledger.all(NOTES)] == ["a", "b"]
    with pytest.raises(NotFound) as caught:
        await ledger.get(NOTES, "c")
    assert caught.value.reason == "RECORD_NOT_FOUND"
    assert caught.value.metadata == {"record": "note", "record_id": "c"}


async def test_pages(ledger: Ledger) -> None:
    await put(ledger, *(f"{n:03}" for n in range(25)))
    found, after = [], ""
    while True:
        page, after = await ledger.page(NOTES, after, 10)
        found += page
        if not after:
            break
    assert [note.text for note in found] == [f"{n:03}" for n in range(25)]
    even, last = await ledger.page(NOTES, "", 5, wanted=lambda note: int(note.text) % 2 == 0)
    assert ([note.text for note in even], last) == (["000", "002", "004", "006", "008"], "008")
    assert await ledger.page(NOTES, "024", 5) == ([], "")


async def test_their_number_is_bounded(ledger: Ledger) -> None:
    await put(ledger, "a", "b")
    await ledger.has_room(NOTES)
    await put(ledger, "c")
    with pytest.raises(Overloaded) as caught:
        await ledger.has_room(NOTES)
    assert caught.value.reason == "QUOTA_EXCEEDED"


async def test_a_record_that_is_too_large_is_refused(ledger: Ledger) -> None:
    with pytest.raises(BadRequest):
        await ledger.change(lambda rows: rows.put(NOTES, "a", Note(text="x" * 70_000)))


async def test_first_records_are_written_once(ledger: Ledger) -> None:
    await ledger.seed(NOTES, {"a": Note(text="first")})
    await ledger.change(lambda rows: rows.delete(NOTES, "a"))
    await ledger.seed(NOTES, {"a": Note(text="second")})
    assert await ledger.find(NOTES, "a") is None


def count(rows: Rows) -> pb.GetAlertResponse:
    """Count in a record; may run more than once for one change, as every decision."""
    before = rows.find(NOTES, "a")
    number = int(before.text) + 1 if before else 1
    rows.put(NOTES, "a", Note(text=str(number)))
    return pb.GetAlertResponse(alert=pb.Alert(alert_id=str(number)))


async def counted(ledger: Ledger) -> int:
    return int((await ledger.get(NOTES, "a")).text)


async def test_a_repeat_is_answered_as_the_first_time(ledger: Ledger, call: Calls) -> None:
    request = pb.CreateAlertRuleRequest(request_id="r1", rule=pb.AlertRule(rule_id="x"))
    first = await ledger.once(call(), request, pb.GetAlertResponse, count)
    again = await ledger.once(call(), request, pb.GetAlertResponse, count)
    assert first == again
    assert await counted(ledger) == 1
    other = pb.CreateAlertRuleRequest(request_id="r1", rule=pb.AlertRule(rule_id="y"))
    with pytest.raises(BadRequest) as caught:
        await ledger.once(call(), other, pb.GetAlertResponse, count)
    assert (caught.value.reason, caught.value.field) == ("REQUEST_ID_REUSED", "request_id")
    # Another principal's, method's or namespace's request id is another one.
    for different in (call(principal="anna"), call("/a/C"), call(namespace="other")):
        await ledger.once(different, other, pb.GetAlertResponse, count)
    assert await counted(ledger) == 4


async def test_without_a_request_id_every_call_counts(ledger: Ledger, call: Calls) -> None:
    for _ in range(3):
        await ledger.once(call(), pb.CreateAlertRuleRequest(), pb.GetAlertResponse, count)
    assert await counted(ledger) == 3


async def test_a_call_that_was_refused_may_be_repeated(ledger: Ledger, call: Calls) -> None:
    request = pb.CreateAlertRuleRequest(request_id="r1")

    def refuse(rows: Rows) -> pb.GetAlertResponse:
        rows.put(NOTES, "a", Note(text="half"))
        raise NotFound("no")

    with pytest.raises(NotFound):
        await ledger.once(call(), request, pb.GetAlertResponse, refuse)
    assert await ledger.find(NOTES, "a") is None
    await ledger.once(call(), request, pb.GetAlertResponse, count)


async def test_effects_beyond_the_state(ledger: Ledger, call: Calls) -> None:
    acted: list[int] = []

    async def act() -> pb.GetAlertResponse:
        acted.append(1)
        return pb.GetAlertResponse(alert=pb.Alert(alert_id="a"))

    request = pb.TriggerAutoScalingRequest(request_id="r1", pool_id="p")
    for _ in range(2):
        answer = await ledger.once_after(call(), request, pb.GetAlertResponse, act)
        assert answer.alert.alert_id == "a"
    assert acted == [1]


async def test_request_ids_are_forgotten_after_a_day(
    ledger: Ledger, call: Calls, state: PluginState, clock: ManualClock
) -> None:
    request = pb.CreateAlertRuleRequest(request_id="r1")
    await ledger.once(call(), request, pb.GetAlertResponse, count)
    clock.move(REMEMBERED - 1)
    await ledger.forget()
    assert len(await state.scan(MEMO)) == 1
    clock.move(2)
    await ledger.forget()
    assert await state.scan(MEMO) == []


async def test_a_request_id_that_is_too_long_is_refused(ledger: Ledger, call: Calls) -> None:
    request = pb.CreateAlertRuleRequest(request_id="x" * 129)
    with pytest.raises(BadRequest):
        await ledger.once(call(), request, pb.GetAlertResponse, count)
