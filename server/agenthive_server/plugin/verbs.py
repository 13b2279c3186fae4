"""What plugins may do: the kernel's verbs in the plugin's name; what they are given is checked as a caller's would be.

Nothing that is returned leads back to the kernel: records are values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from agenthive_server.kernel.agent_verbs import NewAgent, ShownAgent
from agenthive_server.kernel.agents import Agent, AgentSpec
from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import BadRequest, NotImplementedHere
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.messages import Message, Urgency
from agenthive_server.kernel.ports import Query
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.task_queries import Explanation
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import Progress, Task, TaskSpec

from .checks import bounded, check_name, check_new, check_payload, check_span, check_text
from .occasion import digest_of, present
from .ports import DEFAULT_NAMESPACE, BackupReport

_REQUEST_ID: Final = 128
_TEXT: Final = 1_024
_LONG_TEXT: Final = 4_096


class Backups(Protocol):
    """The backups of the store, where it can make them."""

    async def create_backup(self, path: Path) -> BackupReport:
        """Write a consistent backup of the live store to a new folder."""

    async def list_backups(self, place: Path) -> list[BackupReport]:
        """Return the complete backups in a folder."""

    async def verify_backup(self, path: Path) -> BackupReport:
        """Read a backup whole and compare."""

    async def restore_backup(self, path: Path, target: Path, *, until_sequence: int | None = None) -> BackupReport:
        """Restore a backup into a new data directory."""


class PluginVerbs:
    """`Verbs` for one plugin: its principal is `plugin:NAME`."""

    __slots__ = ("_backups", "_kernel", "_principal")

    def __init__(self, kernel: Kernel, plugin: str, backups: Backups | None = None) -> None:
        self._kernel = kernel
        self._principal = f"plugin:{plugin}"
        self._backups = backups

    def _caller(self, verb: str, namespace: str, request_id: str, *asked: object) -> Caller:
        """Return who makes a changing call, and what makes its repeat harmless."""
        check_name(namespace, "namespace")
        occasion = present()
        if request_id:
            check_text(request_id, "request_id", _REQUEST_ID)
        elif occasion is None:
            return Caller(namespace=namespace, principal=self._principal, method=f"plugin/{verb}")
        try:
            digest = digest_of(verb, namespace, *asked)
        except TypeError as error:
            raise BadRequest(f"{verb} was given what is no plain record: {error}") from None
        if not request_id and occasion is not None:
            request_id = occasion.request_id(digest)
        return Caller(
            namespace=namespace,
            principal=self._principal,
            method=f"plugin/{verb}",
            request_id=request_id,
            digest=digest,
        )

    # Agents ---------------------------------------------------------------------------------------------------------

    async def spawn_agents(
        self,
        agents: Sequence[NewAgent],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        use_existing: bool = False,
        request_id: str = "",
    ) -> list[Agent]:
        """Record agents, all or none; raises `Exists` unless `use_existing`."""
        for new in agents:
            check_new(new.id, new.spec, AgentSpec)
        caller = self._caller("spawn_agents", namespace, request_id, list(agents), use_existing)
        return await self._kernel.agents.spawn(caller, agents, use_existing=use_existing)

    async def update_agent(
        self,
        agent_id: str,
        spec: AgentSpec,
        *,
        revision: int = 0,
        namespace: str = DEFAULT_NAMESPACE,
        request_id: str = "",
    ) -> Agent:
        """Change what an agent should be; with `revision` only if that is the present one, else `Conflict`."""
        check_new(agent_id, spec, AgentSpec)
        caller = self._caller("update_agent", namespace, request_id, agent_id, spec, revision)
        return await self._kernel.agents.update(caller, agent_id, spec, revision)

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
        check_text(reason, "reason", _TEXT)
        check_span(grace, "grace")
        caller = self._caller("shutdown_agent", namespace, request_id, agent_id, reason, grace)
        return await self._kernel.agents.shutdown(caller, agent_id, reason, grace)

    async def restart_agent(self, agent_id: str, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = "") -> Agent:
        """Start an agent again."""
        caller = self._caller("restart_agent", namespace, request_id, agent_id)
        return await self._kernel.agents.restart(caller, agent_id)

    async def sleep_agent(
        self, agent_id: str, reason: str, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = ""
    ) -> Agent:
        """Put an agent to sleep."""
        check_text(reason, "reason", _TEXT)
        caller = self._caller("sleep_agent", namespace, request_id, agent_id, reason)
        return await self._kernel.agents.sleep(caller, agent_id, reason)

    async def wake_agent(self, agent_id: str, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = "") -> Agent:
        """Wake a sleeping agent."""
        caller = self._caller("wake_agent", namespace, request_id, agent_id)
        return await self._kernel.agents.wake(caller, agent_id)

    async def get_agent(self, agent_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> Agent:
        """Return an agent; raises `NotFound`."""
        return await self._kernel.agents.get(namespace, agent_id)

    def shown_agent(self, agent: Agent) -> ShownAgent:
        """Return what callers see of an agent beside its record."""
        return self._kernel.agents.shown(agent)

    async def list_agents(self, query: Query) -> list[Agent]:
        """Return a page of agents by id, at most 1,000."""
        return await self._kernel.agents.list(bounded(query))

    # Tasks ----------------------------------------------------------------------------------------------------------

    async def delegate_tasks(
        self,
        tasks: Sequence[NewTask],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        use_existing: bool = False,
        request_id: str = "",
    ) -> list[Task]:
        """Accept tasks, all or none."""
        for new in tasks:
            check_new(new.id, new.spec, TaskSpec)
        caller = self._caller("delegate_tasks", namespace, request_id, list(tasks), use_existing)
        return await self._kernel.tasks.delegate(caller, tasks, use_existing=use_existing)

    async def get_task(self, task_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> tuple[Task, Progress | None]:
        """Return a task and how far it is; raises `NotFound`."""
        return await self._kernel.queries.get(namespace, task_id)

    async def list_tasks(self, query: Query) -> list[Task]:
        """Return a page of tasks, newest first, at most 1,000."""
        return await self._kernel.queries.list(bounded(query))

    async def wait_task(self, task_id: str, *, timeout: float, namespace: str = DEFAULT_NAMESPACE) -> Task:  # noqa: ASYNC109 - a long poll's span is part of its meaning
        """Return a task when it is terminal, or as it stands after `timeout` seconds."""
        return await self._kernel.queries.wait(namespace, task_id, timeout=timeout)

    async def explain_routing(self, *, task_id: str = "", namespace: str = DEFAULT_NAMESPACE) -> Explanation:
        """Say who could take a task, and why the others could not."""
        return await self._kernel.queries.explain(namespace, task_id=task_id)

    async def cancel_task(
        self, task_id: str, reason: str, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = ""
    ) -> Task:
        """Ask a task to end."""
        check_text(reason, "reason", _TEXT)
        caller = self._caller("cancel_task", namespace, request_id, task_id, reason)
        return await self._kernel.tasks.cancel(caller, task_id, reason)

    async def retry_task(self, task_id: str, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = "") -> Task:
        """Begin a new attempt of a terminal task."""
        return await self._change("retry_task", self._kernel.tasks.retry, task_id, namespace, request_id)

    async def pause_task(self, task_id: str, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = "") -> Task:
        """Pause a task."""
        return await self._change("pause_task", self._kernel.tasks.pause, task_id, namespace, request_id)

    async def resume_task(self, task_id: str, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = "") -> Task:
        """Let a paused task go on."""
        return await self._change("resume_task", self._kernel.tasks.resume, task_id, namespace, request_id)

    async def _change(
        self, verb: str, change: Callable[[Caller, str], Any], task_id: str, namespace: str, request_id: str
    ) -> Task:
        task: Task = await change(self._caller(verb, namespace, request_id, task_id), task_id)
        return task

    async def respond_to_task(
        self, task_id: str, answer: Payload, *, namespace: str = DEFAULT_NAMESPACE, request_id: str = ""
    ) -> Task:
        """Answer the question of a task."""
        check_payload(answer)
        caller = self._caller("respond_to_task", namespace, request_id, task_id, answer)
        return await self._kernel.tasks.respond(caller, task_id, answer)

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
        check_text(comment, "comment", _LONG_TEXT)
        caller = self._caller("review_task", namespace, request_id, task_id, accept, comment)
        return await self._kernel.tasks.review(caller, task_id, accept, comment)

    # Messages -------------------------------------------------------------------------------------------------------

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
        check_payload(payload)
        caller = self._caller("send_message", namespace, request_id, payload, agent_id, task_id, urgency)
        send = self._kernel.messages.send
        return await send(caller, agent_id=agent_id, task_id=task_id, payload=payload, urgency=Urgency(urgency))

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
        check_payload(payload)
        caller = self._caller("broadcast_message", namespace, request_id, payload, role, urgency)
        return await self._kernel.messages.broadcast(caller, role=role, payload=payload, urgency=Urgency(urgency))

    # Backups --------------------------------------------------------------------------------------------------------

    async def create_backup(self, path: Path) -> BackupReport:
        """Write a consistent backup of the live store to a new folder, without stopping anything."""
        return await self._backed_up().create_backup(path)

    async def list_backups(self, place: Path) -> list[BackupReport]:
        """Return the complete backups in a folder, oldest first; those that cannot be told are left out."""
        return await self._backed_up().list_backups(place)

    async def verify_backup(self, path: Path) -> BackupReport:
        """Read a backup whole and compare; what is wrong is in `problems`."""
        return await self._backed_up().verify_backup(path)

    async def restore_backup(self, path: Path, target: Path, *, until_sequence: int | None = None) -> BackupReport:
        """Restore a backup into a new data directory, as a new log; the running store is not touched."""
        return await self._backed_up().restore_backup(path, target, until_sequence=until_sequence)

    def _backed_up(self) -> Backups:
        if self._backups is None:
            raise NotImplementedHere("this store cannot be backed up")
        return self._backups
