"""What a driver must do: start agents of one kind, run their tasks, and leave nothing behind."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # the ledger and the guard import this module and need none of it
    from agenthive.v1 import agent_pb2, event_pb2, message_pb2, payload_pb2, task_pb2, worker_service_pb2

    from agenthive_server.runner.launch import Launcher

CHECKPOINT_BYTES = 64 * 1024
CHUNK_BYTES = 64 * 1024
TEXT_BYTES = 1024


class StartFailed(Exception):
    """An agent could not be started; the text is a sentence for people."""


class TaskKey(NamedTuple):
    """One attempt as the worker knows it."""

    task_id: str
    lease_epoch: int


@dataclass(frozen=True, slots=True)
class Handle:
    """What a driver needs to find its agent again: bytes of its own and their version, kept in the ledger."""

    driver: str
    version: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a driver is and whether it can start agents here."""

    name: str
    healthy: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Exit:
    """How an agent ended: an exit code or a signal, and a sentence for people."""

    code: int = 0
    signal: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Stats:
    """What an agent uses now, with everything it started."""

    processes: int = 0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: exactly one of the three is set; `canceled` is a text for people."""

    result: payload_pb2.Payload | None = None
    error: task_pb2.TaskError | None = None
    canceled: str | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """One start of one agent.

    `folder` is the agent's alone, exists and is removed by the runner. `marker` is in the environment of every process
    the driver starts (`tree.MARKER`), as it is or with a suffix after a dot. The driver calls `spawned` with process id
    and start time for every process it starts, `departed` when nothing of that process is left, and `ended` once if
    the agent ends without having been stopped.
    """

    agent_id: str
    namespace: str
    spec: agent_pb2.AgentSpec
    folder: Path
    marker: str
    ended: Callable[[Exit], None]
    spawned: Callable[[int, int], None] = field(default=lambda pid, start_time: None)
    departed: Callable[[int, int], None] = field(default=lambda pid, start_time: None)
    wake: bool = False


class Report(Protocol):
    """What an attempt says while it runs. Only `output` waits: for a reader slower than the agent."""

    async def output(self, content: bytes, stream: event_pb2.OutputStream.ValueType) -> None:
        """Pass output on; returns when there is room for more."""

    def progress(self, fraction: float, text: str | None) -> None:
        """Say how far it is, from 0 to 1."""

    def checkpoint(self, content: bytes) -> None:
        """Replace the checkpoint, at most 64 KiB."""

    def usage(self, usage: task_pb2.Usage) -> None:
        """Say what was consumed so far."""

    def context_usage(self, share: float) -> None:
        """Say which share of the context window is in use, from 0 to 1."""


class Driver(Protocol):
    """Starts, runs and stops agents of one kind; owns everything they start.

    A handle that is not known (never started here, or stopped) raises KeyError in every method but `recover`.
    """

    name: str

    def fingerprint(self) -> Fingerprint:
        """Say what it is and whether it works here."""

    async def start(self, start: Start) -> Handle:
        """Start an agent and return when it is ready; the runner sets the timeout.

        Raises StartFailed with a sentence. After a failure or a cancellation nothing is left.
        """

    async def run_task(self, handle: Handle, task: worker_service_pb2.TaskAssignment, report: Report) -> Outcome:
        """Run one attempt to its end. When it returns, everything the attempt started is gone.

        Failures are outcomes, not exceptions. Cancelled, it kills the attempt first (where agent and attempt are one
        process: the agent) and raises CancelledError when that is done.
        """

    def cancel_task(self, handle: Handle, key: TaskKey, grace: float) -> None:
        """Ask an attempt to end, and make it after `grace` seconds by the ladder; returns at once.

        `run_task` then returns: with the result if there is one, else canceled. A repeat only ever shortens the grace;
        unknown keys are harmless.
        """

    async def pause_task(self, handle: Handle, key: TaskKey, resume: bool) -> None:
        """Hold an attempt or let it go on. Unknown keys are harmless."""

    def deliver(self, handle: Handle, message: message_pb2.Message) -> bool:
        """Hand a message to the agent; False when it cannot take messages or not now."""

    async def wait(self, handle: Handle) -> Exit:
        """Return when the agent has ended, however."""

    async def stop(self, handle: Handle, grace: float) -> Exit:
        """End the agent and its attempts: cooperatively for `grace` seconds, then by the ladder. Forgets the handle.

        When it returns nothing the agent started is left. Cancelled, it goes on in the background.
        """

    def kill(self, handle: Handle) -> None:
        """Skip to the end of the ladder for the agent and its attempts; returns at once."""

    async def stats(self, handle: Handle) -> Stats:
        """Say what the agent uses."""

    def logs(self, handle: Handle) -> bytes:
        """The tail of what the agent said that belongs to no task."""

    async def recover(self, handle: Handle) -> bool:
        """Take over an agent of an earlier runner; False when that cannot be and it must be killed."""


DRIVERS: Mapping[str, str] = {
    "process": "agenthive_server.runner.drivers.process:ProcessDriver",
    "scripted": "agenthive_server.runner.drivers.scripted:ScriptedDriver",
}


def build_driver(name: str, launcher: Launcher, drivers: Mapping[str, str] = DRIVERS) -> Driver:
    """Import and build the driver of that name. Raises StartFailed when there is none."""
    if name not in drivers:
        raise StartFailed(f"This runner has no driver '{name}'; it has {', '.join(sorted(drivers)) or 'none'}.")
    module, _, attribute = drivers[name].partition(":")
    factory: Callable[[Launcher], Driver] = getattr(importlib.import_module(module), attribute)
    return factory(launcher)


def driver_name(spec: agent_pb2.AgentSpec) -> str:
    """The name of the driver that starts such an agent; `remote` when none is named."""
    chosen = spec.WhichOneof("driver") or "remote"
    return spec.custom.name if chosen == "custom" else chosen
