"""What a plugin is given when it is opened: settings, state, verbs, a clock, metrics, a view of the running system."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.events import EventType, Severity
from agenthive_server.kernel.health import ComponentReport, Status
from agenthive_server.kernel.ports import NewId
from agenthive_server.kernel.proposals import HookState

from .bell import Bell
from .buckets import Buckets, LocalBuckets
from .calls import Call
from .metrics import PluginMetrics
from .ports import Verbs

C = TypeVar("C")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """A value of a plugin's state, with its revision."""

    key: str
    value: bytes
    revision: int


class State(Protocol):
    """The state of a plugin in the store: small values by key. Durable when a call has returned.

    For many or big things a plugin asks for tables of its own. Keys have 1 to 255 characters, values at most 256 KiB.
    Every method may raise `StoreUnavailable`.
    """

    async def get(self, key: str) -> Stored | None:
        """Return a value, None where there is none."""

    async def put(self, key: str, value: bytes, *, revision: int | None = None) -> int:
        """Set a value; returns its new revision.

        With `revision`, only if that is the present one (0: if there is none), else `Conflict`. Raises `ValueError`
        when key or value are too long.
        """

    async def delete(self, key: str, *, revision: int | None = None) -> bool:
        """Remove a value; returns whether there was one. With `revision` as `put`."""

    async def scan(self, prefix: str = "", *, after: str = "", limit: int = 1_000) -> Sequence[Stored]:
        """Return values by key in order: those whose key begins with `prefix` and comes after `after`."""

    async def put_many(self, values: Mapping[str, bytes], *, new: bool = False) -> None:
        """Set up to 1,000 values of at most 8 MiB together, all or none.

        With `new` none may be there, else `Conflict`; that is cheaper, because nobody has to look.
        """

    async def delete_many(self, keys: Collection[str]) -> int:
        """Remove up to 1,000 values, all in one change; returns how many were there."""

    async def change(self, change: Callable[[HookState], T]) -> T:
        """Read and write several values as one change: what `change` read is still so when its writes are durable.

        `change` is a plain function that runs again after a conflict: it does nothing but read and write there, and
        lets exceptions pass. Returns what it returned.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class VitalsReading:
    """How the running system is at one moment. Times in seconds, memory in bytes."""

    time: float
    components: tuple[ComponentReport, ...] = ()
    queue_depth: int = 0
    open_tasks: Mapping[str, int] = field(default_factory=dict)
    """Tasks that are not terminal, by the name of their state."""
    agents: Mapping[str, int] = field(default_factory=dict)
    """Agents by the name of their state, as callers see it (IDLE, BUSY, …)."""
    sessions: int = 0
    """In contact with any server. Tasks and agents are the hive's as well; calls, memory and time are this server's."""
    held_tasks: int = 0
    event_loop_lag: float = 0.0
    cpu_seconds: float = 0.0
    """CPU time the server has used since its start: take the difference of two readings."""
    cpu_count: int = 1
    resident_bytes: int = 0
    memory_bytes: int = 0
    """Memory of the machine."""
    store_latency: float | None = None
    """Of the last commit or read; None before the first."""
    commits: int = 0
    commit_failures: int = 0
    calls: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Calls answered since the start, by full method name and name of the status code."""
    last_sequence: int = 0
    draining: bool = False


class Surroundings(Protocol):
    """The server as one plugin sees it; `PluginContext` passes on to it."""

    def report(self, status: Status, text: str) -> None:
        """Take a reading of the plugin's health."""

    def vitals(self) -> VitalsReading:
        """Return how the system is."""

    def bell(self, kinds: Collection[EventType]) -> Bell:
        """Return a bell that rings when this server hears of an event of these types."""

    def open_calls(self) -> Collection[Call]:
        """Return the calls that are being served, but for brief ones."""

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run something in the background."""

    async def publish(
        self, kind: str, text: str, severity: Severity, subject: str, attributes: Mapping[str, str]
    ) -> None:
        """Write an event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginContext(Generic[C]):
    """All a plugin knows of the server. Valid as long as the plugin is open."""

    name: str
    config: C
    state: State
    verbs: Verbs
    clock: Clock
    log: logging.Logger
    """Named `plugin.NAME`."""
    new_id: NewId
    metrics: PluginMetrics
    """Makes counters, gauges and histograms, whose names begin with `agenthive_NAME_`."""
    data_dir: Path
    """A folder of its own, `plugins/NAME` in the server's data directory; there when the plugin opens."""
    surroundings: Surroundings
    buckets: Buckets = field(default_factory=LocalBuckets)
    """Token buckets of its own, shared with its likes on other servers of the hive where Redis is set up."""

    def report(self, status: Status, text: str = "") -> None:
        """Say in health how the plugin is: `ctx.report(Status.DEGRADED, "the webhook does not answer")`."""
        self.surroundings.report(status, text)

    def vitals(self) -> VitalsReading:
        """Return how the running system is now. Cheap enough for every second."""
        return self.surroundings.vitals()

    def bell(self, *kinds: EventType) -> Bell:
        """Return a bell that rings on this replica when an event of these types happened, on whichever.

        For what a replica keeps in memory of what is stored: `await bell.wait(1.0)`, then look. Handlers, which miss
        nothing, run on one replica only.
        """
        return self.surroundings.bell(kinds)

    def open_calls(self) -> Collection[Call]:
        """Return the calls this server serves at the moment, but for brief ones: streams, sessions, long waits."""
        return self.surroundings.open_calls()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run something in the background that ends by itself; an exception is logged and counted.

        It is cancelled when the plugin stops. A plugin that has too many tasks at once, made here or with asyncio
        itself, is switched off.
        """
        self.surroundings.spawn(work, name)

    async def publish(
        self,
        kind: str,
        text: str,
        *,
        severity: Severity = Severity.INFO,
        subject: str = "",
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Write an event PLUGIN_REPORTED to the log: an alert, a finding. Durable when it returns.

        `kind` is a word for programs (`alert_raised`), `subject` what it is about. Bounded: 128 characters for kind,
        subject and keys, 1,024 for text and values, 16 attributes; what is longer is cut. Raises `StoreUnavailable`.
        """
        await self.surroundings.publish(kind, text, severity, subject, attributes or {})
