"""Plugging plugins into the edge: the chain, the hooks, the services, each swapped as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agenthive_server.kernel.agents import AgentSpec
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.proposals import NO_HOOKS, Spawning
from agenthive_server.plugin.api import Call, Failure, Outcome, Plugin, PluginMetrics, Registration, Stage
from agenthive_server.plugin.cell import Bounds, Cell, Running
from agenthive_server.plugin.instance import Instance
from agenthive_server.plugin.isolation import Hooked
from agenthive_server.plugin.walls import Guarded
from agenthive_server.rpc.chain import describe
from agenthive_server.rpc.plugged import Edge as Plugged

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Edge


class Look:
    """An interceptor."""

    stage = Stage.OBSERVE

    def before(self, call: Call) -> None:
        """Look."""

    def after(self, call: Call, outcome: Outcome) -> None:
        """Look."""


class Guard(Look):
    """An earlier one."""

    stage = Stage.IDENTIFY


def instance(name: str, *interceptors: Any) -> Instance:
    """Return an instance as if it had been opened."""
    registration: Registration[Any] = Registration(name, open=lambda ctx: None)  # type: ignore[arg-type,return-value]  # never opened
    cell = Cell(name, Failure.OPEN, Running(), Bounds(), ManualClock(), lambda *_: None)
    made = Instance(registration, None, cell, PluginMetrics(name), None)  # type: ignore[arg-type]  # it asks for nothing
    made.plugin = Plugin()
    made.interceptors = tuple(Guarded(each, cell.act("INTERCEPTOR", type(each).__name__)) for each in interceptors)
    return made


async def test_the_chain_is_by_stage_and_then_in_the_order_of_the_plugins(edge: Edge) -> None:
    plugged = Plugged(edge.adapter, edge.switch, edge.board, edge.hive.kernel.hooks, edge.built_in.interceptors)
    before = edge.switch.current
    plugged.plug([instance("b", Look(), Guard()), instance("a", Look())])
    assert describe(edge.switch.current)[len(before.entries) :] == [
        ("IDENTIFY", "Guard", "b"),
        ("OBSERVE", "Look", "b"),
        ("OBSERVE", "Look", "a"),
    ]
    plugged.plug([])
    assert describe(edge.switch.current) == describe(before)


async def test_hooks_are_swapped_as_one_in_the_order_of_the_plugins(edge: Edge) -> None:
    hooks = edge.hive.kernel.hooks
    plugged = Plugged(edge.adapter, edge.switch, edge.board, hooks, ())
    asked: list[str] = []
    first, second = instance("a"), instance("b")
    for each in (first, second):
        ask = Hooked[Spawning](lambda agent: asked.append(agent.plugin), each.cell.act("HOOK", "before_spawn"))
        each.hooks = {"before_spawn": ask}
    first.score = lambda task, candidate: 1.0
    plugged.plug([first, second])
    (ask_all,) = hooks.current.before_spawn
    ask_all(Spawning(namespace="default", agent_id="a", spec=AgentSpec()))
    assert asked == ["a", "b"]
    assert hooks.current.score_agents == edge.hive.kernel.pool.scorers == (first.score,)
    plugged.plug([])
    assert hooks.current == NO_HOOKS


async def test_services_of_plugins_that_are_off_are_known_and_not_serving(edge: Edge) -> None:
    plugged = Plugged(edge.adapter, edge.switch, edge.board, edge.hive.kernel.hooks, ())
    plugged.announce({"x.v1.XService": "x"})
    assert edge.board.find("x.v1.XService") is False
    assert edge.adapter.owners == {"x.v1.XService": "x"}
    assert "x.v1.XService" not in edge.adapter.services
