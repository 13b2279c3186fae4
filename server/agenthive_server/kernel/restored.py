"""What becomes of the records of a hive that is restored from a backup: pure functions, for nothing runs then.

A restored backup is a new log. Everybody the lost hive had to do with may still be there (workers that compute, runners
with agents, callers that repeat their calls) and knows of things that happened after the backup. So no lease, session
or start that the lost hive can have given may be taken for one of the new log: leases are void, sessions are over, and
epochs go on beyond all the lost hive can have reached. A log that was restored at a time gives epochs greater than that
time in microseconds. For an epoch of another log of the same origin to be as great, one task would have had to be
assigned a million times a second from its first day, or the clock of the machine that restores to be behind the last
restore. The numbers stay below 2^53, so that every reader of JSON reads them exactly.
"""

from __future__ import annotations

from typing import Final

from . import agent_transitions, attempts
from .agent_transitions import AgentStep
from .agents import OVER, REMOTE, Agent, AgentState, RestartMode
from .attempts import Step
from .events import Event, EventType
from .records import CursorRecord, Key, RoleRecord
from .sessions import Session
from .tasks import Task

EPOCHS: Final[Key] = ("", "kernel/epochs")
"""The key of the `CursorRecord` in which a restored log keeps the epoch that its leases and starts come after."""

REASON: Final = "RESTORED"

TEXT: Final = "the hive was restored from a backup"


def next_floor(known: CursorRecord | None, now: float) -> int:
    """Return the epoch that the leases and starts of a log restored now come after."""
    return max(int(now * 1_000_000), known.sequence + 1 if known else 0)


def end_session(session: Session) -> Event:
    """Return the fact that a session is over; its record goes."""
    return Event(
        type=EventType.SESSION_ENDED,
        namespace=session.namespace,
        session_id=session.id,
        labels=session.labels,
        data={"reason": TEXT},
    )


def void_lease(task: Task, *, now: float) -> Step | None:
    """Return a held task as one that nobody holds: back in the queue, its attempt not counted. None for others."""
    return attempts.give_back(task, REASON, now=now) if task.lease is not None else None


def release_role(role: RoleRecord, *, floor: int) -> RoleRecord:
    """Return a role that anybody may take."""
    return role.evolve(holder="", epoch=max(role.epoch, floor), expire_time=0.0)


def begin_anew(agent: Agent, *, floor: int, now: float) -> AgentStep:
    """Return an agent as one whose process nobody knows of: started again by its policy, not counted as a restart.

    A remote one is LOST until its worker says hello again. Starts go on beyond `floor`.
    """
    agent = agent.evolve(start_epoch=max(agent.start_epoch, floor))
    gone = agent.evolve(session_id="", runner_session_id="", start_deadline=0.0)
    match agent.state:
        case AgentState.DRAINING:
            return agent_transitions.stopped(agent, agent.reason or TEXT, now=now)
        case AgentState.SLEEPING:
            return gone.evolve(stop_deadline=0.0), ()
        case AgentState.STARTING:
            return gone, ()
        case AgentState.WAKING if agent.spec.driver != REMOTE:
            return gone, ()
        case state if state in OVER:
            return gone, ()
        case _:
            return _lost(agent, now)


def _lost(agent: Agent, now: float) -> AgentStep:
    if agent.spec.driver == REMOTE or agent.spec.restart.mode is RestartMode.NEVER:
        return agent_transitions.ended(agent, AgentState.LOST, TEXT, now=now)
    return agent_transitions.start_anew(agent, TEXT, now=now, at=now)
