"""The host of a runner's session: turns control items into calls of drivers, and what these say into worker items.

Whatever takes time is a job, so that one control item never waits for another.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agenthive.v1 import worker_service_pb2

from agenthive_server.runner.agents import Agents, HostedAgent
from agenthive_server.runner.attempts import Fate, Link, Outlet, RunningAttempt
from agenthive_server.runner.driver import DRIVERS, TaskKey
from agenthive_server.runner.jobs import Jobs
from agenthive_server.runner.launch import SEARCH_PATH, Launcher
from agenthive_server.runner.ledger import Ledger
from agenthive_server.runner.payloads import seconds
from agenthive_server.runner.tree import PATIENCE

CANCEL_GRACE = 10.0
NEWS_INTERVAL = 1.0
_FINISHED_KEPT = 10_000
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """What a runner is told when it starts."""

    data_dir: Path
    """Where its folder `runner` lies: ledger and work folders. One runner at a time."""
    labels: Mapping[str, str] = field(default_factory=dict)
    maximum_agents: int = 0
    display_name: str = ""
    join_token: str = field(default="", repr=False)
    """What lets it in for the first time, where the server asks for it."""
    credential_file: Path | None = None
    """Where what it earns by that is kept over restarts."""
    search_path: str = SEARCH_PATH
    """PATH of the agents, and where their commands are looked for."""
    drivers: Mapping[str, str] = field(default_factory=lambda: dict(DRIVERS))
    """Names and where to import them from: `module:class`, called with the launcher."""
    orphan_timeout: float = 300.0
    """Seconds without a server after which it stops its agents and ends."""
    stop_grace: float = 10.0
    """Seconds its agents have to end by themselves when the runner stops."""
    patience: float = PATIENCE
    """Seconds between SIGTERM and SIGKILL."""


class RunnerHost:
    """Host of one session. Made before the session; `attach` joins the two."""

    def __init__(self, config: RunnerConfig, ledger: Ledger, launcher: Launcher) -> None:
        self._config = config
        self._ledger = ledger
        self._jobs = Jobs()
        self._launcher = launcher
        self._agents = Agents(ledger, launcher, dict(config.drivers), self._jobs, self._report)
        self._attempts: dict[TaskKey, RunningAttempt] = {}
        self._finished: dict[TaskKey, None] = {}
        self._leaving = False
        self._news_timer: asyncio.TimerHandle | None = None
        self._last_beat = float("-inf")

    def attach(self, link: Link) -> None:
        """Speak through this session."""
        self._link = link
        self._outlet = Outlet(link)

    def hello(self) -> worker_service_pb2.Hello:
        """Drivers that work here, the machine, the agents that run and the leases they hold."""
        return worker_service_pb2.Hello(
            agents=[worker_service_pb2.HostedAgent(agent_id=each.order.agent_id) for each in self._agents.running()],
            leases=[
                worker_service_pb2.HeldLease(task_id=key.task_id, lease_epoch=key.lease_epoch)
                for key, attempt in self._attempts.items()
                if attempt.fate != Fate.NOTHING
            ],
            runner=worker_service_pb2.RunnerCapacity(
                drivers=self._agents.working_drivers(),
                maximum_agents=self._config.maximum_agents,
                cpu_cores=len(os.sched_getaffinity(0)),
                memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            ),
            labels=self._config.labels,
            software="agenthive runner",
            join_token=self._config.join_token,
            display_name=self._config.display_name,
            replaces_session_id=self._ledger.former_session,
        )

    def heartbeat(self) -> worker_service_pb2.Heartbeat:
        """All held tasks, with what is new."""
        self._last_beat = asyncio.get_running_loop().time()
        self._launcher.strays()
        held = [attempt for attempt in self._attempts.values() if attempt.fate != Fate.NOTHING]
        return worker_service_pb2.Heartbeat(tasks=[attempt.take_beat() for attempt in held])

    async def welcome(self, welcome: worker_service_pb2.Welcome) -> None:
        """Stop every attempt whose lease is over."""
        self._ledger.former_session = ""
        self._ledger.note_session(welcome.session_id)
        valid = {TaskKey(lease.task_id, lease.lease_epoch) for lease in welcome.valid_leases}
        for key, attempt in list(self._attempts.items()):
            if key not in valid:
                self._end_attempt(attempt, Fate.NOTHING)

    async def contact_lost(self, seconds: float) -> None:
        """Stop the exclusive attempts, without much grace: another may begin elsewhere."""
        for attempt in list(self._attempts.values()):
            if attempt.task.spec.exclusive:
                self._end_attempt(attempt, Fate.HAND_BACK, 0.0)

    async def control(self, item: worker_service_pb2.ControlItem) -> None:
        """Do what the server says; what takes time goes on in the background."""
        match item.WhichOneof("item"):
            case "assignment":
                self._assign(item.assignment)
            case "cancel":
                self._cancel(item.cancel)
            case "lease_revoked":
                key = TaskKey(item.lease_revoked.task_id, item.lease_revoked.lease_epoch)
                if attempt := self._attempts.get(key):
                    self._end_attempt(attempt, Fate.NOTHING)
            case "pause":
                self._pause(item.pause)
            case "start_agent":
                self._start(item.start_agent)
            case "stop_agent":
                self._agents.stop(item.stop_agent)
            case "messages":
                self._jobs.add(self._deliver(item.messages))  # after the task they may steer
            case "refused":
                refused = item.refused
                _logger.warning("item refused: %s", refused.message, extra={"task_id": refused.task_id})
            case _:
                pass

    def _start(self, order: worker_service_pb2.StartAgent) -> None:
        if not self._leaving:
            self._agents.start(order)

    def _assign(self, task: worker_service_pb2.TaskAssignment) -> None:
        key = TaskKey(task.task_id, task.lease_epoch)
        agent = self._agents.hosted.get(task.agent_id)
        if key in self._attempts or key in self._finished:
            return
        if task.repeated:
            self._send(
                hand_back=worker_service_pb2.TaskHandBack(
                    task_id=key.task_id, lease_epoch=key.lease_epoch, reason="The runner does not hold it any more."
                )
            )
        elif self._leaving or agent is None or not agent.ready:
            self._send(
                reject=worker_service_pb2.TaskReject(
                    task_id=key.task_id, lease_epoch=key.lease_epoch, reason="The agent does not run here."
                )
            )
        else:
            self._send(accept=worker_service_pb2.TaskAccept(task_id=key.task_id, lease_epoch=key.lease_epoch))
            attempt = RunningAttempt(task, self._link, self._outlet, self._news)
            earlier = [other for each, other in self._attempts.items() if each.task_id == key.task_id]
            self._attempts[key] = agent.attempts[key] = attempt
            self._jobs.add(self._run_attempt(agent, attempt, earlier))

    async def _run_attempt(self, agent: HostedAgent, attempt: RunningAttempt, earlier: list[RunningAttempt]) -> None:
        try:
            for other in earlier:
                self._end_attempt(other, Fate.NOTHING)
                await other.done.wait()
            assert agent.driver
            assert agent.handle
            await attempt.run(agent.driver, agent.handle)
        finally:
            attempt.done.set()
            self._attempts.pop(attempt.key, None)
            agent.attempts.pop(attempt.key, None)
            self._finished[attempt.key] = None
            if len(self._finished) > _FINISHED_KEPT:
                del self._finished[next(iter(self._finished))]

    def _cancel(self, cancel: worker_service_pb2.TaskCancel) -> None:
        key = TaskKey(cancel.task_id, cancel.lease_epoch)
        if attempt := self._attempts.get(key):
            self._end_attempt(attempt, Fate.CANCEL, seconds(cancel.grace, CANCEL_GRACE))
        elif key not in self._finished:
            self._send(
                result=worker_service_pb2.TaskResult(
                    task_id=key.task_id, lease_epoch=key.lease_epoch, canceled="It does not run here."
                )
            )

    def _end_attempt(self, attempt: RunningAttempt, fate: Fate, grace: float = CANCEL_GRACE) -> None:
        attempt.fate = max(attempt.fate, fate)
        agent = self._agents.hosted.get(attempt.task.agent_id)
        if agent and agent.driver and agent.handle:
            agent.driver.cancel_task(agent.handle, attempt.key, grace)

    def _pause(self, pause: worker_service_pb2.TaskPause) -> None:
        key = TaskKey(pause.task_id, pause.lease_epoch)
        for agent in self._agents.running():
            if key in agent.attempts and agent.driver and agent.handle:
                self._jobs.add(agent.driver.pause_task(agent.handle, key, pause.resume))

    async def _deliver(self, incoming: worker_service_pb2.IncomingMessages) -> None:
        """What an agent cannot take stays undelivered: only what it got counts as read."""
        agent = self._agents.hosted.get(incoming.agent_id)
        if not (agent and agent.driver and agent.handle):
            return
        driver, handle = agent.driver, agent.handle
        read = [message.message_id for message in incoming.messages if driver.deliver(handle, message)]
        if read:
            self._send(messages_read=worker_service_pb2.MessagesRead(agent_id=incoming.agent_id, message_ids=read))

    def _send(self, **item: object) -> None:
        self._link.send(worker_service_pb2.WorkerItem(**item))  # type: ignore[arg-type]  # one keyword, one kind

    def _report(self, report: worker_service_pb2.AgentReport) -> None:
        self._link.send(worker_service_pb2.WorkerItem(agent_report=report))

    def _news(self) -> None:
        """Something is new about an attempt: beat soon, at most once a second."""
        if self._news_timer is None:
            loop = asyncio.get_running_loop()
            self._news_timer = loop.call_at(max(loop.time(), self._last_beat + NEWS_INTERVAL), self._tell_news)

    def _tell_news(self) -> None:
        self._news_timer = None
        self._link.beat_now()

    async def leave(self, reason: str) -> None:
        """Take nothing new, hand everything back, stop every agent, say goodbye."""
        self._leaving = True
        # Said first: what is handed back must not be given to another agent here, or to the same one again.
        self._link.send(worker_service_pb2.WorkerItem(drain=worker_service_pb2.Drain()))
        await self._agents.stop_all(self._config.stop_grace)
        await self._launcher.kill_strays()
        if self._news_timer:
            self._news_timer.cancel()
        # The goodbye is acknowledged after all that was sent before it; without a server nobody waits for long.
        await self._link.close(reason)

    def kill(self) -> None:
        """Skip to the end: kill what still runs."""
        self._agents.kill_all()
