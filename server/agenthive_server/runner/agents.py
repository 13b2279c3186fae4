"""The agents of a runner: started once for each start epoch, stopped with their tasks, their ends reported."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agenthive.v1 import agent_pb2, worker_service_pb2

from agenthive_server.runner.attempts import Fate, RunningAttempt
from agenthive_server.runner.driver import Driver, Exit, Handle, Start, StartFailed, TaskKey, build_driver, driver_name
from agenthive_server.runner.jobs import Jobs
from agenthive_server.runner.launch import Launcher
from agenthive_server.runner.ledger import Entry, Ledger, remove_folder
from agenthive_server.runner.payloads import cut_text, seconds
from agenthive_server.runner.tree import ProcessId

START_TIMEOUT = 30.0
STOP_GRACE = 10.0
LADDER_GRACE = 2.0
_KNOWN = 10_000
_logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class HostedAgent:
    """One start of one agent. Idle it costs this object and its ledger entry."""

    order: worker_service_pb2.StartAgent
    driver: Driver | None = None
    handle: Handle | None = None
    starting: asyncio.Task[None] | None = None
    ending: asyncio.Task[None] | None = None
    stopping: bool = False
    stop_order: worker_service_pb2.StopAgent | None = None
    attempts: dict[TaskKey, RunningAttempt] = field(default_factory=dict)
    last_report: worker_service_pb2.AgentReport | None = None

    @property
    def running(self) -> bool:
        """Whether it starts, runs or stops."""
        return self.starting is not None or self.handle is not None

    @property
    def ready(self) -> bool:
        """Whether it takes tasks."""
        return self.handle is not None and not self.stopping


class Agents:
    """All agents of a runner."""

    def __init__(
        self,
        ledger: Ledger,
        launcher: Launcher,
        drivers: dict[str, str],
        jobs: Jobs,
        report: Callable[[worker_service_pb2.AgentReport], None],
    ) -> None:
        self._ledger = ledger
        self._launcher = launcher
        self._names = drivers
        self._drivers: dict[str, Driver] = {}
        self._jobs = jobs
        self._report = report
        self._entries: dict[HostedAgent, Entry] = {}
        self._asleep: dict[str, Path] = {}
        self.hosted: dict[str, HostedAgent] = {}
        """By id: those that run, and the last report of those that ended."""

    def find_driver(self, name: str) -> Driver:
        """The driver of that name, imported when first asked for. Raises StartFailed."""
        if name not in self._drivers:
            self._drivers[name] = build_driver(name, self._launcher, self._names)
        return self._drivers[name]

    def working_drivers(self) -> list[str]:
        """The names of the drivers that work on this machine. One that cannot be loaded is logged and left out."""
        names = []
        for name in self._names:
            try:
                if self.find_driver(name).fingerprint().healthy:
                    names.append(name)
            except (ImportError, AttributeError, OSError) as error:
                _logger.error("driver cannot be used", exc_info=error, extra={"driver": name})
        return names

    def running(self) -> list[HostedAgent]:
        """Those that are ready."""
        return [agent for agent in self.hosted.values() if agent.handle is not None]

    def start(self, order: worker_service_pb2.StartAgent) -> None:
        """Start an agent, once for each epoch; a repeat is answered with what was reported. Returns at once."""
        known = self.hosted.get(order.agent_id)
        if known and known.order.start_epoch >= order.start_epoch:
            if known.last_report and known.order.start_epoch == order.start_epoch:
                self._report(known.last_report)
            return
        if len(self.hosted) > _KNOWN + 2 * len(self._entries):
            self.hosted = {agent_id: each for agent_id, each in self.hosted.items() if each.running}
        agent = self.hosted[order.agent_id] = HostedAgent(order)
        agent.starting = self._jobs.start(self._start(agent, known))

    async def _start(self, agent: HostedAgent, before: HostedAgent | None) -> None:
        try:
            if before:
                await self._end(before, 0.0, Fate.NOTHING)
            async with asyncio.timeout(seconds(agent.order.spec.start_timeout, START_TIMEOUT)):
                await self._run_start(agent)
        except TimeoutError:
            self._fail(agent, "The agent was not ready in time.")
        except StartFailed as error:
            self._fail(agent, str(error))
        except asyncio.CancelledError:
            self._forget(agent)
            raise
        except Exception as error:  # a driver's bug is the failure of this start, not of the runner
            _logger.error("an agent could not be started", exc_info=error, extra={"agent_id": agent.order.agent_id})
            self._fail(agent, f"The runner could not start it: {error!r}")
        else:
            self._tell(agent, agent_pb2.AGENT_STATE_IDLE)
        finally:
            agent.starting = None

    async def _run_start(self, agent: HostedAgent) -> None:
        order = agent.order
        kept = self._asleep.pop(order.agent_id, None)
        if kept and not order.wake:
            self._remove(kept)
            kept = None
        driver = self.find_driver(driver_name(order.spec))
        entry = self._entries[agent] = self._ledger.begin(order.agent_id, kept)
        start = Start(
            agent_id=order.agent_id,
            namespace=order.namespace,
            spec=order.spec,
            folder=entry.folder,
            marker=entry.marker,
            ended=lambda ending: self._ended(agent, ending),
            spawned=lambda pid, start_time: self._ledger.spawned(entry, ProcessId(pid, start_time)),
            departed=lambda pid, start_time: self._ledger.departed(entry, ProcessId(pid, start_time)),
            wake=order.wake,
        )
        agent.driver, agent.handle = driver, await driver.start(start)
        self._ledger.started(entry, agent.handle)

    def _fail(self, agent: HostedAgent, reason: str) -> None:
        self._forget(agent)
        self._tell(agent, agent_pb2.AGENT_STATE_FAILED, reason)

    def _forget(self, agent: HostedAgent, *, keep_folder: bool = False) -> None:
        agent.handle = None
        if entry := self._entries.pop(agent, None):
            self._ledger.end(entry)
            if keep_folder:
                self._asleep[agent.order.agent_id] = entry.folder
            else:
                self._remove(entry.folder)

    def _remove(self, folder: Path) -> None:
        self._jobs.add(asyncio.to_thread(remove_folder, folder))

    def _tell(self, agent: HostedAgent, state: agent_pb2.AgentState.ValueType, reason: str = "", code: int = 0) -> None:
        if self.hosted.get(agent.order.agent_id) is not agent:
            return  # it was started anew; the server has forgotten this one
        agent.last_report = worker_service_pb2.AgentReport(
            agent_id=agent.order.agent_id, state=state, reason=cut_text(reason, 1024), exit_code=code
        )
        self._report(agent.last_report)

    def _ended(self, agent: HostedAgent, ending: Exit) -> None:
        """The agent ended by itself. One that is being stopped is reported by whoever stops it."""
        if not agent.stopping:
            agent.stopping = True
            self._jobs.add(self._bury(agent, ending))

    async def _bury(self, agent: HostedAgent, ending: Exit) -> None:
        await self._end(agent, 0.0, Fate.REPORT)
        failed = ending.code or ending.signal
        state = agent_pb2.AGENT_STATE_FAILED if failed else agent_pb2.AGENT_STATE_STOPPED
        code = ending.code or (128 + ending.signal if ending.signal else 0)
        self._tell(agent, state, f"It ended by itself: {ending.reason}.", code)

    def stop(self, order: worker_service_pb2.StopAgent) -> None:
        """Stop an agent or put it to sleep, and report it. Returns at once; a repeat is harmless."""
        agent = self.hosted.get(order.agent_id)
        if agent is None or not agent.running:
            self._answer_stop(order)
            return
        agent.stop_order = order  # of several the last says what becomes of it
        if not agent.stopping:
            agent.stopping = True
            self._jobs.add(self._stop(agent, order))

    def _answer_stop(self, order: worker_service_pb2.StopAgent) -> None:
        """It does not run here, so it is stopped; or it sleeps, and goes on doing so if that is what is wanted."""
        if not order.sleep and (folder := self._asleep.pop(order.agent_id, None)):
            self._remove(folder)
        state = agent_pb2.AGENT_STATE_SLEEPING if order.sleep else agent_pb2.AGENT_STATE_STOPPED
        self._report(worker_service_pb2.AgentReport(agent_id=order.agent_id, state=state, reason="It does not run."))

    async def _stop(self, agent: HostedAgent, order: worker_service_pb2.StopAgent) -> None:
        held = [asyncio.create_task(attempt.done.wait()) for attempt in agent.attempts.values()]
        if held:
            await asyncio.wait(held, timeout=seconds(order.grace, STOP_GRACE))
            for each in held:
                each.cancel()
        await self._end(agent, LADDER_GRACE, Fate.HAND_BACK)
        order = agent.stop_order or order
        state = agent_pb2.AGENT_STATE_SLEEPING if order.sleep else agent_pb2.AGENT_STATE_STOPPED
        self._tell(agent, state, order.reason)

    async def _end(self, agent: HostedAgent, grace: float, fate: Fate) -> None:
        """Stop what runs, let its attempts tell their end, leave nothing. Who comes second waits for the first."""
        if agent.ending is None:
            agent.stopping = True
            agent.ending = self._jobs.start(self._run_end(agent, grace, fate))
        await asyncio.shield(agent.ending)

    async def _run_end(self, agent: HostedAgent, grace: float, fate: Fate) -> None:
        if agent.starting:
            agent.starting.cancel()
            await asyncio.wait({agent.starting})
            agent.starting = None  # one that had not begun could not say so itself
        attempts = list(agent.attempts.values())
        for attempt in attempts:
            attempt.fate = max(attempt.fate, fate)
        if agent.driver and agent.handle:
            await agent.driver.stop(agent.handle, grace)
        for attempt in attempts:
            await attempt.done.wait()
        self._forget(agent, keep_folder=agent.stop_order is not None and agent.stop_order.sleep)

    async def stop_all(self, grace: float) -> None:
        """Stop every agent for the end of the runner: tasks are handed back, nothing is reported."""
        running = {*self._entries, *(agent for agent in self.hosted.values() if agent.running)}
        await asyncio.gather(*(self._end(agent, grace, Fate.HAND_BACK) for agent in running))
        for folder in self._asleep.values():
            self._remove(folder)
        await self._jobs.wait()

    def kill_all(self) -> None:
        """Skip to the end of every ladder."""
        for agent in list(self._entries):
            if agent.driver and agent.handle:
                agent.driver.kill(agent.handle)
