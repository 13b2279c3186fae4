"""TASK mode of the process driver: one process for each task, nothing in between."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from typing import Any

from agenthive.v1 import event_pb2, message_pb2, payload_pb2, task_pb2, worker_service_pb2

from agenthive_server.runner.driver import CHUNK_BYTES, TEXT_BYTES, Exit, Outcome, Report, TaskKey
from agenthive_server.runner.drivers.command import ArgumentTooLong, Recipe
from agenthive_server.runner.launch import Child, Launcher
from agenthive_server.runner.ledger import remove_folder
from agenthive_server.runner.lines import LineReader, Said, error_of
from agenthive_server.runner.payloads import cut_text, failed, json_line, result_payload, task_as_json
from agenthive_server.runner.pipes import ReadPipe
from agenthive_server.runner.tree import signal_members

EX_TEMPFAIL = 75
RESULT_BYTES = 2 * 1024 * 1024
_TAIL_BYTES = 64 * 1024
_MESSAGE_BYTES = 4096
_LINGER = 10.0
_LIMIT_REASONS = {signal.SIGXCPU: "CPU_LIMIT", signal.SIGXFSZ: "FILE_LIMIT"}


class Tail:
    """The last bytes of a stream."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept = bytearray()

    def add(self, content: bytes) -> None:
        """Append, and forget what is too old."""
        self._kept += content[-self._size :]
        if len(self._kept) > 2 * self._size:
            del self._kept[: -self._size]

    def read(self) -> bytes:
        """What is kept."""
        return bytes(self._kept[-self._size :])


async def apply_line(said: Said, report: Report) -> Outcome | None:
    """Pass on what an agent said; the outcome when that was the end of the attempt."""
    if said.key == "progress":
        report.progress(float(said.value), None if said.text is None else cut_text(said.text, TEXT_BYTES))
    elif said.key == "output":
        await pass_output(said.value.encode("utf-8", "replace"), event_pb2.OUTPUT_STREAM_STDOUT, report)
    elif said.key == "checkpoint":
        report.checkpoint(said.value.encode("utf-8", "replace"))
    elif said.key == "usage":
        report.usage(task_pb2.Usage(**said.value))
    elif said.key == "context_usage":
        report.context_usage(float(said.value))
    elif said.key == "result":
        payload = result_payload(said.value, cut_text(said.text or "", 255))
        if len(payload.data) > RESULT_BYTES:
            return failed(task_pb2.TASK_ERROR_CLASS_TOOL, "RESULT_TOO_LONG", f"More than {RESULT_BYTES} bytes.")
        return Outcome(result=payload)
    elif said.key == "error":
        return failed(*error_of(said.value))
    return None


async def pass_output(content: bytes, stream: event_pb2.OutputStream.ValueType, report: Report) -> None:
    """Pass output on in chunks of the allowed size."""
    for start in range(0, len(content), CHUNK_BYTES):
        await report.output(content[start : start + CHUNK_BYTES], stream)


async def drain_pipes(pipes: Sequence[ReadPipe], pumps: Sequence[asyncio.Task[None]]) -> None:
    """Wait until all is read that is left in the pipes of a tree that has ended.

    Whoever gets output may take his time. A process that got away may hold a pipe open for ever: a silent one is left.
    """
    while (await asyncio.wait(pumps, timeout=_LINGER))[1]:
        if all(pipe.silent or pump.done() for pipe, pump in zip(pipes, pumps, strict=True)):
            return


class TaskProcess:
    """One process that runs one attempt."""

    def __init__(self, child: Child, report: Report) -> None:
        self.child = child
        self._report = report
        self._said: Outcome | None = None
        self._ended = asyncio.Event()
        self._canceled = False
        self._tail = Tail(_TAIL_BYTES)
        self._errors = Tail(_MESSAGE_BYTES)

    async def run(self, task: bytes) -> Outcome:
        """Feed the task, read until the end, leave nothing behind. Cancelled, it kills first."""
        pumps = [asyncio.create_task(pump) for pump in (self._feed(task), self._read_output(), self._read_errors())]
        try:
            await self._wait_for_end()
            ending = await self.child.finish()
            await drain_pipes((self.child.stdout, self.child.stderr), pumps[1:])
            return self._outcome(ending)
        finally:
            self.child.kill()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self.child.close()
            await self.child.finish()

    def cancel(self, grace: float) -> None:
        """Begin the ladder, or shorten it."""
        self._canceled = True
        self.child.begin_stop(grace)

    async def _wait_for_end(self) -> None:
        """The exit; after a result it must come soon."""
        exited = asyncio.create_task(self.child.exited.wait())
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({exited, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                await asyncio.wait({exited}, timeout=_LINGER)
                self.child.begin_stop(0)
            await exited
        finally:
            exited.cancel()
            ended.cancel()

    async def _feed(self, task: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            await self.child.stdin.write(task)
        self.child.stdin.close()

    async def _read_output(self) -> None:
        reader = LineReader()
        while block := await self.child.stdout.read():
            for item in reader.feed(block):
                await self._take(item)
        for item in reader.close():
            await self._take(item)

    async def _take(self, item: Said | bytes) -> None:
        if isinstance(item, bytes):
            self._tail.add(item)
            await pass_output(item, event_pb2.OUTPUT_STREAM_STDOUT, self._report)
            return
        if item.key == "output":
            self._tail.add(item.value.encode("utf-8", "replace"))
        outcome = await apply_line(item, self._report)
        if outcome and self._said is None:
            self._said = outcome
            self._ended.set()

    async def _read_errors(self) -> None:
        await copy_errors(self.child.stderr, self._errors, self._report)

    def _outcome(self, ending: Exit) -> Outcome:
        if self._said and (self._said.result is not None or not self._canceled):
            return self._said
        if self._canceled:
            return Outcome(canceled=f"stopped: {ending.reason}")
        if ending.signal in _LIMIT_REASONS:
            return failed(task_pb2.TASK_ERROR_CLASS_TOOL, _LIMIT_REASONS[signal.Signals(ending.signal)], ending.reason)
        if ending.signal:
            return failed(task_pb2.TASK_ERROR_CLASS_INFRA, "SIGNAL", self._explain(ending))
        if ending.code == EX_TEMPFAIL:
            return failed(task_pb2.TASK_ERROR_CLASS_TOOL, "EX_TEMPFAIL", self._explain(ending))
        if ending.code:
            return failed(task_pb2.TASK_ERROR_CLASS_TOOL, "EXIT_CODE", self._explain(ending))
        return Outcome(result=payload_pb2.Payload(content_type="text/plain", data=self._tail.read()))

    def _explain(self, ending: Exit) -> str:
        return self._errors.read().decode("utf-8", "replace").strip() or ending.reason


async def copy_errors(pipe: ReadPipe, tail: Tail, report: Report) -> None:
    """Standard error is output, and its tail is kept for the message."""
    while block := await pipe.read():
        tail.add(block)
        await pass_output(block, event_pb2.OUTPUT_STREAM_STDERR, report)


class PerTaskAgent:
    """An agent that is a process only while it has a task; idle, it is nothing but this object."""

    def __init__(self, recipe: Recipe, launcher: Launcher) -> None:
        self._recipe = recipe
        self._launcher = launcher
        self._running: dict[TaskKey, TaskProcess] = {}
        self._started = 0
        self._stopping = False
        self._idle: asyncio.Event | None = None  # both are made when somebody waits: there are thousands of us
        self._ended: asyncio.Event | None = None

    async def run_task(self, task: worker_service_pb2.TaskAssignment, report: Report) -> Outcome:
        """See `Driver.run_task`."""
        start, key = self._recipe.start, TaskKey(task.task_id, task.lease_epoch)
        if self._stopping:
            return failed(task_pb2.TASK_ERROR_CLASS_INFRA, "STOPPED", "The agent was stopped.")
        self._started += 1
        name = f"t{self._started}"
        try:
            content = task_as_json(task)
            child = self._spawn(content, name)
            if isinstance(child, Outcome):
                return child
            self._running[key] = TaskProcess(child, report)
            start.spawned(child.id.pid, child.id.start_time)
            try:
                return await self._running[key].run(json_line(content))
            finally:
                self._forget(key)
                start.departed(child.id.pid, child.id.start_time)
        finally:
            await asyncio.to_thread(remove_folder, start.folder / name)

    def _spawn(self, content: dict[str, Any], name: str) -> Child | Outcome:
        start = self._recipe.start
        try:
            (start.folder / name).mkdir(mode=0o700)
            return self._launcher.spawn(
                self._recipe.task_command(content, f"{start.marker}.{name}", start.folder / name)
            )
        except ArgumentTooLong as error:
            return failed(task_pb2.TASK_ERROR_CLASS_INVALID, "ARGUMENT_TOO_LONG", str(error))
        except ValueError as error:
            return failed(task_pb2.TASK_ERROR_CLASS_INVALID, "NOT_AN_ARGUMENT", str(error))
        except OSError as error:
            return failed(task_pb2.TASK_ERROR_CLASS_INFRA, "SPAWN_FAILED", f"The process did not start: {error}")

    def _forget(self, key: TaskKey) -> None:
        self._running.pop(key, None)
        if not self._running and self._idle:
            self._idle.set()

    def cancel_task(self, key: TaskKey, grace: float) -> None:
        """See `Driver.cancel_task`."""
        if process := self._running.get(key):
            process.cancel(grace)

    async def pause_task(self, key: TaskKey, resume: bool) -> None:
        """See `Driver.pause_task`."""
        if process := self._running.get(key):
            number = signal.SIGCONT if resume else signal.SIGSTOP
            child = process.child
            await asyncio.to_thread(signal_members, [child.id], child.marker, number)

    def deliver(self, message: message_pb2.Message) -> bool:
        """Nobody reads the standard input any more when the task is through: never deliverable."""
        return False

    async def wait(self) -> Exit:
        """See `Driver.wait`: it cannot end by itself."""
        self._ended = self._ended or asyncio.Event()
        await self._ended.wait()
        return Exit(reason="stopped")

    async def stop(self, grace: float) -> Exit:
        """See `Driver.stop`."""
        self._stopping = True
        self._idle = asyncio.Event()
        for process in self._running.values():
            process.cancel(grace)
        if self._running:
            await self._idle.wait()
        if self._ended:
            self._ended.set()
        return Exit(reason="stopped")

    def kill(self) -> None:
        """See `Driver.kill`."""
        for process in self._running.values():
            process.child.kill()

    def marker(self) -> str:
        """The marker all of its processes carry."""
        return self._recipe.start.marker

    def logs(self) -> bytes:
        """Nothing: all it says belongs to a task."""
        return b""
