"""The scripted driver: plays a script instead of running anything, and says so wherever it appears."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field

from agenthive.v1 import agent_pb2, event_pb2, message_pb2, task_pb2, worker_service_pb2

from agenthive_server.runner.driver import (
    Exit,
    Fingerprint,
    Handle,
    Outcome,
    Report,
    Start,
    StartFailed,
    Stats,
    TaskKey,
)
from agenthive_server.runner.launch import Launcher
from agenthive_server.runner.payloads import failed, payload_as_json, result_payload, seconds

HANDLE_VERSION = 1


@dataclass(eq=False, slots=True)
class _Agent:
    start: Start
    script: agent_pb2.ScriptedDriver
    held: dict[TaskKey, _Held] = field(default_factory=dict)
    exit: Exit | None = None
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    killed: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None

    def end(self, ending: Exit) -> None:
        """The agent has ended, with all it held."""
        if self.exit is None:
            self.exit = ending
            self.exited.set()
        if self.timer:
            self.timer.cancel()
        for held in list(self.held.values()):
            text = f"The scripted agent ended ({ending.reason})."
            held.settle(failed(task_pb2.TASK_ERROR_CLASS_INFRA, "AGENT_ENDED", text))


@dataclass(eq=False, slots=True)
class _Held:
    outcome: asyncio.Future[Outcome]
    running: asyncio.Event = field(default_factory=asyncio.Event)
    canceled: bool = False

    def settle(self, outcome: Outcome) -> None:
        """It ends so; a task that was canceled ends as canceled."""
        if not self.outcome.done():
            self.outcome.set_result(Outcome(canceled="canceled (scripted)") if self.canceled else outcome)


class ScriptedDriver:
    """Plays a `ScriptedDriver` message; see `Driver` for what each method promises."""

    name = "scripted"

    def __init__(self, launcher: Launcher) -> None:
        self._patience = launcher.patience
        self._agents: dict[bytes, _Agent] = {}

    def fingerprint(self) -> Fingerprint:
        """It always works: it does nothing."""
        return Fingerprint(self.name, healthy=True, detail="scripted: plays a script, runs nothing")

    async def start(self, start: Start) -> Handle:
        """Be ready after `ready_after`, unless the script says that it fails."""
        script = start.spec.scripted
        await asyncio.sleep(seconds(script.ready_after, 0))
        if script.start_failure:
            raise StartFailed(script.start_failure)
        agent = _Agent(start, script)
        handle = Handle(self.name, HANDLE_VERSION, json.dumps({"scripted": start.marker}).encode())
        self._agents[handle.data] = agent
        if (after := seconds(script.exit_after, 0)) > 0:
            agent.timer = asyncio.get_running_loop().call_later(after, self._exit, agent)
        return handle

    def _exit(self, agent: _Agent) -> None:
        if agent.exit is None:
            code = agent.script.exit_code
            agent.end(Exit(code=code, reason=f"exit code {code} (scripted)"))
            agent.start.ended(Exit(code=code, reason=f"exit code {code} (scripted)"))

    async def run_task(self, handle: Handle, task: worker_service_pb2.TaskAssignment, report: Report) -> Outcome:
        """Take `task_time`, report half way, then succeed with the input or fail as the script says."""
        agent, key = self._agents[handle.data], TaskKey(task.task_id, task.lease_epoch)
        if agent.exit is not None:
            return failed(task_pb2.TASK_ERROR_CLASS_INFRA, "AGENT_ENDED", "The scripted agent has ended.")
        held = agent.held[key] = _Held(asyncio.get_running_loop().create_future())
        held.running.set()
        play = asyncio.create_task(self._play(agent.script, held, task, report))
        try:
            return await held.outcome
        finally:
            agent.held.pop(key, None)
            play.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await play

    async def _play(
        self,
        script: agent_pb2.ScriptedDriver,
        held: _Held,
        task: worker_service_pb2.TaskAssignment,
        report: Report,
    ) -> None:
        text = f"scripted: playing {task.spec.type}\n"
        await report.output(text.encode(), event_pb2.OUTPUT_STREAM_STDOUT)
        half = seconds(script.task_time, 0) / 2
        await asyncio.sleep(half)
        await held.running.wait()
        report.progress(0.5, "scripted: half way")
        await asyncio.sleep(half)
        await held.running.wait()
        if script.hang:
            return
        if script.task_failure:
            held.settle(failed(task_pb2.TASK_ERROR_CLASS_TOOL, "SCRIPTED", script.task_failure))
            return
        answer = {"scripted": True, "type": task.spec.type, "input": payload_as_json(task.spec.input)}
        held.settle(Outcome(result=result_payload(answer)))

    def cancel_task(self, handle: Handle, key: TaskKey, grace: float) -> None:
        """End it; one that hangs only when the ladder would have killed it."""
        agent = self._agents[handle.data]
        held = agent.held.get(key)
        if held is None or held.canceled:
            return
        held.canceled = True
        delay = grace + self._patience if agent.script.hang else 0.0
        asyncio.get_running_loop().call_later(delay, held.settle, Outcome())

    async def pause_task(self, handle: Handle, key: TaskKey, resume: bool) -> None:
        """Stop the script at its next step, or let it go on."""
        if held := self._agents[handle.data].held.get(key):
            (held.running.set if resume else held.running.clear)()

    def deliver(self, handle: Handle, message: message_pb2.Message) -> bool:
        """Take it and do nothing with it."""
        return self._agents[handle.data].exit is None

    async def wait(self, handle: Handle) -> Exit:
        """Return when the script ends the agent or somebody stops it."""
        agent = self._agents[handle.data]
        await agent.exited.wait()
        return agent.exit or Exit()

    async def stop(self, handle: Handle, grace: float) -> Exit:
        """End at once, or, when the script ignores that, when the ladder would have killed it."""
        agent = self._agents[handle.data]
        for held in agent.held.values():
            held.canceled = True
        try:
            if agent.script.ignore_stop and agent.exit is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(agent.killed.wait(), grace + self._patience)
                agent.end(Exit(signal=9, reason="killed (scripted)"))
            agent.end(Exit(reason="stopped (scripted)"))
            return agent.exit or Exit()
        finally:
            self._agents.pop(handle.data, None)

    def kill(self, handle: Handle) -> None:
        """End it as the end of the ladder does."""
        self._agents[handle.data].killed.set()

    async def stats(self, handle: Handle) -> Stats:
        """No processes."""
        self._agents[handle.data]
        return Stats()

    def logs(self, handle: Handle) -> bytes:
        """One line that says what it is."""
        return f"scripted agent {self._agents[handle.data].start.agent_id}\n".encode()

    async def recover(self, handle: Handle) -> bool:
        """Never: a script lives in the memory of its runner."""
        return False
