"""Order, refusal, unwinding and change of the chain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive_server.kernel.errors import Overloaded
from agenthive_server.plugin.api import Call, Outcome, Stage
from agenthive_server.rpc.chain import Entry, build_chain, describe

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Edge

SERVICE = pb.DESCRIPTOR.services_by_name["OrchestratorService"]


class Link:
    """Writes down that it was passed."""

    def __init__(self, name: str, notes: list[str], stage: Stage = Stage.ADMIT) -> None:
        self.name = name
        self.notes = notes
        self.stage = stage

    def before(self, call: Call) -> None:
        self.notes.append(f"+{self.name}")

    def after(self, call: Call, outcome: Outcome) -> None:
        self.notes.append(f"-{self.name} {outcome.code}")


class Slow(Link):
    """The same, suspending in between."""

    async def before(self, call: Call) -> None:  # type: ignore[override]  # either is allowed
        await asyncio.sleep(0)
        Link.before(self, call)

    async def after(self, call: Call, outcome: Outcome) -> None:  # type: ignore[override]  # either is allowed
        await asyncio.sleep(0)
        Link.after(self, call, outcome)


class Refusing(Link):
    """Refuses every call."""

    def before(self, call: Call) -> None:
        raise Overloaded("no", retry_after=2.5)


class Broken(Link):
    """Fails on the way out."""

    def after(self, call: Call, outcome: Outcome) -> None:
        super().after(call, outcome)
        raise RuntimeError("broken")


class Methods:
    """One method that waits until it may end."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.may_end = asyncio.Event()

    async def GetTask(self, request: pb.GetTaskRequest, call: Call) -> pb.GetTaskResponse:
        self.entered.set()
        await self.may_end.wait()
        return pb.GetTaskResponse()


@pytest.fixture
def methods(edge: Edge) -> Methods:
    made = Methods()
    made.may_end.set()
    edge.serve(SERVICE, made)
    return made


async def test_it_is_entered_in_order_and_left_in_reverse(edge: Edge, methods: Methods) -> None:
    notes: list[str] = []
    edge.plug(Link("a", notes), Slow("b", notes), Link("c", notes))
    await edge.orchestrator.GetTask(pb.GetTaskRequest())
    assert notes == ["+a", "+b", "+c", "-c OK", "-b OK", "-a OK"]


async def test_a_refusal_unwinds_only_what_was_entered(
    edge: Edge, methods: Methods, failure: Callable[[Any], Any]
) -> None:
    notes: list[str] = []
    edge.plug(Slow("a", notes), Refusing("b", notes), Link("c", notes))
    failed = await failure(edge.orchestrator.GetTask(pb.GetTaskRequest()))
    assert failed.details["RetryInfo"].retry_delay.ToMilliseconds() == 2_500
    assert notes == ["+a", "-a RESOURCE_EXHAUSTED"]
    assert not methods.entered.is_set()


async def test_a_link_that_fails_on_the_way_out_disturbs_nobody(
    edge: Edge, methods: Methods, caplog: pytest.LogCaptureFixture
) -> None:
    notes: list[str] = []
    edge.plug(Link("a", notes), Broken("b", notes), Link("c", notes))
    await edge.orchestrator.GetTask(pb.GetTaskRequest())
    assert notes[3:] == ["-c OK", "-b OK", "-a OK"]
    assert [record.__dict__["interceptor"] for record in caplog.records] == ["Broken.after"]


async def test_a_call_keeps_the_chain_it_started_with(edge: Edge, methods: Methods) -> None:
    notes: list[str] = []
    methods.may_end.clear()
    edge.plug(Link("old", notes))
    call = asyncio.ensure_future(edge.orchestrator.GetTask(pb.GetTaskRequest()))
    await methods.entered.wait()
    edge.plug(Link("new", notes))
    methods.may_end.set()
    await call
    await edge.orchestrator.GetTask(pb.GetTaskRequest())
    assert notes == ["+old", "-old OK", "+new", "-new OK"]


async def test_many_swaps_during_many_calls_pair_every_entry_with_its_exit(edge: Edge, methods: Methods) -> None:
    notes: list[str] = []

    async def swap() -> None:
        for number in range(50):
            edge.plug(Slow(str(number), notes))
            await asyncio.sleep(0)

    calls = [edge.orchestrator.GetTask(pb.GetTaskRequest()) for _ in range(50)]
    await asyncio.gather(swap(), *calls)
    entered = sorted(note[1:] for note in notes if note[0] == "+")
    left = sorted(note[1:].split()[0] for note in notes if note[0] == "-")
    assert entered == left


def test_plugins_stand_by_stage_and_within_a_stage_as_given(edge_free: list[str]) -> None:
    chain = build_chain(
        [Link("built", edge_free, Stage.EDGE)],
        [
            Entry(Link("observe", edge_free, Stage.OBSERVE), "p"),
            Entry(Link("admit", edge_free, Stage.ADMIT), "p"),
            Entry(Link("identify", edge_free, Stage.IDENTIFY), "q"),
            Entry(Link("second", edge_free, Stage.ADMIT), "r"),
        ],
    )
    assert [entry.interceptor.name for entry in chain.entries] == [  # type: ignore[union-attr]  # they are Links
        "built",
        "identify",
        "admit",
        "second",
        "observe",
    ]
    assert describe(chain)[:2] == [("EDGE", "Link", "built in"), ("IDENTIFY", "Link", "q")]


@pytest.fixture
def edge_free() -> list[str]:
    """Notes for chains that are only built."""
    return []
