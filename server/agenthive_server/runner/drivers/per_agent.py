"""AGENT mode of the process driver: one long-lived process, a JSON line for each task.

Lines to the agent: the object of a task (`payloads.task_as_json`); `{"control": "cancel", "task_id", "grace"}`, after
which the whole agent is stopped unless it ends that task within `grace` seconds; `{"control": "pause"}` and
`{"control": "resume"}` with `task_id`; `{"message": {…}}`. The end of the input means: finish and exit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass

from agenthive.v1 import event_pb2, message_pb2, task_pb2, worker_service_pb2

from agenthive_server.runner.driver import Exit, Outcome, Report, StartFailed, TaskKey
from agenthive_server.runner.drivers.command import Recipe
from agenthive_server.runner.drivers.per_task import Tail, apply_line, drain_pipes, pass_output
from agenthive_server.runner.launch import Child, Launcher
from agenthive_server.runner.lines import LineReader, Said
from agenthive_server.runner.payloads import failed, json_line, message_as_json, task_as_json

_LOG_BYTES = 64 * 1024
_OUTBOX_BYTES = 8 * 1024 * 1024


@dataclass(slots=True)
class _Held:
    """One task the agent has."""

    key: TaskKey
    report: Report
    outcome: asyncio.Future[Outcome]
    canceled: bool = False


class Outbox:
    """Lines for an agent that may be slow to read, or never read: bounded, and nobody waits for it."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._filled = asyncio.Event()
        self._closed = False

    def put(self, line: bytes) -> bool:
        """Append a line; False when it would not fit or the agent reads no more."""
        if self._closed or (self._lines and self._size + len(line) > _OUTBOX_BYTES):
            return False
        self._lines.append(line)
        self._size += len(line)
        self._filled.set()
        return True

    def close(self) -> None:
        """End the input after what is in the box."""
        self._closed = True
        self._filled.set()

    async def run(self) -> None:
        """Write until closed or not read any more."""
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            while self._lines or not self._closed:
                if not self._lines:
                    self._filled.clear()
                    await self._filled.wait()
                    continue
                await self._child.stdin.write(self._lines[0])
                self._size -= len(self._lines.popleft())
        self._closed = True
        self._child.stdin.close()


class PerAgentProcess:
    """An agent that is one process from start to stop."""

    def __init__(self, recipe: Recipe, launcher: Launcher) -> None:
        self._recipe = recipe
        self._launcher = launcher
        self._held: dict[TaskKey, _Held] = {}
        self._log = Tail(_LOG_BYTES)
        self._ready = asyncio.Event()
        self._patience: dict[TaskKey, asyncio.TimerHandle] = {}
        self._reason = ""
        self._stopped = False

    async def start(self) -> None:
        """Start the process and wait until it says that it is ready. Raises StartFailed."""
        start = self._recipe.start
        try:
            self._child = self._launcher.spawn(self._recipe.agent_command())
        except (OSError, ValueError) as error:
            raise StartFailed(f"The process did not start: {error}") from None
        start.spawned(self._child.id.pid, self._child.id.start_time)
        self._outbox = Outbox(self._child)
        self._life = asyncio.create_task(self._live())
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({ready, self._life}, return_when=asyncio.FIRST_COMPLETED)
            if not self._ready.is_set():
                raise StartFailed(self._why_not(self._life.result()))
        except BaseException:
            self._stopped = True
            self._child.kill()
            await asyncio.shield(self._life)
            raise
        finally:
            ready.cancel()

    def _why_not(self, ending: Exit) -> str:
        said = self._log.read().decode("utf-8", "replace").strip()[-1000:]
        return f"The agent ended before it was ready ({ending.reason})" + (f": {said}" if said else ".")

    async def _live(self) -> Exit:
        """From start to an empty tree."""
        child, start = self._child, self._recipe.start
        pumps = [asyncio.create_task(pump) for pump in (self._read_output(), self._read_errors(), self._outbox.run())]
        await child.exited.wait()
        ending = await child.finish()
        await drain_pipes((child.stdout, child.stderr), pumps[:2])
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        child.close()
        start.departed(child.id.pid, child.id.start_time)
        self._end_held(ending)
        ending = Exit(ending.code, ending.signal, self._reason or ending.reason)
        if self._ready.is_set() and not self._stopped:
            start.ended(ending)
        return ending

    def _end_held(self, ending: Exit) -> None:
        for held in list(self._held.values()):
            if held.canceled:
                self._settle(held, Outcome(canceled=f"stopped with its agent: {ending.reason}"))
            else:
                text = f"The agent ended while it held the task ({self._reason or ending.reason})."
                self._settle(held, failed(task_pb2.TASK_ERROR_CLASS_INFRA, "AGENT_ENDED", text))

    async def run_task(self, task: worker_service_pb2.TaskAssignment, report: Report) -> Outcome:
        """See `Driver.run_task`."""
        key = TaskKey(task.task_id, task.lease_epoch)
        if self._child.exited.is_set() or not self._outbox.put(json_line(task_as_json(task))):
            return failed(task_pb2.TASK_ERROR_CLASS_INFRA, "NOT_READ", "The agent does not read its input.")
        held = self._held[key] = _Held(key, report, asyncio.get_running_loop().create_future())
        try:
            return await asyncio.shield(held.outcome)
        except asyncio.CancelledError:
            self._reason = f"killed, because task {key.task_id} had to end at once"
            self.kill()
            await asyncio.shield(self._life)
            raise

    def _settle(self, held: _Held, outcome: Outcome) -> None:
        self._held.pop(held.key, None)
        if timer := self._patience.pop(held.key, None):
            timer.cancel()
        if not held.outcome.done():
            held.outcome.set_result(outcome)

    async def _read_output(self) -> None:
        reader = LineReader()
        while block := await self._child.stdout.read():
            for item in reader.feed(block):
                await self._take(item)
        for item in reader.close():
            await self._take(item)

    async def _read_errors(self) -> None:
        while block := await self._child.stderr.read():
            await self._pass_on(block, event_pb2.OUTPUT_STREAM_STDERR)

    async def _pass_on(self, content: bytes, stream: event_pb2.OutputStream.ValueType) -> None:
        """Output without a task: of the only one held, else of none."""
        if len(self._held) == 1:
            await pass_output(content, stream, next(iter(self._held.values())).report)
        else:
            self._log.add(content)

    async def _take(self, item: Said | bytes) -> None:
        if isinstance(item, bytes):
            await self._pass_on(item, event_pb2.OUTPUT_STREAM_STDOUT)
        elif item.key == "ready":
            self._ready.set()
        elif held := self._find_held(item):
            outcome = await apply_line(item, held.report)
            if outcome and held.canceled and outcome.error:
                outcome = Outcome(canceled=outcome.error.message or "canceled")
            if outcome:
                self._settle(held, outcome)
        else:
            self._log.add(json_line({"task_id": item.task_id, item.key: item.value}))

    def _find_held(self, said: Said) -> _Held | None:
        fitting = [
            held
            for key, held in self._held.items()
            if said.task_id in ("", key.task_id) and said.lease_epoch in (0, key.lease_epoch)
        ]
        return fitting[0] if len(fitting) == 1 else None

    def cancel_task(self, key: TaskKey, grace: float) -> None:
        """See `Driver.cancel_task`: a line, and after the grace the ladder for the whole agent."""
        held, loop = self._held.get(key), asyncio.get_running_loop()
        if held is None:
            return
        if timer := self._patience.get(key):
            if timer.when() <= loop.time() + grace:
                return
            timer.cancel()
        held.canceled = True
        self._outbox.put(json_line({"control": "cancel", "task_id": key.task_id, "grace": grace}))
        self._patience[key] = loop.call_later(grace, self._give_up, key)

    def _give_up(self, key: TaskKey) -> None:
        self._reason = self._reason or f"stopped, because it did not end task {key.task_id} when asked"
        self._child.begin_stop(0)

    async def pause_task(self, key: TaskKey, resume: bool) -> None:
        """See `Driver.pause_task`: a line; the agent decides what it means."""
        if key in self._held:
            self._outbox.put(json_line({"control": "resume" if resume else "pause", "task_id": key.task_id}))

    def deliver(self, message: message_pb2.Message) -> bool:
        """See `Driver.deliver`."""
        return self._outbox.put(json_line({"message": message_as_json(message)}))

    async def wait(self) -> Exit:
        """See `Driver.wait`."""
        return await asyncio.shield(self._life)

    async def stop(self, grace: float) -> Exit:
        """See `Driver.stop`: the end of its input and SIGINT, then the ladder."""
        self._stopped = True
        for held in self._held.values():
            held.canceled = True
        self._outbox.close()
        self._child.begin_stop(grace)
        return await asyncio.shield(self._life)

    def kill(self) -> None:
        """See `Driver.kill`."""
        self._child.kill()

    def marker(self) -> str:
        """The marker all of its processes carry."""
        return self._recipe.start.marker

    def logs(self) -> bytes:
        """See `Driver.logs`."""
        return self._log.read()
