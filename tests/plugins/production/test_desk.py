"""The desk: alerts, their tracks and what is told of them are one change; people act on them by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agenthive_plugins.production.alerts import CLEAR, AlertSeverity, AlertSource, AlertState, Plan, Sighting
from agenthive_plugins.production.desk import ALERTS, KEPT, TRACKS
from agenthive_plugins.production.egress import Egress
from agenthive_plugins.production.ledger import Ledger
from agenthive_plugins.production.outbox import DELIVERIES, Outbox
from agenthive_plugins.production.webhook import Webhook
from agenthive_server.plugin.api import ManualClock, NotFound, Refused

Desks = Callable[..., Any]
PLAN = Plan(cooldown=0)
HOT = Sighting(source=AlertSource.RULE, severity=AlertSeverity.HIGH, title="hot", rule_id="r")
OPS = Webhook(name="ops", url="https://ops.example.org/", key=b"x" * 16)


async def test_an_alert_and_what_is_told_of_it_are_one_change(
    desks: Desks, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = desks([OPS], Egress(hosts=("ops.example.org",)))

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(Outbox, "write", fail)
    with pytest.raises(RuntimeError):
        await made.desk.see("f", PLAN, HOT)
    assert await ledger.all(ALERTS) == []
    assert await ledger.all(TRACKS) == []
    monkeypatch.undo()
    await made.desk.see("f", PLAN, HOT)
    assert len(await ledger.all(ALERTS)) == len(await ledger.all(DELIVERIES)) == 1
    assert made.published == ["fired hot"]


async def test_looks_that_find_nothing_write_nothing(desks: Desks, ledger: Ledger) -> None:
    made = desks()
    for _ in range(3):
        assert await made.desk.see("f", PLAN, CLEAR) == []
    assert await ledger.all(TRACKS) == []


async def test_the_newest_alert_comes_first(desks: Desks, ledger: Ledger, clock: ManualClock) -> None:
    made = desks()
    for n in range(5):
        await made.desk.see(f"f{n}", PLAN, HOT)
        clock.move(7)
    times = [alert.trigger_time for alert in await ledger.all(ALERTS)]
    assert times == sorted(times, reverse=True)


async def test_one_cause_has_one_open_alert(desks: Desks, ledger: Ledger, clock: ManualClock) -> None:
    made = desks()
    for look in (HOT, HOT, CLEAR, HOT, HOT):
        await made.desk.see("f", PLAN, look)
        clock.move(60)
    alerts = await ledger.all(ALERTS)
    assert [alert.state for alert in alerts] == [AlertState.FIRING, AlertState.RESOLVED]
    assert await made.desk.open_alerts() == alerts[:1]
    assert alerts[0].occurrences == 2


async def test_people_acknowledge_and_resolve(desks: Desks, ledger: Ledger) -> None:
    made = desks()
    await made.desk.see("f", PLAN, HOT)
    (alert,) = await ledger.all(ALERTS)
    await made.desk.told(
        *(await ledger.change(lambda rows: made.desk.acknowledged(rows, alert.id, "anna", "mine")))[1:]
    )
    await made.desk.see("f", PLAN, HOT)
    seen = await ledger.get(ALERTS, alert.id)
    assert (seen.state, seen.acknowledged_by, seen.note) == (AlertState.ACKNOWLEDGED, "anna", "mine")
    _, *told = await ledger.change(lambda rows: made.desk.resolved(rows, alert.id, "bert", "done"))
    await made.desk.told(*told)
    ended = await ledger.get(ALERTS, alert.id)
    assert (ended.state, ended.resolved_by) == (AlertState.RESOLVED, "bert")
    assert made.published == ["fired hot", "acknowledged hot", "resolved hot"]
    # Once more changes nothing; acknowledging what is resolved is refused.
    assert (await ledger.change(lambda rows: made.desk.resolved(rows, alert.id, "x", "")))[0] == ended
    with pytest.raises(Refused):
        await ledger.change(lambda rows: made.desk.acknowledged(rows, alert.id, "x", ""))
    with pytest.raises(NotFound):
        await ledger.change(lambda rows: made.desk.acknowledged(rows, "nobody", "x", ""))


async def test_a_condition_that_is_forgotten_resolves_its_alert(desks: Desks, ledger: Ledger) -> None:
    made = desks()
    await made.desk.see("f", PLAN, HOT)
    await made.desk.told(*(await ledger.change(lambda rows: made.desk.removed(rows, "f", "anna"))))
    (alert,) = await ledger.all(ALERTS)
    assert alert.state is AlertState.RESOLVED
    assert await ledger.all(TRACKS) == []
    assert await ledger.change(lambda rows: made.desk.removed(rows, "f", "anna")) == ([], [])


async def test_alerts_within_a_span(desks: Desks, clock: ManualClock) -> None:
    made = desks()
    start = clock.now()
    await made.desk.see("f", PLAN, HOT)
    clock.move(100)
    await made.desk.see("f", PLAN, CLEAR)
    found = made.desk.overlapping
    assert len(await found([(start + 50, start + 60)])) == 1
    assert len(await found([(start - 50, start + 1), (start + 500, start + 600)])) == 1
    assert await found([(start + 101, start + 200)]) == []
    assert await found([]) == []


async def test_old_alerts_are_too_many_some_day(
    desks: Desks, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agenthive_plugins.production import desk

    monkeypatch.setattr(desk, "KEPT", 3)
    made = desks()
    for _ in range(6):
        await made.desk.see("f", PLAN, HOT)
        clock.move(1_000)
        await made.desk.see("f", PLAN, CLEAR)
        clock.move(2_000)
    await made.desk.see("open", PLAN, HOT)
    assert len(await made.desk.surplus()) == 3
    assert KEPT == 1_000
