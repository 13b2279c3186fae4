"""What happens to the hive: an agent is killed in the middle of a task, and a task that takes too long is canceled."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

from agenthive import Client, EventStream
from agenthive.v1.event_pb2 import Event
from agenthive.v1.orchestrator_service_pb2 import EVENT_CLASS_ALL, STREAM_START_EARLIEST

from showcase.picture import Picture
from showcase.plan import CANCELED, MOVED, Plan
from showcase.screen import Screen

LIMIT_SECONDS = 180.0
REFRESH_SECONDS = 0.1
KILL_FROM = 0.2


class TookTooLong(Exception):
    """The tasks did not end in time: a sentence."""


@dataclass
class Story:
    """Delegates the plan, follows the events, and intervenes twice."""

    client: Client
    plan: Plan
    picture: Picture
    screen: Screen
    killed_pid: int = 0
    killed_agent: str = ""
    canceled: bool = False

    async def run(self) -> None:
        """Return when every task has ended. Raises `TookTooLong`."""
        drawing = asyncio.create_task(self._draw())
        # Of every namespace: only then the client can tell, by the numbers, that nothing is missing.
        stream = self.client.events(start=STREAM_START_EARLIEST, event_class=EVENT_CLASS_ALL, all_namespaces=True)
        try:
            async with asyncio.timeout(LIMIT_SECONDS), stream as events:
                await self._follow(events, until=self._ready)
                await self.client.delegate_many(self.plan.tasks.values())
                numbers = f"{len(self.plan.tasks)} tasks in one call, with {self.plan.dependencies} dependencies"
                self.screen.say(f"delegated {numbers}")
                await self._follow(events, until=lambda: self.picture.over)
        except TimeoutError:
            waiting = ", ".join(f"{task.task_id} {task.state}" for task in self.picture.tasks.values() if not task.over)
            raise TookTooLong(f"not done after {LIMIT_SECONDS:.0f} s: {waiting}") from None
        finally:
            drawing.cancel()

    def _ready(self) -> bool:
        """Whether every agent is there; the tasks would wait for them, but so it is nicer to watch."""
        agents = self.picture.agents
        return "summarist-1" in agents and all(agent.state == "READY" for agent in agents.values())

    async def _follow(self, events: EventStream, until: Callable[[], bool]) -> None:
        async for event in events:
            self.screen.event(self.picture.take(event))
            await self._intervene(event)
            if until():
                return

    async def _intervene(self, event: Event) -> None:
        if not event.HasField("task_progressed"):
            return
        told = re.match(r"pid (\d+):", event.task_progressed.text)
        if event.task_id == MOVED and told and not self.killed_pid and event.task_progressed.fraction > KILL_FROM:
            self.killed_pid, self.killed_agent = int(told[1]), event.agent_id
            self.screen.say(f"kill -9 {self.killed_pid}: {self.killed_agent} dies in the middle of {MOVED}", "bold red")
            os.kill(self.killed_pid, signal.SIGKILL)
        elif event.task_id == CANCELED and not self.canceled:
            self.canceled = True
            self.screen.say(f"{CANCELED} takes too long: CancelTask", "bold yellow")
            await self.client.cancel_task(CANCELED, reason="it takes too long")

    async def _draw(self) -> None:
        while True:
            self.screen.refresh()
            await asyncio.sleep(REFRESH_SECONDS)
