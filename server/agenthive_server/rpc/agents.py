"""OrchestratorService: the methods about agents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from agenthive.v1 import orchestrator_service_pb2 as pb

from agenthive_server.kernel.agent_verbs import AgentVerbs, NewAgent
from agenthive_server.kernel.agents import Agent, AgentSpec
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.ports import Query
from agenthive_server.plugin.api import Call

from . import validate
from .calls import mutation, next_page, page_after, uses_existing
from .convert.agents import STATES, fill_agent, names_driver, spec_from
from .convert.values import names

R = TypeVar("R")


class AgentMethods:
    """Parse, call one verb, convert back."""

    def __init__(self, verbs: AgentVerbs) -> None:
        self._verbs = verbs

    async def SpawnAgent(self, request: pb.SpawnAgentRequest, call: Call) -> pb.SpawnAgentResponse:
        """Record an agent."""
        new = NewAgent(id=validate.optional_id(request.agent_id, "agent_id"), spec=spec_from(request.spec, "spec"))
        (agent,) = await self._verbs.spawn(mutation(call, request), (new,), use_existing=uses_existing(request))
        return self._answer(pb.SpawnAgentResponse(), agent)

    async def SpawnAgents(self, request: pb.SpawnAgentsRequest, call: Call) -> pb.SpawnAgentsResponse:
        """Record several agents, all or none."""
        if not request.agents:
            raise BadRequest("required", field="agents")
        validate.count(request.agents, "agents", validate.MAX_COUNT)
        new = [
            NewAgent(
                id=validate.optional_id(agent.agent_id, f"agents[{n}].agent_id"),
                spec=spec_from(agent.spec, f"agents[{n}].spec"),
            )
            for n, agent in enumerate(request.agents)
        ]
        agents = await self._verbs.spawn(mutation(call, request), new, use_existing=uses_existing(request))
        response = pb.SpawnAgentsResponse()
        for agent in agents:
            fill_agent(response.agents.add(), agent, self._verbs.shown(agent))
        return response

    async def GetAgent(self, request: pb.GetAgentRequest, call: Call) -> pb.GetAgentResponse:
        """Get one agent."""
        return self._answer(pb.GetAgentResponse(), await self._verbs.get(call.namespace, _agent_id(request)))

    async def ListAgents(self, request: pb.ListAgentsRequest, call: Call) -> pb.ListAgentsResponse:
        """List agents, by id."""
        size = validate.page_size(request.page_size)
        validate.count(request.states, "states", validate.MAX_COUNT)
        query = Query(
            namespace=call.namespace,
            states=names(STATES, request.states, "states"),
            role=validate.text(request.role, "role"),
            labels=validate.labels(request.labels, "labels"),
            after=page_after(call, request),
            limit=size + 1,
        )
        agents = await self._verbs.list(query)
        response = pb.ListAgentsResponse(
            next_page_token=next_page(call, request, agents, size, lambda agent: ("", agent.id))
        )
        for agent in agents[:size]:
            fill_agent(response.agents.add(), agent, self._verbs.shown(agent))
        return response

    async def UpdateAgent(self, request: pb.UpdateAgentRequest, call: Call) -> pb.UpdateAgentResponse:
        """Change what an agent should be, except for its driver."""
        agent_id = _agent_id(request)
        if not request.HasField("spec"):
            raise BadRequest("required", field="spec")
        revision = validate.between(request.revision, 0, 2**62, "revision")
        caller = mutation(call, request)
        spec = spec_from(request.spec, "spec")
        # The driver never changes, so it does not matter that this was read before the verb.
        current = (await self._verbs.get(call.namespace, agent_id)).spec
        spec = _same_driver(spec, current, named=names_driver(request.spec))
        agent = await self._verbs.update(caller, agent_id, spec, revision)
        return self._answer(pb.UpdateAgentResponse(), agent)

    async def ShutdownAgent(self, request: pb.ShutdownAgentRequest, call: Call) -> pb.ShutdownAgentResponse:
        """Stop an agent for good."""
        grace = validate.span(request.grace, "grace") if request.HasField("grace") else None
        reason = validate.text(request.reason, "reason", validate.REASON_TEXT)
        agent = await self._verbs.shutdown(mutation(call, request), _agent_id(request), reason, grace)
        return self._answer(pb.ShutdownAgentResponse(), agent)

    async def RestartAgent(self, request: pb.RestartAgentRequest, call: Call) -> pb.RestartAgentResponse:
        """Start an agent again."""
        agent = await self._verbs.restart(mutation(call, request), _agent_id(request))
        return self._answer(pb.RestartAgentResponse(), agent)

    async def SleepAgent(self, request: pb.SleepAgentRequest, call: Call) -> pb.SleepAgentResponse:
        """Put an agent to sleep."""
        reason = validate.text(request.reason, "reason", validate.REASON_TEXT)
        agent = await self._verbs.sleep(mutation(call, request), _agent_id(request), reason)
        return self._answer(pb.SleepAgentResponse(), agent)

    async def WakeAgent(self, request: pb.WakeAgentRequest, call: Call) -> pb.WakeAgentResponse:
        """Wake a sleeping agent."""
        agent = await self._verbs.wake(mutation(call, request), _agent_id(request))
        return self._answer(pb.WakeAgentResponse(), agent)

    def _answer(self, response: R, agent: Agent) -> R:
        fill_agent(response.agent, agent, self._verbs.shown(agent))  # type: ignore[attr-defined]  # all have it
        return response


def _agent_id(request: Any) -> str:
    return validate.required_id(request.agent_id, "agent_id")


def _same_driver(spec: AgentSpec, current: AgentSpec, *, named: bool) -> AgentSpec:
    if named and (spec.driver, spec.driver_config) != (current.driver, current.driver_config):
        raise BadRequest("the driver of an agent cannot be changed", field="spec.driver")
    return replace(spec, driver=current.driver, driver_config=current.driver_config)
