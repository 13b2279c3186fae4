# ruff: noqa: ASYNC109 - `timeout` is sent as the deadline of the call, it is not a wait of ours
"""The calls about agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from agenthive.connection import Connection, new_request_id
from agenthive.v1 import agent_pb2
from agenthive.v1 import orchestrator_service_pb2 as orchestrator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from datetime import timedelta
    from typing import Unpack

    from google.protobuf import duration_pb2

    from agenthive.v1.agent_pb2 import Agent, AgentSpec, AgentState
    from agenthive.v1.orchestrator_service_pb2 import IdConflictPolicy, NewAgent


class AgentFields(TypedDict, total=False):
    """Fields of AgentSpec that can be given as keyword arguments; the comments of agent.proto say what they mean."""

    display_name: str
    capabilities: Iterable[str]
    slots: int
    labels: Mapping[str, str]
    weight: float
    restart_policy: agent_pb2.RestartPolicy
    stop_grace: timedelta | duration_pb2.Duration
    start_timeout: timedelta | duration_pb2.Duration
    runner_labels: Mapping[str, str]
    remote: agent_pb2.RemoteDriver
    process: agent_pb2.ProcessDriver
    scripted: agent_pb2.ScriptedDriver
    custom: agent_pb2.CustomDriver


class AgentCalls(Connection):
    """Agents: spawn, look up, change, stop. Every call raises a HiveError; `timeout` is its deadline in seconds."""

    async def spawn(
        self,
        role: str = "",
        *,
        agent_id: str = "",
        spec: AgentSpec | None = None,
        id_conflict_policy: IdConflictPolicy.ValueType = orchestrator.ID_CONFLICT_POLICY_UNSPECIFIED,
        request_id: str | None = None,
        timeout: float | None = None,
        **fields: Unpack[AgentFields],
    ) -> Agent:
        """Record an agent and return it in state STARTING; it is durable, not started yet.

        The specification is `spec`, with `role` and the other fields given laid over it.
        """
        request = orchestrator.SpawnAgentRequest(
            request_id=new_request_id(request_id), agent_id=agent_id, id_conflict_policy=id_conflict_policy
        )
        if spec is not None:
            request.spec.CopyFrom(spec)
        request.spec.MergeFrom(agent_pb2.AgentSpec(role=role, **fields))  # type: ignore[arg-type] # takes timedelta too
        return (await self._call(self._orchestrator.SpawnAgent, request, timeout)).agent

    async def spawn_many(
        self,
        agents: Iterable[NewAgent],
        *,
        id_conflict_policy: IdConflictPolicy.ValueType = orchestrator.ID_CONFLICT_POLICY_UNSPECIFIED,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Sequence[Agent]:
        """Record several agents, all or none, at most 256; return them in the order given."""
        request = orchestrator.SpawnAgentsRequest(
            request_id=new_request_id(request_id), agents=agents, id_conflict_policy=id_conflict_policy
        )
        return (await self._call(self._orchestrator.SpawnAgents, request, timeout)).agents

    async def get_agent(self, agent_id: str, *, timeout: float | None = None) -> Agent:
        """Return one agent. Raises NotFound."""
        request = orchestrator.GetAgentRequest(agent_id=agent_id)
        return (await self._call(self._orchestrator.GetAgent, request, timeout)).agent

    async def list_agents(
        self,
        *,
        states: Iterable[AgentState.ValueType] = (),
        role: str = "",
        labels: Mapping[str, str] | None = None,
        page_size: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[Agent]:
        """Yield agents by id, page by page; `timeout` is for each page."""
        request = orchestrator.ListAgentsRequest(page_size=page_size, states=states, role=role, labels=labels)
        while True:
            page = await self._call(self._orchestrator.ListAgents, request, timeout)
            for agent in page.agents:
                yield agent
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def update_agent(
        self,
        agent_id: str,
        spec: AgentSpec,
        *,
        revision: int = 0,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Agent:
        """Replace what an agent should be. Raises RevisionMismatch when `revision` is set and not the current one."""
        request = orchestrator.UpdateAgentRequest(
            request_id=new_request_id(request_id), agent_id=agent_id, spec=spec, revision=revision
        )
        return (await self._call(self._orchestrator.UpdateAgent, request, timeout)).agent

    async def shutdown_agent(
        self,
        agent_id: str,
        *,
        reason: str = "",
        grace: float | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Agent:
        """Stop an agent for good; answers at once. `grace`: seconds its held tasks may take, None for its own."""
        request = orchestrator.ShutdownAgentRequest(
            request_id=new_request_id(request_id), agent_id=agent_id, reason=reason
        )
        if grace is not None:
            request.grace.FromNanoseconds(round(grace * 1e9))
        return (await self._call(self._orchestrator.ShutdownAgent, request, timeout)).agent

    async def restart_agent(
        self, agent_id: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> Agent:
        """Start an agent again, a running one after stopping it; answers at once."""
        request = orchestrator.RestartAgentRequest(request_id=new_request_id(request_id), agent_id=agent_id)
        return (await self._call(self._orchestrator.RestartAgent, request, timeout)).agent

    async def sleep_agent(
        self, agent_id: str, *, reason: str = "", request_id: str | None = None, timeout: float | None = None
    ) -> Agent:
        """Put an agent to sleep. Raises FailedPrecondition when it is not in contact."""
        request = orchestrator.SleepAgentRequest(
            request_id=new_request_id(request_id), agent_id=agent_id, reason=reason
        )
        return (await self._call(self._orchestrator.SleepAgent, request, timeout)).agent

    async def wake_agent(self, agent_id: str, *, request_id: str | None = None, timeout: float | None = None) -> Agent:
        """Wake a sleeping agent. Raises FailedPrecondition when it does not sleep."""
        request = orchestrator.WakeAgentRequest(request_id=new_request_id(request_id), agent_id=agent_id)
        return (await self._call(self._orchestrator.WakeAgent, request, timeout)).agent
