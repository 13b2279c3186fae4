"""Walls around interceptors: what gets through, what is counted, who is left."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from agenthive_server.kernel.errors import BadRequest, PluginFailed
from agenthive_server.plugin.api import OK, Audience, Call, Failure, Outcome, Policy, Stage
from agenthive_server.plugin.cell import Act, Cell
from agenthive_server.plugin.walls import Guarded, Wall

from tests.server.plugin.conftest import new_cell


def new_call(*, brief: bool = True) -> Call:
    policy = Policy(audience=Audience.VIEWER, brief=brief)
    return Call("/s/M", policy, None, (), "default")  # type: ignore[arg-type]  # nobody asks for the transport


class Scripted:
    """An interceptor that does what it is told."""

    stage = Stage.ADMIT

    def __init__(self, before: BaseException | None = None, after: BaseException | None = None) -> None:
        self.on_before, self.on_after = before, after
        self.left: list[str] = []

    def before(self, call: Call) -> None:
        if self.on_before:
            raise self.on_before

    def after(self, call: Call, outcome: Outcome) -> None:
        self.left.append(outcome.code)
        if self.on_after:
            raise self.on_after


class Waiting(Scripted):
    """The same, after it has waited for a gate."""

    def __init__(self, gate: asyncio.Event, before: BaseException | None = None) -> None:
        super().__init__(before)
        self.gate = gate

    async def before(self, call: Call) -> None:  # type: ignore[override]  # either is an interceptor
        await self.gate.wait()
        super().before(call)


def guarded(interceptor: Any, cell: Cell) -> tuple[Wall, Act]:
    act = cell.act("INTERCEPTOR", type(interceptor).__name__, "ADMIT")
    return Wall([Guarded(interceptor, act)]), act


def test_a_call_is_counted_in_and_out() -> None:
    cell, _, _ = new_cell()
    wall, act = guarded(Scripted(), cell)
    call, long = new_call(), new_call(brief=False)
    assert wall.before(call) is None
    assert wall.before(long) is None
    assert (cell.in_flight, act.calls) == (1, 2)
    wall.after(call, OK)
    wall.after(long, OK)
    assert cell.in_flight == 0
    assert act.seconds > 0


def test_a_refusal_gets_through_with_the_name_and_is_no_failure() -> None:
    cell, told, _ = new_cell()
    wall, act = guarded(Scripted(before=BadRequest("no", field="x")), cell)
    call = new_call()
    with pytest.raises(BadRequest) as caught:
        wall.before(call)
    wall.after(call, OK)
    assert caught.value.metadata == {"plugin": "p"}
    assert (act.failures, told.lines, cell.in_flight) == (0, [], 0)


def test_what_fails_on_the_way_in_is_not_asked_on_the_way_out() -> None:
    cell, told, _ = new_cell()
    scripted = Scripted(before=ValueError("text"))
    wall, act = guarded(scripted, cell)
    call = new_call()
    assert wall.before(call) is None
    wall.after(call, OK)
    assert (scripted.left, act.failures, cell.in_flight) == ([], 1, 0)
    ((name, what, off),) = told.lines
    assert (name, off) == ("Scripted", False)
    assert what.startswith("ValueError at test_walls.py:")


def test_failures_count_within_a_window_only_and_too_many_switch_an_open_one_off_at_once() -> None:
    cell, told, clock = new_cell(failures=3, window=10.0)
    scripted = Scripted(after=RuntimeError())
    wall, _ = guarded(scripted, cell)
    for _ in range(4):
        wall.after(new_call(brief=False), OK)
        clock.move(6.0)
    assert cell.live
    for _ in range(2):
        wall.after(new_call(brief=False), OK)
    assert (cell.live, told.lines[-1][2], cell.recent_failures) == (False, True, 3)
    left = len(scripted.left)
    call = new_call()
    wall.before(call)
    wall.after(call, OK)
    assert len(scripted.left) == left
    assert cell.in_flight == 0


def test_a_closed_one_refuses_and_is_never_switched_off() -> None:
    cell, told, _ = new_cell(Failure.CLOSED, failures=2)
    wall, _ = guarded(Scripted(before=KeyError()), cell)
    for _ in range(5):
        with pytest.raises(PluginFailed) as caught:
            wall.before(new_call())
        assert caught.value.metadata == {"plugin": "p"}
    assert cell.live
    assert not any(off for _, _, off in told.lines)
    cell.end()
    with pytest.raises(PluginFailed):
        wall.before(new_call())


async def test_one_that_waits_is_awaited_and_its_refusal_counts_nobody_in() -> None:
    cell, _, _ = new_cell()
    gate = asyncio.Event()
    wall, act = guarded(Waiting(gate), cell)
    call = new_call()
    waits = asyncio.ensure_future(wall.before(call))  # type: ignore[arg-type]  # it waits
    await asyncio.sleep(0)
    gate.set()
    await waits
    assert (cell.in_flight, act.failures) == (1, 0)
    refusing, _ = guarded(Waiting(gate, BadRequest("no")), cell)
    refused = new_call()
    with pytest.raises(BadRequest):
        await refusing.before(refused)  # type: ignore[misc]  # it waits
    refusing.after(refused, OK)
    assert cell.in_flight == 1


async def test_the_interceptors_of_a_call_share_their_patience() -> None:
    cell, told, _ = new_cell(call=0.02)
    first, act = guarded(Waiting(asyncio.Event()), cell)
    second, other = guarded(Waiting(asyncio.Event()), cell)
    call = new_call()
    began = asyncio.get_running_loop().time()
    for wall in (first, second):
        await wall.before(call)  # type: ignore[misc]  # it waits
    assert asyncio.get_running_loop().time() - began < 0.5
    for wall in (first, second):
        wall.after(call, OK)
    assert (act.failures, other.failures, cell.in_flight) == (1, 1, 0)
    assert all("ms" in what for _, what, _ in told.lines)


async def test_waits_end_at_once_when_the_plugin_is_switched_off() -> None:
    cell, told, _ = new_cell(call=60.0)
    wall, act = guarded(Waiting(asyncio.Event()), cell)
    call = new_call()
    waits = asyncio.ensure_future(wall.before(call))  # type: ignore[arg-type]  # it waits
    await asyncio.sleep(0)
    cell.end()
    await asyncio.wait_for(waits, 5)
    wall.after(call, OK)
    assert (act.failures, told.lines, cell.in_flight) == (0, [], 0)


async def test_the_cancellation_of_a_call_goes_through_and_is_no_failure() -> None:
    cell, told, _ = new_cell()
    wall, _ = guarded(Waiting(asyncio.Event()), cell)
    call = new_call()
    waits = asyncio.ensure_future(wall.before(call))  # type: ignore[arg-type]  # it waits
    await asyncio.sleep(0)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    wall.after(call, OK)
    assert (told.lines, cell.in_flight) == ([], 0)


# Several behind one wall ----------------------------------------------------------------------------------------------


class Noting(Scripted):
    """The same, writing down who is passed."""

    def __init__(self, name: str, notes: list[str], before: BaseException | None = None) -> None:
        super().__init__(before)
        self.name, self.notes = name, notes

    def before(self, call: Call) -> None:
        self.notes.append(f"+{self.name}")
        super().before(call)

    def after(self, call: Call, outcome: Outcome) -> None:
        self.notes.append(f"-{self.name}")


class NotingLater(Noting):
    """The same, after a while."""

    async def before(self, call: Call) -> None:  # type: ignore[override]  # either is an interceptor
        await asyncio.sleep(0)
        super().before(call)

    async def after(self, call: Call, outcome: Outcome) -> None:  # type: ignore[override]  # either is an interceptor
        await asyncio.sleep(0)
        super().after(call, outcome)


def wall_of(*interceptors: Any) -> tuple[Wall, list[Cell], list[Act]]:
    """Return a wall around interceptors of as many plugins."""
    cells = [new_cell()[0] for _ in interceptors]
    acts = [cell.act("INTERCEPTOR", "x", "ADMIT") for cell in cells]
    return Wall([Guarded(each, act) for each, act in zip(interceptors, acts, strict=True)]), cells, acts


@pytest.mark.parametrize("late", [(), (0,), (1,), (2,), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize("refusing", [None, 0, 1, 2])
async def test_who_let_a_call_in_is_left_in_reverse_and_nobody_else(
    late: tuple[int, ...], refusing: int | None
) -> None:
    notes: list[str] = []
    kinds = [NotingLater if number in late else Noting for number in range(3)]
    errors = [BadRequest("no") if number == refusing else None for number in range(3)]
    wall, cells, acts = wall_of(*(kind("abc"[n], notes, errors[n]) for n, kind in enumerate(kinds)))
    call, refused = new_call(), False
    try:
        waits = wall.before(call)
        if waits is not None:
            await waits
    except BadRequest:
        refused = True
    assert refused == (refusing is not None)
    assert [cell.in_flight for cell in cells] == [1, 1, 1]
    waits = wall.after(call, OK)
    if waits is not None:
        await waits
    entered = 3 if refusing is None else refusing
    asked = "abc" if refusing is None else "abc"[: refusing + 1]
    assert "".join(notes) == "".join(f"+{name}" for name in asked) + "".join(
        f"-{name}" for name in reversed("abc"[:entered])
    )
    assert [act.calls for act in acts] == [int(name in asked) for name in "abc"]
    assert ([cell.in_flight for cell in cells], acts[0].failures) == ([0, 0, 0], 0)


async def test_a_cancellation_on_the_way_out_goes_on_when_all_have_been_left() -> None:
    notes: list[str] = []
    gate = asyncio.Event()

    class Stuck(Noting):
        async def after(self, call: Call, outcome: Outcome) -> None:  # type: ignore[override]  # either is one
            await gate.wait()

    wall, cells, _ = wall_of(NotingLater("a", notes), Noting("b", notes), Stuck("c", notes))
    call = new_call()
    entering = wall.before(call)
    assert entering is not None
    await entering
    waits = asyncio.ensure_future(wall.after(call, OK))  # type: ignore[arg-type]  # it waits
    await asyncio.sleep(0)
    assert cells[0].in_flight == 1
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert notes[3:] == ["-b", "-a"]
    assert [cell.in_flight for cell in cells] == [0, 0, 0]


class Dawdles(Scripted):
    """Holds everything up on the way in."""

    def before(self, call: Call) -> None:
        time.sleep(0.06)


class DawdlesLater(Scripted):
    """Holds everything up on the way out."""

    def after(self, call: Call, outcome: Outcome) -> None:
        time.sleep(0.06)


@pytest.mark.parametrize(("kinds", "slow"), [((Dawdles, Scripted), 0), ((Scripted, DawdlesLater), 1)])
def test_the_time_it_takes_to_tell_of_a_slow_one_is_not_the_next_one_s(
    kinds: tuple[type[Scripted], ...], slow: int
) -> None:
    wall, cells, acts = wall_of(*(kind() for kind in kinds))
    cells[slow].trouble = lambda *_: time.sleep(0.06)
    call = new_call()
    wall.before(call)
    wall.after(call, OK)
    assert [act.failures for act in acts] == [int(number == slow) for number in range(2)]


def test_time_and_failures_are_those_of_whose_they_are() -> None:
    scripted = [Scripted(), Dawdles(), Scripted(ValueError()), Scripted()]
    wall, cells, acts = wall_of(*scripted)
    call = new_call()
    wall.before(call)
    assert [act.seconds > 0.05 for act in acts] == [False, True, False, False]
    wall.after(call, OK)
    assert [act.failures for act in acts] == [0, 1, 1, 0]
    assert [len(each.left) for each in scripted] == [1, 1, 0, 1]
    assert cells[0].running.act is None
