"""The state machine of an agent: pure functions from an agent to the changed agent and the facts that tell of it."""

from __future__ import annotations

from typing import Any

from .agents import OVER, REMOTE, Agent, AgentSpec, AgentState, RestartMode, Wanted
from .errors import Refused
from .events import Event, EventType

AgentStep = tuple[Agent, tuple[Event, ...]]
"""The agent as it becomes and the facts that tell of it."""

STOP_MARGIN = 15.0
"""Seconds beyond its grace after which a stop nobody confirmed is taken as done: SIGTERM and SIGKILL are over then."""


def agent_event(kind: EventType, agent: Agent, **data: Any) -> Event:
    """Return a fact about an agent."""
    return Event(
        type=kind,
        namespace=agent.namespace,
        agent_id=agent.id,
        session_id=agent.session_id,
        role=agent.spec.role,
        labels=agent.spec.labels,
        data=data,
    )


def illegal(agent: Agent, verb: str) -> Refused:
    """Return the error for a transition the state does not allow."""
    return Refused(
        f"an agent in {agent.state} cannot be {verb}", metadata={"agent_id": agent.id, "state": str(agent.state)}
    )


def spawn(namespace: str, agent_id: str, spec: AgentSpec, *, now: float, floor: int = 0) -> AgentStep:
    """Make an agent: STARTING, with a start epoch beyond `floor`."""
    agent = Agent(namespace=namespace, id=agent_id, spec=spec, start_epoch=floor + 1, create_time=now, update_time=now)
    return agent, (agent_event(EventType.AGENT_SPAWNED, agent, role=spec.role, driver=spec.driver),)


def place(agent: Agent, runner_session_id: str, *, now: float) -> AgentStep:
    """Choose the runner that is to start it; its start clock begins."""
    placed = agent.evolve(
        runner_session_id=runner_session_id,
        start_deadline=now + agent.spec.start_timeout,
        next_start_time=0.0,
        reason="",
        update_time=now,
    )
    return placed, (agent_event(EventType.AGENT_PLACED, placed, runner_session_id=runner_session_id),)


def ready(agent: Agent, session_id: str, *, now: float) -> AgentStep:
    """Note that it is in contact and takes tasks. One that is on its way out stays so, but in this session."""
    if agent.state in (AgentState.DRAINING, AgentState.SLEEPING) or agent.wanted is not Wanted.RUNNING:
        return agent.evolve(session_id=session_id, update_time=now), ()
    if agent.state is AgentState.READY and agent.session_id == session_id:
        return agent, ()
    there = agent.evolve(
        state=AgentState.READY,
        reason="",
        session_id=session_id,
        start_deadline=0.0,
        next_start_time=0.0,
        unanswered=0,
        update_time=now,
    )
    return there, (agent_event(EventType.AGENT_READY, there, session_id=session_id),)


def update(agent: Agent, spec: AgentSpec, *, now: float) -> AgentStep:
    """Change what it should be."""
    changed = agent.evolve(spec=spec, update_time=now)
    return changed, (agent_event(EventType.AGENT_UPDATED, changed, revision=agent.revision + 1),)


def shut_down(agent: Agent, reason: str, grace: float | None, *, now: float, again: bool = False) -> AgentStep:
    """Begin to stop it for good, or (`again`) to start it anew.

    An agent that is STOPPED, or not started, stops at once.
    """
    if agent.state is AgentState.STOPPED:
        return agent, ()
    wanted = Wanted.RUNNING if again else Wanted.STOPPED
    started = bool(agent.session_id or agent.runner_session_id)
    if not started or agent.state in OVER or (agent.state is AgentState.SLEEPING and not agent.session_id):
        return stopped(agent.evolve(wanted=wanted, start_again=again), reason, now=now)
    span = agent.spec.stop_grace if grace is None else grace
    draining = agent.evolve(
        state=AgentState.DRAINING,
        reason=reason,
        wanted=wanted,
        start_again=again,
        start_deadline=0.0,
        next_start_time=0.0,
        stop_deadline=now + span + STOP_MARGIN,
        update_time=now,
    )
    return draining, (agent_event(EventType.AGENT_DRAINING, draining, reason=reason),)


def stopped(agent: Agent, reason: str, *, now: float) -> AgentStep:
    """Note that it has stopped; one that is to start again does."""
    gone = _gone(agent, AgentState.STOPPED, reason, now)
    fact = agent_event(EventType.AGENT_STOPPED, gone, reason=reason)
    if not agent.start_again:
        return gone.evolve(wanted=Wanted.STOPPED), (fact,)
    anew, facts = start_anew(gone, "restart requested", now=now, at=now)
    return anew, (fact, *facts)


def _gone(agent: Agent, state: AgentState, reason: str, now: float) -> Agent:
    return agent.evolve(
        state=state,
        reason=reason,
        session_id="",
        runner_session_id="",
        start_deadline=0.0,
        next_start_time=0.0,
        stop_deadline=0.0,
        unanswered=0,
        update_time=now,
    )


def start_anew(agent: Agent, reason: str, *, now: float, at: float, counted: bool = False) -> AgentStep:
    """Begin another start at a time: STARTING with the next start epoch."""
    window = agent.spec.restart.window
    restarts = tuple(t for t in agent.restarts if t > now - window)
    anew = _gone(agent, AgentState.STARTING, reason, now).evolve(
        wanted=Wanted.RUNNING,
        start_again=False,
        start_epoch=agent.start_epoch + 1,
        restarts=(*restarts, now) if counted else restarts,
        next_start_time=at if agent.spec.driver != REMOTE else 0.0,
    )
    fact = agent_event(EventType.AGENT_RESTARTING, anew, restart_count=len(anew.restarts), start_time=at, reason=reason)
    return anew, (fact,)


def ended(agent: Agent, state: AgentState, reason: str, *, now: float, exit_code: int = 0) -> AgentStep:
    """Note that it ended by itself (STOPPED, FAILED) or was lost (LOST), and apply the restart policy."""
    if agent.state is AgentState.DRAINING or agent.wanted is Wanted.STOPPED:
        return stopped(agent, agent.reason or reason, now=now)
    if agent.state is AgentState.SLEEPING and state is not AgentState.FAILED:
        # Its process is gone, as wanted.
        return asleep(agent, now=now)[0].evolve(session_id=""), ()
    gone = _gone(agent, state, reason, now)
    kind = {
        AgentState.FAILED: EventType.AGENT_FAILED,
        AgentState.LOST: EventType.AGENT_LOST,
        AgentState.STOPPED: EventType.AGENT_STOPPED,
    }[state]
    extra = {"exit_code": exit_code} if state is AgentState.FAILED else {}
    fact = agent_event(kind, gone, reason=reason, **extra)
    policy = agent.spec.restart
    again = policy.mode is RestartMode.ALWAYS or (
        policy.mode is RestartMode.ON_FAILURE and state is not AgentState.STOPPED
    )
    recent = [t for t in agent.restarts if t > now - policy.window]
    if agent.spec.driver == REMOTE or not again:
        return gone, (fact,)
    if len(recent) >= policy.maximum_restarts:
        return gone.evolve(state=AgentState.FAILED, reason=f"{reason}; restarted too often"), (fact,)
    wait = min(policy.maximum_interval, policy.initial_interval * policy.backoff_coefficient ** len(recent))
    anew, facts = start_anew(gone, reason, now=now, at=now + wait, counted=True)
    return anew, (fact, *facts)


def sleep(agent: Agent, reason: str, *, now: float) -> AgentStep:
    """Begin to put it to sleep. One that sleeps already stays so."""
    if agent.state is AgentState.SLEEPING:
        return agent, ()
    if agent.state is not AgentState.READY:
        raise illegal(agent, "put to sleep")
    going = agent.evolve(
        state=AgentState.SLEEPING,
        reason=reason,
        wanted=Wanted.ASLEEP,
        stop_deadline=now + agent.spec.stop_grace + STOP_MARGIN,
        update_time=now,
    )
    return going, (agent_event(EventType.AGENT_SLEEPING, going, reason=reason),)


def asleep(agent: Agent, *, now: float) -> AgentStep:
    """Note that it sleeps and its process is gone where the driver can do that. One on another way stays on it."""
    if agent.state is not AgentState.SLEEPING or not agent.stop_deadline:
        return agent, ()
    return agent.evolve(stop_deadline=0.0, start_deadline=0.0, update_time=now), ()


def wake(agent: Agent, *, now: float) -> AgentStep:
    """Begin to wake it."""
    if agent.state is AgentState.WAKING:
        return agent, ()
    if agent.state is not AgentState.SLEEPING:
        raise illegal(agent, "woken")
    waking = agent.evolve(
        state=AgentState.WAKING,
        reason="",
        wanted=Wanted.RUNNING,
        start_epoch=agent.start_epoch + 1,
        stop_deadline=0.0,
        start_deadline=now + agent.spec.start_timeout if agent.spec.driver != REMOTE else 0.0,
        update_time=now,
    )
    return waking, (agent_event(EventType.AGENT_WAKING, waking),)
