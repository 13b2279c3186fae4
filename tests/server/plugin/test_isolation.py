"""Walls around acts: what gets through, what is counted, what is taken back."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.decide import NotLoaded
from agenthive_server.kernel.errors import BadRequest, KernelError, PluginFailed, Refused
from agenthive_server.kernel.proposals import Delegating, Joining
from agenthive_server.kernel.tasks import TaskSpec
from agenthive_server.plugin.api import OK, Audience, Call, Failure, Outcome, Policy, Stage
from agenthive_server.plugin.cell import Act, Bounds, Cell, Running
from agenthive_server.plugin.isolation import Guarded, guard_handler, guard_hook, guard_score


class Told:
    """What the host is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, bool]] = []

    def __call__(self, cell: Cell, act: str, what: str, off: bool) -> None:
        self.lines.append((act, what, off))


def new_cell(failure: Failure = Failure.OPEN, **bounds: Any) -> tuple[Cell, Told, ManualClock]:
    told, clock = Told(), ManualClock()
    return Cell("p", failure, Running(), Bounds(**bounds), clock, told), told, clock


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


def guarded(interceptor: Any, cell: Cell) -> tuple[Guarded, Act]:
    act = cell.act("INTERCEPTOR", type(interceptor).__name__, "ADMIT")
    return Guarded(interceptor, act), act


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
    with pytest.raises(BadRequest) as caught:
        wall.before(new_call())
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
    assert what.startswith("ValueError at test_isolation.py:")


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
    with pytest.raises(BadRequest):
        await refusing.before(new_call())  # type: ignore[misc]  # it waits
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
    assert (act.failures, other.failures, cell.in_flight) == (1, 1, 0)
    assert all("ms" in what for _, what, _ in told.lines)


async def test_waits_end_at_once_when_the_plugin_is_switched_off() -> None:
    cell, told, _ = new_cell(call=60.0)
    wall, act = guarded(Waiting(asyncio.Event()), cell)
    waits = asyncio.ensure_future(wall.before(new_call()))  # type: ignore[arg-type]  # it waits
    await asyncio.sleep(0)
    cell.end()
    await asyncio.wait_for(waits, 5)
    assert (act.failures, told.lines, cell.in_flight) == (0, [], 0)


async def test_the_cancellation_of_a_call_goes_through_and_is_no_failure() -> None:
    cell, told, _ = new_cell()
    wall, _ = guarded(Waiting(asyncio.Event()), cell)
    waits = asyncio.ensure_future(wall.before(new_call()))  # type: ignore[arg-type]  # it waits
    await asyncio.sleep(0)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert (told.lines, cell.in_flight) == ([], 0)


# Hooks ----------------------------------------------------------------------------------------------------------------


class Rows:
    """The state of plugins, as one decision sees it."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], bytes | None] = {}

    def read(self, plugin: str, key: str) -> bytes | None:
        if key == "elsewhere":
            raise NotLoaded(())
        return self.values.get((plugin, key))

    def write(self, plugin: str, key: str, value: bytes | None) -> None:
        self.values[plugin, key] = value


def delegating(rows: Rows | None = None) -> Delegating:
    return Delegating(namespace="default", rows=rows, task_id="t", spec=TaskSpec(type="work"))


AMENDABLE = frozenset({"priority"})


def test_what_a_hook_amends_and_writes_is_taken_when_it_returns() -> None:
    cell, _, _ = new_cell()
    rows = Rows()
    task = delegating(rows)

    def hook(proposal: Delegating) -> None:
        proposal.amend(priority=1)
        proposal.state.put("k", b"v")
        assert proposal.state.get("k") == b"v"
        assert rows.values == {}

    guard_hook(hook, cell.act("HOOK", "before_delegate"), AMENDABLE)(task)
    assert (task.spec.priority, rows.values) == (1, {("p", "k"): b"v"})


@pytest.mark.parametrize("error", [ValueError(), SystemExit(1)])
def test_what_a_hook_did_before_it_failed_is_taken_back(error: BaseException) -> None:
    cell, told, _ = new_cell()
    rows = Rows()
    task = delegating(rows)

    def hook(proposal: Delegating) -> None:
        proposal.amend(priority=1)
        proposal.state.put("k", b"v")
        raise error

    guard_hook(hook, cell.act("HOOK", "before_delegate"), AMENDABLE)(task)
    assert (task.spec.priority, rows.values, len(told.lines)) == (3, {}, 1)


@pytest.mark.parametrize("amended", [{"title": "x"}, {"priority": 9}, {"priority": "high"}])
def test_what_was_not_declared_or_makes_no_sense_is_a_failure_of_the_plugin(amended: dict[str, Any]) -> None:
    cell, told, _ = new_cell()
    task = delegating()

    def hook(proposal: Delegating) -> None:
        proposal.amend(**amended)

    guard_hook(hook, cell.act("HOOK", "h"), AMENDABLE)(task)
    assert (task.spec, len(told.lines)) == (TaskSpec(type="work"), 1)


def test_vetoes_get_through_as_vetoes_and_missing_records_as_they_are() -> None:
    cell, told, _ = new_cell()

    def veto(proposal: Delegating) -> None:
        raise Refused("not now")

    def look(proposal: Delegating) -> None:
        proposal.state.get("elsewhere")

    with pytest.raises(KernelError) as caught:
        guard_hook(veto, cell.act("HOOK", "h"), AMENDABLE)(delegating())
    assert (caught.value.reason, caught.value.metadata) == ("VETOED", {"plugin": "p"})
    with pytest.raises(NotLoaded):
        guard_hook(look, cell.act("HOOK", "h"), AMENDABLE)(delegating(Rows()))
    assert told.lines == []


def test_a_closed_hook_that_fails_or_is_gone_refuses() -> None:
    cell, _, _ = new_cell(Failure.CLOSED)

    def hook(proposal: Joining) -> None:
        proposal.issue("secret")
        raise ValueError

    wall = guard_hook(hook, cell.act("HOOK", "before_join"), frozenset())
    joining = Joining(namespace="default", agents=())
    with pytest.raises(PluginFailed):
        wall(joining)
    assert joining.issued == ""
    cell.end()
    with pytest.raises(PluginFailed):
        wall(joining)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_none_has_no_say(score: float) -> None:
    cell, told, _ = new_cell(failures=2)
    wall = guard_score(lambda task, candidate: score, cell.act("HOOK", "score_agents"))
    candidate: Any = None
    assert wall(TaskSpec(type="work"), candidate) == 0.0
    assert wall(TaskSpec(type="work"), candidate) == 0.0
    assert (len(told.lines), cell.live) == (2, False)
    assert (
        guard_score(lambda task, candidate: 2.0, new_cell()[0].act("HOOK", "s"))(TaskSpec(type="w"), candidate) == 2.0
    )


async def test_every_step_of_a_handler_is_known_to_be_its_own() -> None:
    cell, _, _ = new_cell()
    act, gate, seen = cell.act("HANDLER", "X"), asyncio.Event(), []

    async def handler(number: int) -> None:
        try:
            seen.append(cell.running.act)
            if number > 1:
                await gate.wait()
                seen.append(cell.running.act)
        finally:
            seen.append(cell.running.act)

    wall = guard_handler(handler, act)
    assert wall(1) is None
    assert (seen, cell.running.act, act.calls) == ([act, act], None, 1)
    for number in (2, 3):
        waits = wall(number)
        assert waits is not None
        task = asyncio.ensure_future(waits)
        await asyncio.sleep(0)
        assert (len(seen), cell.running.act) == (3, None)
        if number == 2:
            gate.set()
            await task
            gate.clear()
        else:
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
        assert (set(seen), cell.running.act, act.failures) == ({act}, None, 0)
        del seen[2:]
    assert act.seconds > 0


async def test_a_handler_that_fails_is_counted_before_it_waits_and_after() -> None:
    cell, told, _ = new_cell()
    act = cell.act("HANDLER", "X")

    async def handler(late: bool) -> None:
        if late:
            await asyncio.sleep(0)
        raise LookupError

    wall = guard_handler(handler, act)
    with pytest.raises(LookupError):
        wall(False)
    waits = wall(True)
    assert waits is not None
    with pytest.raises(LookupError):
        await waits
    assert (act.failures, cell.running.act, told.lines) == (2, None, [])
