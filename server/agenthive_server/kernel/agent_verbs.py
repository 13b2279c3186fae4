"""The verbs on agents that callers use: spawn, update, shut down, restart, sleep, wake; and reading them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from . import agent_transitions as transitions
from .agent_transitions import AgentStep
from .agents import OVER, Agent, AgentSpec, AgentState
from .clock import Clock
from .decide import Caller, Decisions, View, recall, remember
from .errors import BadRequest, Exists, agent_not_found, revision_mismatch
from .hooks import Hooks, spawned_as
from .index import Index
from .ports import NewId, Query, Store
from .records import Kind
from .sessions import Session, SessionState


@dataclass(frozen=True, kw_only=True)
class NewAgent:
    """An agent to be spawned; an empty id lets the kernel make one."""

    id: str = ""
    spec: AgentSpec


@dataclass(frozen=True, slots=True)
class ShownAgent:
    """What callers see beside the record: the state's name in the protos, open leases, context usage from 0 to 1."""

    state: str
    open_leases: int
    context_usage: float


class AgentVerbs:
    """Every mutating method answers when what it changed is durable."""

    def __init__(
        self, decisions: Decisions, store: Store, index: Index, clock: Clock, new_id: NewId, hooks: Hooks
    ) -> None:
        self._hooks = hooks
        self._decisions = decisions
        self._memory = decisions.memory
        self._store = store
        self._index = index
        self._clock = clock
        self._new_id = new_id

    async def spawn(self, caller: Caller, agents: Sequence[NewAgent], *, use_existing: bool = False) -> list[Agent]:
        """Record agents in state STARTING, all or none. Raises `Exists` unless `use_existing`."""
        named = {new.id or self._new_id(): new.spec for new in agents}
        if len(named) != len(agents):
            raise BadRequest("two agents of this call have the same agent_id", field="agents")

        def decide(view: View) -> list[Agent]:
            known = recall(view, caller)
            if known is not None:
                return [view.agent(caller.namespace, agent_id) for agent_id in known.refs]
            made: list[Agent] = []
            before = self._hooks.current.before_spawn
            for agent_id, spec in named.items():
                existing = view.find_agent((caller.namespace, agent_id))
                if existing is None:
                    if before:
                        now = self._clock.now()
                        spec = spawned_as(before, view, caller.namespace, caller.principal, agent_id, spec, now)
                    now, floor = self._clock.now(), view.epoch_floor
                    agent, facts = transitions.spawn(caller.namespace, agent_id, spec, now=now, floor=floor)
                    made.append(view.put(agent, *facts))
                elif use_existing:
                    view.check(existing)
                    made.append(existing)
                else:
                    raise Exists(
                        f"agent_id {agent_id!r} is in use", reason="AGENT_EXISTS", metadata={"agent_id": agent_id}
                    )
            remember(view, caller, list(named), self._clock.now())
            return made

        return await self._decisions.run(decide)

    async def get(self, namespace: str, agent_id: str) -> Agent:
        """Return an agent; raises `NotFound`."""
        await self._decisions.fresh()
        agent = self._memory.committed((Kind.AGENT, (namespace, agent_id)))
        if agent is None:
            raise agent_not_found(agent_id)
        return cast(Agent, agent)

    async def list(self, query: Query) -> list[Agent]:
        """Return a page of agents by id. Shown states (IDLE, BUSY, SUSPECT) may be asked for like stored ones."""
        await self._decisions.fresh()
        after = query.after[1] if query.after else ""
        found = [
            cast(Agent, record)
            for ref in self._memory.refs(Kind.AGENT, query.namespace)
            if ref[1][1] > after and (record := self._memory.committed(ref)) is not None
        ]
        page: list[Agent] = []
        for agent in sorted(found, key=lambda a: a.id):
            if len(page) >= query.limit:
                break
            if self._wanted(agent, query):
                page.append(agent)
        return page

    def _wanted(self, agent: Agent, query: Query) -> bool:
        spec = agent.spec
        return (
            (not query.role or spec.role == query.role)
            and all(spec.labels.get(k) == v for k, v in query.labels.items())
            and (not query.states or self.shown(agent).state in query.states)
        )

    def shown(self, agent: Agent) -> ShownAgent:
        """Return what follows from leases and session."""
        session = self._memory.session((agent.namespace, agent.session_id))
        return self.shown_with(agent, session, self._index.open_leases(agent.key))

    def shown_with(self, agent: Agent, session: Session | None, leases: int) -> ShownAgent:
        """Return what follows from a session, and from so many open leases."""
        usage = self._index.context_usage.get(agent.key, 0.0)
        state = str(agent.state)
        if agent.state is AgentState.READY:
            if session is None or session.state is not SessionState.OPEN:
                state = "SUSPECT"
            else:
                state = "BUSY" if leases >= agent.spec.slots else "IDLE"
        return ShownAgent(state, leases, usage)

    async def update(self, caller: Caller, agent_id: str, spec: AgentSpec, revision: int) -> Agent:
        """Change what an agent should be; its driver stays.

        Raises `Conflict` when the revision is not the current one.
        """

        def change(agent: Agent) -> AgentStep:
            if revision and revision != agent.revision:
                raise revision_mismatch(revision, agent.revision)
            return transitions.update(agent, spec, now=self._clock.now())

        return await self._change(caller, agent_id, change)

    async def shutdown(self, caller: Caller, agent_id: str, reason: str, grace: float | None) -> Agent:
        """Stop an agent for good; held tasks may finish within its grace (seconds; None: its own)."""
        return await self._change(
            caller, agent_id, lambda a: transitions.shut_down(a, reason, grace, now=self._clock.now())
        )

    async def restart(self, caller: Caller, agent_id: str) -> Agent:
        """Start an agent again, after stopping it where it runs."""

        def change(agent: Agent) -> AgentStep:
            now = self._clock.now()
            if agent.state in OVER:
                return transitions.start_anew(agent, "restart requested", now=now, at=now)
            return transitions.shut_down(agent, "restart requested", None, now=now, again=True)

        return await self._change(caller, agent_id, change)

    async def sleep(self, caller: Caller, agent_id: str, reason: str) -> Agent:
        """Put an agent to sleep."""
        return await self._change(caller, agent_id, lambda a: transitions.sleep(a, reason, now=self._clock.now()))

    async def wake(self, caller: Caller, agent_id: str) -> Agent:
        """Wake a sleeping agent."""
        return await self._change(caller, agent_id, lambda a: transitions.wake(a, now=self._clock.now()))

    async def _change(self, caller: Caller, agent_id: str, change: Callable[[Agent], AgentStep]) -> Agent:
        def decide(view: View) -> Agent:
            agent = view.agent(caller.namespace, agent_id)
            if recall(view, caller) is not None:
                return agent
            changed, facts = change(agent)
            if facts or changed is not agent:
                changed = view.put(changed, *facts)
            else:
                # That there is nothing to do is a claim about the agent, which this replica may see too late.
                view.check(agent)
            remember(view, caller, [agent_id], self._clock.now())
            return changed

        return await self._decisions.run(decide)
