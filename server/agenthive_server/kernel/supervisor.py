"""Drives agents to the wanted state: places them on runners, starts them again, and ends stops that nobody confirms."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from . import agent_transitions as transitions
from .agents import REMOTE, Agent, AgentState, Wanted
from .clock import Clock
from .decide import Decisions, View
from .errors import KernelError
from .index import Index
from .records import Key
from .replicas import Role
from .sessions import Session, SessionState

BATCH = 100

PAUSE = 0.2
"""Seconds to wait after a change that could not be committed."""

_log = logging.getLogger(__name__)


class Supervisor:
    """Looks at agents whose record, runner or clock has changed."""

    def __init__(self, decisions: Decisions, index: Index, clock: Clock, role: Role) -> None:
        self._role = role
        self._decisions = decisions
        self._memory = decisions.memory
        self._index = index
        self._clock = clock
        self._woken = asyncio.Event()
        self._unplaced: dict[Key, None] = {}
        # What a place for an agent depends on: the runners in contact and how many agents each has.
        self._places: list[tuple[str, int, int]] = []
        index.wake_supervisor = self._woken.set

    async def run(self) -> None:
        """Drive agents until cancelled; what fails is tried again."""
        while True:
            if not self._role.held:
                await self._role.acquire()
                self._index.unsettled_agents.update(dict.fromkeys(agent.key for agent in self._memory.all(Agent)))
            try:
                await self.look()
            except KernelError as error:
                _log.warning("supervising is delayed", extra={"reason": error.reason})
                await self._clock.sleep(PAUSE)
            await self._next()

    async def _next(self) -> None:
        """Wait for a change, at most a quarter of a second, which is also the resolution of the clocks."""
        self._woken.clear()
        if self._index.unsettled_agents:
            return
        await self._clock.sleep(0.25 if not self._woken.is_set() else 0.0)

    async def look(self) -> None:
        """Look once at every agent that has changed or whose time has come."""
        places = [(s.id, s.epoch, len(self._index.agents_by_runner.get(s.key, ()))) for s in self._open_runners()]
        if places != self._places:
            self._places = places
            self._index.unsettled_agents.update(self._unplaced)
        self._index.unsettled_agents.update(dict.fromkeys(self._index.agent_timers.due(self._clock.now())))
        todo = list(self._index.unsettled_agents)
        for start in range(0, len(todo), BATCH):
            batch = todo[start : start + BATCH]
            for key in batch:
                self._index.unsettled_agents.pop(key, None)
            try:
                await self._decisions.run(partial(self._drive_all, batch))
            except KernelError:
                self._index.unsettled_agents.update(dict.fromkeys(batch))
                raise

    def _drive_all(self, batch: Sequence[Key], view: View) -> None:
        load: dict[str, int] = {}
        for key in batch:
            agent = view.find_agent(key)
            self._unplaced.pop(key, None)
            if agent is not None:
                self._drive(view, agent, load)

    def _drive(self, view: View, agent: Agent, load: dict[str, int]) -> None:
        now = self._clock.now()
        match agent.state:
            case AgentState.STARTING | AgentState.WAKING if agent.spec.driver != REMOTE:
                self._start(view, agent, load, now)
            case AgentState.DRAINING:
                if now >= agent.stop_deadline > 0 or not self._in_contact(agent):
                    step = transitions.stopped(agent, agent.reason, now=now)
                    view.put(step[0], *step[1])
            case AgentState.SLEEPING if agent.stop_deadline and now >= agent.stop_deadline:
                view.put(transitions.asleep(agent, now=now)[0])
            case _:
                pass

    def _in_contact(self, agent: Agent) -> bool:
        names = (agent.session_id, agent.runner_session_id)
        return any(name and self._memory.session((agent.namespace, name)) is not None for name in names)

    def _start(self, view: View, agent: Agent, load: dict[str, int], now: float) -> None:
        if agent.wanted is not Wanted.RUNNING or agent.next_start_time > now:
            return
        runner = self._memory.session((agent.namespace, agent.runner_session_id)) if agent.runner_session_id else None
        if runner is not None:
            if agent.start_deadline and now >= agent.start_deadline:
                reason = f"not ready within {agent.spec.start_timeout:g} s"
                step = transitions.ended(agent, AgentState.FAILED, reason, now=now)
                # Its runner is told by this fact, wherever it is connected: what it started must end.
                step[1][0].session_id = runner.id
                view.put(step[0], *step[1])
            return
        chosen = self._choose(agent, load)
        if chosen is None:
            self._unplaced[agent.key] = None
            return
        load[chosen.id] = load.get(chosen.id, 0) + 1
        view.check(chosen)
        step = transitions.place(agent, chosen.id, now=now)
        view.put(step[0], *step[1])

    def runners(self) -> list[Session]:
        """Return the sessions of runners, in contact or not."""
        return [session for key in self._index.runners if (session := self._memory.session(key)) is not None]

    def _open_runners(self) -> list[Session]:
        return [session for session in self.runners() if session.state is SessionState.OPEN and not session.draining]

    def _choose(self, agent: Agent, load: dict[str, int]) -> Session | None:
        """Return the runner with the fewest agents among those that fit."""
        fitting: list[tuple[int, str, Session]] = []
        for session in self._open_runners():
            capacity = session.runner
            if capacity is None or session.namespace != agent.namespace or agent.spec.driver not in capacity.drivers:
                continue
            if any(session.labels.get(k) != v for k, v in agent.spec.runner_labels.items()):
                continue
            count = len(self._index.agents_by_runner.get(session.key, ())) + load.get(session.id, 0)
            if not capacity.maximum_agents or count < capacity.maximum_agents:
                fitting.append((count, session.id, session))
        return min(fitting, key=lambda found: found[:2])[2] if fitting else None
