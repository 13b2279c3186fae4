"""What plugins get of the running server: verbs, state, a folder, and a reading of how it is."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from agenthive_server.kernel.agents import Agent
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.events import Event, EventType, Severity
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.ports import NewId
from agenthive_server.kernel.replicas import Role
from agenthive_server.kernel.sessions import Session, SessionState
from agenthive_server.kernel.tasks import Task
from agenthive_server.plugin.bell import Bell, Bells
from agenthive_server.plugin.buckets import Buckets, LocalBuckets
from agenthive_server.plugin.calls import Call
from agenthive_server.plugin.context import State, VitalsReading
from agenthive_server.plugin.ports import Verbs
from agenthive_server.plugin.state import PluginState
from agenthive_server.plugin.wanted import NAMESPACE
from agenthive_server.rpc.builtin import BuiltIn
from agenthive_server.storage.committer import Committer
from agenthive_server.vitals import Vitals

COUNT_EVERY: Final = 1.0
"""Seconds for which counts of agents and tasks by state are good."""

COUNT_SHARE: Final = 50
"""Counting takes at most one part in so many of the time."""

MAX_NAME: Final = 128
MAX_TEXT: Final = 1_024
MAX_ATTRIBUTES: Final = 16


class Surroundings:
    """The server as its plugins see it."""

    def __init__(
        self,
        *,
        clock: Clock,
        new_id: NewId,
        kernel: Kernel,
        vitals: Vitals,
        committer: Committer,
        built_in: BuiltIn,
        folder: Path,
        verbs: Callable[[str], Verbs],
        open_calls: Callable[[], Collection[Call]],
        buckets: Callable[[str], Buckets] | None = None,
    ) -> None:
        """`buckets`: those the servers of a hive share; None where there is one server."""
        self.open_calls = open_calls
        self.clock = clock
        self.new_id = new_id
        self._kernel = kernel
        self._vitals = vitals
        self._committer = committer
        self._built_in = built_in
        self._folder = folder
        self._verbs = verbs
        self._buckets = buckets
        self._bells = Bells(clock)
        kernel.observers.append(self._bells.heard)
        self._counted: tuple[dict[str, int], dict[str, int], int] = ({}, {}, 0)
        self._count_again = 0.0

    def verbs(self, name: str) -> Verbs:
        """Return the verbs of a plugin."""
        return self._verbs(name)

    def state(self, name: str) -> State:
        """Return the state of a plugin."""
        return PluginState(self._kernel.state, name)

    def buckets(self, name: str) -> Buckets:
        """Return the token buckets of a plugin."""
        return self._buckets(name) if self._buckets is not None else LocalBuckets()

    def data_dir(self, name: str) -> Path:
        """Return the folder of a plugin, which is there then."""
        folder = self._folder / "plugins" / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def bell(self, kinds: Collection[EventType]) -> Bell:
        """Return a bell that rings when this server hears of an event of these types."""
        return self._bells.bell(kinds)

    def role(self, name: str) -> Role:
        """Return the role in which what runs of a plugin on one replica at a time runs."""
        return self._kernel.replicas.role(f"plugin/{name}")

    async def publish(
        self, name: str, kind: str, text: str, severity: Severity, subject: str, attributes: Mapping[str, str]
    ) -> None:
        """Write an event PLUGIN_REPORTED; what is too long is cut."""
        some = list(attributes.items())[:MAX_ATTRIBUTES]
        facts = {
            "plugin": name,
            "kind": kind[:MAX_NAME],
            "subject": subject[:MAX_NAME],
            "text": text[:MAX_TEXT],
            "severity": Severity(severity).name,
            "attributes": {key[:MAX_NAME]: str(value)[:MAX_TEXT] for key, value in some},
        }
        event = Event(type=EventType.PLUGIN_REPORTED, namespace=NAMESPACE, data=facts)
        await self._kernel.decisions.run(lambda view: view.emit(event))

    def vitals(self) -> VitalsReading:
        """Return how the server is now."""
        facts, used, committer = self._vitals.facts(), resource.getrusage(resource.RUSAGE_SELF), self._committer
        tasks, agents, sessions = self._counts()
        return VitalsReading(
            time=self.clock.now(),
            components=self._vitals.report().components,
            queue_depth=facts.queued_tasks,
            open_tasks=tasks,
            agents=agents,
            sessions=sessions,
            held_tasks=facts.held_tasks,
            event_loop_lag=self._vitals.lag.lag,
            cpu_seconds=used.ru_utime + used.ru_stime,
            cpu_count=os.cpu_count() or 1,
            resident_bytes=_resident_bytes(),
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            store_latency=committer.last_latency or None,
            commits=committer.change_sets,
            commit_failures=committer.failures,
            calls=self._built_in.access.calls(),
            last_sequence=facts.last_sequence,
            draining=facts.draining,
        )

    def _counts(self) -> tuple[dict[str, int], dict[str, int], int]:
        """Return open tasks and agents by state, and sessions in contact, wherever they are.

        Counted anew now and then: there may be a million.
        """
        began = self.clock.monotonic()
        if began >= self._count_again:
            memory, shown = self._kernel.memory, self._kernel.agents.shown
            tasks = Counter(task.state.value for task in memory.all(Task) if not task.terminal)
            agents = Counter(shown(agent).state for agent in memory.all(Agent))
            sessions = sum(session.state is SessionState.OPEN for session in memory.all(Session))
            self._counted = (dict(tasks), dict(agents), sessions)
            took = self.clock.monotonic() - began
            self._count_again = began + max(COUNT_EVERY, COUNT_SHARE * took)
        return self._counted


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
