"""Walls around hooks and handlers: what gets through, what is counted, what is taken back."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest
from agenthive_server.kernel.decide import NotLoaded
from agenthive_server.kernel.errors import KernelError, PluginFailed, Refused
from agenthive_server.kernel.proposals import Delegating, Joining
from agenthive_server.kernel.tasks import TaskSpec
from agenthive_server.plugin.api import Failure
from agenthive_server.plugin.isolation import Hooked, guard_handler, guard_hooks, guard_score

from tests.server.plugin.conftest import new_cell

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

    guard_hooks([Hooked(hook, cell.act("HOOK", "before_delegate"), AMENDABLE)])(task)
    assert (task.spec.priority, rows.values) == (1, {("p", "k"): b"v"})


def test_the_time_it_takes_to_tell_of_a_slow_hook_is_not_the_next_one_s() -> None:
    cells = [new_cell()[0] for _ in range(2)]
    acts = [cell.act("HOOK", "before_delegate") for cell in cells]
    cells[0].trouble = lambda *_: time.sleep(0.06)
    slow, quick = Hooked[Delegating](lambda _: time.sleep(0.06), acts[0]), Hooked[Delegating](lambda _: None, acts[1])
    guard_hooks([slow, quick])(delegating())
    assert [act.failures for act in acts] == [1, 0]


@pytest.mark.parametrize("error", [ValueError(), SystemExit(1)])
def test_what_a_hook_did_before_it_failed_is_taken_back(error: BaseException) -> None:
    cell, told, _ = new_cell()
    rows = Rows()
    task = delegating(rows)

    def hook(proposal: Delegating) -> None:
        proposal.amend(priority=1)
        proposal.state.put("k", b"v")
        raise error

    guard_hooks([Hooked(hook, cell.act("HOOK", "before_delegate"), AMENDABLE)])(task)
    assert (task.spec.priority, rows.values, len(told.lines)) == (3, {}, 1)


@pytest.mark.parametrize("amended", [{"title": "x"}, {"priority": 9}, {"priority": "high"}])
def test_what_was_not_declared_or_makes_no_sense_is_a_failure_of_the_plugin(amended: dict[str, Any]) -> None:
    cell, told, _ = new_cell()
    task = delegating()

    def hook(proposal: Delegating) -> None:
        proposal.amend(**amended)

    guard_hooks([Hooked(hook, cell.act("HOOK", "h"), AMENDABLE)])(task)
    assert (task.spec, len(told.lines)) == (TaskSpec(type="work"), 1)


def test_vetoes_get_through_as_vetoes_and_missing_records_as_they_are() -> None:
    cell, told, _ = new_cell()

    def veto(proposal: Delegating) -> None:
        raise Refused("not now")

    def look(proposal: Delegating) -> None:
        proposal.state.get("elsewhere")

    with pytest.raises(KernelError) as caught:
        guard_hooks([Hooked(veto, cell.act("HOOK", "h"), AMENDABLE)])(delegating())
    assert (caught.value.reason, caught.value.metadata) == ("VETOED", {"plugin": "p"})
    with pytest.raises(NotLoaded):
        guard_hooks([Hooked(look, cell.act("HOOK", "h"), AMENDABLE)])(delegating(Rows()))
    assert told.lines == []


def test_a_closed_hook_that_fails_or_is_gone_refuses() -> None:
    cell, _, _ = new_cell(Failure.CLOSED)

    def hook(proposal: Joining) -> None:
        proposal.issue("secret")
        raise ValueError

    wall = guard_hooks([Hooked(hook, cell.act("HOOK", "before_join"), frozenset())])
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
