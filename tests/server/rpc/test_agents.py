"""The methods about agents, from bytes to the kernel and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from agenthive.v1 import agent_pb2
from agenthive.v1 import orchestrator_service_pb2 as pb

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Edge

Failure = Callable[[Any], Any]
NO_VALUE: Any = 99


def fields(failed: Any) -> list[str]:
    return [violation.field for violation in failed.details["BadRequest"].field_violations]


async def test_agents_live_through_the_verbs(edge: Edge, failure: Failure) -> None:
    call, spec = edge.orchestrator, agent_pb2.AgentSpec(role="r", slots=2, capabilities=["python"])
    agent = (await call.SpawnAgent(pb.SpawnAgentRequest(agent_id="a", spec=spec))).agent
    assert (agent.agent_id, agent.state, agent.spec.slots) == ("a", agent_pb2.AGENT_STATE_STARTING, 2)
    assert agent.spec.WhichOneof("driver") == "remote"
    assert (await call.GetAgent(pb.GetAgentRequest(agent_id="a"))).agent == agent
    await edge.hive.worker("a", role="r", slots=2, capabilities=("python",))
    assert (await call.GetAgent(pb.GetAgentRequest(agent_id="a"))).agent.state == agent_pb2.AGENT_STATE_IDLE
    spec.slots = 3
    revision = (await call.GetAgent(pb.GetAgentRequest(agent_id="a"))).agent.revision
    updated = await call.UpdateAgent(pb.UpdateAgentRequest(agent_id="a", spec=spec, revision=revision))
    assert updated.agent.spec.slots == 3
    failed = await failure(call.UpdateAgent(pb.UpdateAgentRequest(agent_id="a", spec=spec, revision=revision)))
    assert (failed.code, failed.reason) == (grpc.StatusCode.ABORTED, "REVISION_MISMATCH")
    process = agent_pb2.AgentSpec(process=agent_pb2.ProcessDriver(command=["true"]))
    failed = await failure(call.UpdateAgent(pb.UpdateAgentRequest(agent_id="a", spec=process)))
    assert fields(failed) == ["spec.driver"]
    sleeping = await call.SleepAgent(pb.SleepAgentRequest(agent_id="a", reason="night"))
    assert sleeping.agent.agent_id == "a"
    stopped = await call.ShutdownAgent(pb.ShutdownAgentRequest(agent_id="a", reason="done"))
    assert stopped.agent.agent_id == "a"
    failed = await failure(call.WakeAgent(pb.WakeAgentRequest(agent_id="none")))
    assert failed.reason == "AGENT_NOT_FOUND"


async def test_several_agents_are_spawned_and_listed_by_id(edge: Edge, failure: Failure) -> None:
    agents = [pb.NewAgent(agent_id=name, spec=agent_pb2.AgentSpec(role=name)) for name in ("c", "a", "b")]
    answer = await edge.orchestrator.SpawnAgents(pb.SpawnAgentsRequest(agents=agents))
    assert [agent.agent_id for agent in answer.agents] == ["c", "a", "b"]
    page = await edge.orchestrator.ListAgents(pb.ListAgentsRequest(page_size=2))
    assert [agent.agent_id for agent in page.agents] == ["a", "b"]
    rest = await edge.orchestrator.ListAgents(pb.ListAgentsRequest(page_size=2, page_token=page.next_page_token))
    assert [agent.agent_id for agent in rest.agents] == ["c"]
    assert not rest.next_page_token
    found = await edge.orchestrator.ListAgents(pb.ListAgentsRequest(role="b", states=[agent_pb2.AGENT_STATE_STARTING]))
    assert [agent.agent_id for agent in found.agents] == ["b"]
    failed = await failure(edge.orchestrator.SpawnAgents(pb.SpawnAgentsRequest()))
    assert fields(failed) == ["agents"]
    failed = await failure(edge.orchestrator.SpawnAgents(pb.SpawnAgentsRequest(agents=agents[:1])))
    assert failed.reason == "AGENT_EXISTS"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (agent_pb2.AgentSpec(slots=1_001), "spec.slots"),
        (agent_pb2.AgentSpec(weight=float("inf")), "spec.weight"),
        (agent_pb2.AgentSpec(process=agent_pb2.ProcessDriver()), "spec.process.command"),
        (agent_pb2.AgentSpec(process=agent_pb2.ProcessDriver(command=["a", "\x00"])), "spec.process.command[1]"),
        (
            agent_pb2.AgentSpec(
                process=agent_pb2.ProcessDriver(command=["a"], environment=[agent_pb2.EnvironmentVariable(name="1X")])
            ),
            "spec.process.environment[0].name",
        ),
        (agent_pb2.AgentSpec(custom=agent_pb2.CustomDriver()), "spec.custom.name"),
        (agent_pb2.AgentSpec(custom=agent_pb2.CustomDriver(name="process")), "spec.custom.name"),
        (agent_pb2.AgentSpec(scripted=agent_pb2.ScriptedDriver(exit_code=-1)), "spec.scripted.exit_code"),
        (agent_pb2.AgentSpec(restart_policy=agent_pb2.RestartPolicy(mode=NO_VALUE)), "spec.restart_policy.mode"),
    ],
)
async def test_a_specification_of_an_agent_is_checked(
    edge: Edge, failure: Failure, spec: agent_pb2.AgentSpec, field: str
) -> None:
    assert fields(await failure(edge.orchestrator.SpawnAgent(pb.SpawnAgentRequest(spec=spec)))) == [field]
