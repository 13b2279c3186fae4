"""The loop that assigns: waiting tasks to free slots, in the order of the ready queue."""

from __future__ import annotations

import asyncio

from . import attempts
from .assign import Candidate
from .changes import Committed, Conflicted
from .clock import Clock
from .decide import Decisions, View
from .errors import KernelError
from .index import Index
from .records import Key, Kind
from .replicas import Role
from .reserving import Reserving
from .sessions import SessionState
from .tasks import Task, TaskState

WAVE = 128
"""Tasks assigned in one change set."""

PAUSE = 0.2
"""Seconds to wait after a wave that could not be committed."""


class Dispatcher:
    """Assigns whenever tasks and slots are there; sleeps otherwise, and while another replica has the role."""

    def __init__(self, decisions: Decisions, index: Index, clock: Clock, role: Role) -> None:
        self._role = role
        self._decisions = decisions
        self._memory = decisions.memory
        self._index = index
        self._pool = index.pool
        self._clock = clock
        self._woken = asyncio.Event()
        self.assigned = 0
        self.failing = ""
        index.wake_dispatcher = self._woken.set

    async def run(self) -> None:
        """Assign until cancelled. Failures of the store delay it and are told in `failing`."""
        while True:
            if not self._role.held:
                await self._role.acquire()
                # Whatever others left open.
                self._pool.reopen()
                self._woken.set()
            await self._woken.wait()
            self._woken.clear()
            while self._pool.open and self._role.held:
                # One turn of the loop gathers what is arriving at this moment into the same wave.
                await asyncio.sleep(0)
                if not await self.wave():
                    await self._clock.sleep(PAUSE)

    async def wave(self) -> bool:
        """Assign up to `WAVE` tasks in one change set.

        False when that could not be committed (nothing changed then).
        """
        view = View(self._memory, {})
        chosen = self._fill(view)
        if not chosen:
            return True
        try:
            self._role.check(view)
            outcome = await self._decisions.commit(view.changes)
            if isinstance(outcome, Conflicted):
                await self._decisions.refresh(outcome.refs)
        except KernelError as error:
            self.failing = error.message
            self._put_back(chosen)
            return False
        self.failing = ""
        if not isinstance(outcome, Committed):
            self._put_back(chosen)
            return False
        self.assigned += len(chosen)
        return True

    def _fill(self, view: View) -> list[Key]:
        chosen: list[Key] = []
        now = self._clock.now()
        with Reserving(self._pool, WAVE) as reserving:
            while len(chosen) < WAVE and (queue := self._pool.next_queue()) is not None:
                head = queue.head()
                task = self._memory.task(head[1]) if head else None
                if task is None or task.state is not TaskState.QUEUED:
                    queue.take()
                    continue
                agent = reserving.choose(queue.need, task.spec)
                if agent is None:
                    self._pool.close(queue)
                    continue
                queue.take()
                chosen.append(task.key)
                if agent.key not in reserving:
                    self._check(view, agent)
                reserving.take(agent)
                step = attempts.assign(task, agent.key[1], agent.session_id, now=now, floor=view.epoch_floor)
                view.put(step[0], *step[1])
        return chosen

    def _check(self, view: View, agent: Candidate) -> None:
        """Let the wave stand only if an agent that is given tasks is then still there as it is now."""
        record, session = view.find_agent(agent.key), view.find_session((agent.key[0], agent.session_id))
        if record is not None and session is not None and session.state is SessionState.OPEN:
            view.check(record)
            view.check(session)
            for ending in self._index.ending(agent.key, WAVE):
                view.check(ending)

    def _put_back(self, chosen: list[Key]) -> None:
        for key in chosen:
            task = self._memory.latest((Kind.TASK, key))
            if isinstance(task, Task) and task.state is TaskState.QUEUED:
                self._pool.remove_task(key)
                self._pool.put_task(task, self._clock.now())
        # Queues were closed because of slots that this wave would have taken.
        self._pool.reopen()
        self._woken.set()
