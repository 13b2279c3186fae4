"""The process driver: commands on this machine, one for each task or one for each agent.

What a process is told and may say: `lines.py` and `payloads.py`. What it gets: a folder of its own, an environment
made from nothing, resource limits, no core files, no new privileges, umask 077. Endings without a result line: exit 0
succeeds with the last 64 KiB of output; 75 fails as TOOL `EX_TEMPFAIL`, other codes as TOOL `EXIT_CODE`, with the end
of standard error as message; a signal fails as INFRA `SIGNAL`, but the CPU and file limits, which would be hit again
elsewhere, as TOOL `CPU_LIMIT` and `FILE_LIMIT`.
"""

from __future__ import annotations

import asyncio
import json

from agenthive.v1 import agent_pb2, message_pb2, worker_service_pb2

from agenthive_server.runner.driver import Exit, Fingerprint, Handle, Outcome, Report, Start, Stats, TaskKey
from agenthive_server.runner.drivers.command import build_recipe
from agenthive_server.runner.drivers.per_agent import PerAgentProcess
from agenthive_server.runner.drivers.per_task import PerTaskAgent
from agenthive_server.runner.launch import Launcher
from agenthive_server.runner.tree import list_members

HANDLE_VERSION = 1


class ProcessDriver:
    """Starts commands; see `Driver` for what each method promises."""

    name = "process"

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._agents: dict[bytes, PerTaskAgent | PerAgentProcess] = {}

    def fingerprint(self) -> Fingerprint:
        """It works wherever a runner does."""
        return Fingerprint(self.name, healthy=True, detail="commands on this machine, a process for each task or agent")

    async def start(self, start: Start) -> Handle:
        """Check the specification; in AGENT mode start the process and wait for its ready line."""
        recipe = build_recipe(start, self._launcher.search_path)
        agent: PerTaskAgent | PerAgentProcess
        if start.spec.process.mode == agent_pb2.PROCESS_MODE_AGENT:
            agent = PerAgentProcess(recipe, self._launcher)
            await agent.start()
        else:
            agent = PerTaskAgent(recipe, self._launcher)
        handle = Handle(self.name, HANDLE_VERSION, json.dumps({"marker": start.marker}).encode())
        self._agents[handle.data] = agent
        return handle

    async def run_task(self, handle: Handle, task: worker_service_pb2.TaskAssignment, report: Report) -> Outcome:
        """Run one attempt."""
        return await self._agents[handle.data].run_task(task, report)

    def cancel_task(self, handle: Handle, key: TaskKey, grace: float) -> None:
        """TASK mode: SIGINT, then the ladder. AGENT mode: a line, then the ladder for the agent."""
        self._agents[handle.data].cancel_task(key, grace)

    async def pause_task(self, handle: Handle, key: TaskKey, resume: bool) -> None:
        """TASK mode: SIGSTOP and SIGCONT for the tree. AGENT mode: a line."""
        await self._agents[handle.data].pause_task(key, resume)

    def deliver(self, handle: Handle, message: message_pb2.Message) -> bool:
        """AGENT mode: a line. TASK mode: never."""
        return self._agents[handle.data].deliver(message)

    async def wait(self, handle: Handle) -> Exit:
        """Return when the agent has ended; in TASK mode that is when it was stopped."""
        return await self._agents[handle.data].wait()

    async def stop(self, handle: Handle, grace: float) -> Exit:
        """Stop the agent and forget it."""
        agent = self._agents[handle.data]
        stop = asyncio.create_task(agent.stop(grace))
        stop.add_done_callback(lambda done: self._agents.pop(handle.data, None))
        return await asyncio.shield(stop)

    def kill(self, handle: Handle) -> None:
        """Kill every process of the agent; one that has just ended by itself is no error."""
        agent = self._agents.get(handle.data)
        if agent is not None:
            agent.kill()

    async def stats(self, handle: Handle) -> Stats:
        """Add up the processes that carry its marker."""
        members = await asyncio.to_thread(list_members, (), self._agents[handle.data].marker())
        return Stats(
            processes=len(members),
            cpu_seconds=sum(each.cpu_seconds for each in members),
            memory_bytes=sum(each.memory_bytes for each in members),
        )

    def logs(self, handle: Handle) -> bytes:
        """AGENT mode: the last 64 KiB that belong to no task."""
        return self._agents[handle.data].logs()

    async def recover(self, handle: Handle) -> bool:
        """Never: the pipes went with the runner that held them."""
        return False
