"""The verbs a plugin may use, and the backups the server makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agenthive_server.kernel.agent_verbs import NewAgent, ShownAgent
from agenthive_server.kernel.agents import Agent, AgentSpec
from agenthive_server.kernel.messages import Message, Urgency
from agenthive_server.kernel.ports import Query
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.task_queries import Explanation
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import Progress, Task

DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """What is known of a backup. Times are seconds since 1970, sizes bytes."""

    path: Path
    create_time: float
    log_id: str
    last_sequence: int
    """The last event in it: everything up to there can be restored from it."""
    size: int
    records: int
    events: int
    blobs: int
    digest: str
    """SHA-256 over its content, in hex."""
    seconds: float = 0.0
    """How long making, checking or restoring it took."""
    problems: tuple[str, ...] = ()
    """What verifying found wrong, in sentences; empty when it is whole."""


class Verbs(Protocol):
    """The kernel's verbs. Changing ones answer when what they did is durable, and raise `KernelError`.

    The principal is the plugin (`plugin:NAME`). Inside of a handler a request id is made of plugin, sequence and number
    of the call, so that a repeat after a crash has no second effect; elsewhere `request_id` may be given for the same.
    """

    async def spawn_agents(
        self,
        agents: Sequence[NewAgent],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        use_existing: bool = False,
        request_id: str = "",
    ) -> list[Agent]:
        """Record agents, all or none; raises `Exists` unless `use_existing`."""

    async def update_agent(
        self,
        agent_id: str,
        spec: AgentSpec,
        *,
        revision: int = 0,
        namespace: str = DEFAULT_NAMESPACE,
        request_id: str = "",
    ) -> Agent:
        """Change what an agent should be."""

    async def shutdown_agent(
        self,
        agent_id: str,
        reason: str,
        *,
        grace: float | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        request_id: str = "",
    ) -> Agent:
        """Stop an agent for good: it takes nothing new, and what it holds may finish within its grace."""

    async def restart_agent(self, agent_id: str, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = "") -> Agent:
        """Start an agent again."""

    async def sleep_agent(
        self, agent_id: str, reason: str, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = ""
    ) -> Agent:
        """Put an agent to sleep."""

    async def wake_agent(self, agent_id: str, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = "") -> Agent:
        """Wake a sleeping agent."""

    async def get_agent(self, agent_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> Agent:
        """Return an agent; raises `NotFound`."""

    def shown_agent(self, agent: Agent) -> ShownAgent:
        """Return what callers see of an agent beside its record: IDLE or BUSY, open leases, context usage."""

    async def list_agents(self, query: Query) -> list[Agent]:
        """Return a page of agents by id."""

    async def delegate_tasks(
        self,
        tasks: Sequence[NewTask],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        use_existing: bool = False,
        request_id: str = "",
    ) -> list[Task]:
        """Accept tasks, all or none."""

    async def get_task(self, task_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> tuple[Task, Progress | None]:
        """Return a task and how far it is; raises `NotFound`."""

    async def list_tasks(self, query: Query) -> list[Task]:
        """Return a page of tasks, newest first."""

    async def wait_task(self, task_id: str, *, timeout: float, namespace: str = DEFAULT_NAMESPACE) -> Task:  # noqa: ASYNC109 - a long poll's span is part of its meaning
        """Return a task when it is terminal, or as it stands after `timeout` seconds."""

    async def explain_routing(self, *, task_id: str = "", namespace: str = DEFAULT_NAMESPACE) -> Explanation:
        """Say who could take a task, and why the others could not."""

    async def cancel_task(
        self, task_id: str, reason: str, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = ""
    ) -> Task:
        """Ask a task to end."""

    async def retry_task(self, task_id: str, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = "") -> Task:
        """Begin a new attempt of a terminal task."""

    async def pause_task(self, task_id: str, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = "") -> Task:
        """Pause a task."""

    async def resume_task(self, task_id: str, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = "") -> Task:
        """Let a paused task go on."""

    async def respond_to_task(
        self, task_id: str, answer: Payload, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = ""
    ) -> Task:
        """Answer the question of a task."""

    async def review_task(
        self,
        task_id: str,
        *,
        accept: bool,
        comment: str = "",
        namespace: str = DEFAULT_NAMESPACE,
        request_id: str = "",
    ) -> Task:
        """Accept the result of a task that waits for review, or send it back."""

    async def send_message(
        self,
        payload: Payload,
        *,
        agent_id: str = "",
        task_id: str = "",
        urgency: Urgency = Urgency.QUEUE,
        namespace: str = DEFAULT_NAMESPACE,
        request_id: str = "",
    ) -> Message:
        """Send a message to an agent or to whoever holds a task."""

    async def broadcast_message(
        self,
        payload: Payload,
        *,
        role: str = "",
        urgency: Urgency = Urgency.QUEUE,
        namespace: str = DEFAULT_NAMESPACE,
        request_id: str = "",
    ) -> str:
        """Send a message to every agent of a role, or to all; returns its id."""

    async def create_backup(self, path: Path) -> BackupReport:
        """Write a consistent backup of the live store to a new folder, without stopping anything."""

    async def list_backups(self, place: Path) -> list[BackupReport]:
        """Return the complete backups in a folder, oldest first; those that cannot be told are left out."""

    async def verify_backup(self, path: Path) -> BackupReport:
        """Read a backup whole and compare; what is wrong is in `problems`."""

    async def restore_backup(self, path: Path, target: Path, *, until_sequence: int | None = None) -> BackupReport:
        """Restore a backup into a new data directory, as a new log; the running store is not touched."""
