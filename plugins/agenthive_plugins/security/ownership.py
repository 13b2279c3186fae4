"""What belongs to an agent: itself, and the tasks it holds or held. Of all else it is not told whether it exists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec
from agenthive_server.plugin.api import HookState, NotFound, PermissionDenied, State, Task, Verbs

from .callers import Caller

OWNERS: Final = "agent/"

Concern = tuple[str, str]
"""A kind, `agent` or `task`, and an id."""


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Whose an agent is, and the credential that speaks for it; none where its principal shows something else."""

    principal: str
    token_id: str = ""


_decoder: Final = msgspec.json.Decoder(Owner)


def owner_key(namespace: str, agent_id: str) -> str:
    """Return the key of an agent's owner."""
    return f"{OWNERS}{quote(namespace, safe='')[:100]}/{agent_id}"


def read_owner(rows: HookState, namespace: str, agent_id: str) -> Owner | None:
    """Return whose an agent is, inside a change; None for nobody's."""
    raw = rows.get(owner_key(namespace, agent_id))
    return None if raw is None else read_owner_of(raw)


def read_owner_of(raw: bytes) -> Owner:
    """Return an owner from how it is stored."""
    return _decoder.decode(raw)


def write_owner(rows: HookState, namespace: str, agent_id: str, owner: Owner) -> None:
    """Set whose an agent is, inside a change."""
    rows.put(owner_key(namespace, agent_id), msgspec.json.encode(owner))


def _agent(request: Any) -> Iterable[Concern] | None:
    return [("agent", request.agent_id)]


def _task(request: Any) -> Iterable[Concern] | None:
    return [("task", request.task_id)]


def _sender(request: Any) -> Iterable[Concern] | None:
    return [("agent", request.sender_agent_id)]


def _filtered(request: Any) -> Iterable[Concern] | None:
    if request.filter.all_namespaces or not request.filter.agent_ids:
        return None
    return [("agent", agent_id) for agent_id in request.filter.agent_ids]


def _nothing(request: Any) -> Iterable[Concern] | None:
    return ()


_ORCHESTRATOR: Final = "/agenthive.v1.OrchestratorService/"
_MESSAGING: Final = "/agenthive.v1.MessagingService/"
_BLOBS: Final = "/agenthive.v1.BlobService/"

CONCERNS: Final[Mapping[str, Callable[[Any], Iterable[Concern] | None]]] = {
    f"{_ORCHESTRATOR}GetAgent": _agent,
    f"{_ORCHESTRATOR}GetTask": _task,
    f"{_ORCHESTRATOR}WaitTask": _task,
    f"{_ORCHESTRATOR}ListTasks": _agent,
    f"{_ORCHESTRATOR}StreamEvents": _filtered,
    f"{_ORCHESTRATOR}HealthCheck": _nothing,
    f"{_MESSAGING}SendMessage": _sender,
    f"{_MESSAGING}BroadcastMessage": _sender,
    f"{_MESSAGING}StreamMessages": _agent,
    f"{_MESSAGING}AcknowledgeMessages": _agent,
    # Payloads of tasks: their ids are hashes of what is in them, and cannot be guessed.
    f"{_BLOBS}UploadBlob": _nothing,
    f"{_BLOBS}DownloadBlob": _nothing,
}
"""What the calls an agent may make are about; it may make no other, and these only where all of it is its own."""


class Ownership:
    """Finds out whether what a call is about belongs to its caller."""

    def __init__(self, state: State, verbs: Verbs) -> None:
        self._state = state
        self._verbs = verbs

    async def require(self, caller: Caller, namespace: str, method: str, request: Any) -> None:
        """Return when all that a call is about is its caller's; else raise `PermissionDenied`."""
        if caller.namespace and caller.namespace != namespace:
            raise foreign()
        concern = CONCERNS.get(method)
        about = concern(request) if concern is not None and (request is not None or concern is _nothing) else None
        if about is None:
            raise PermissionDenied("agents may not do this", metadata={"method": method})
        for kind, name in about:
            owned = self._owns_agent if kind == "agent" else self._owns_task
            if not name or not await owned(caller, namespace, name):
                raise foreign()

    async def _owns_agent(self, caller: Caller, namespace: str, agent_id: str) -> bool:
        if agent_id in caller.agents:
            return True
        stored = await self._state.get(owner_key(namespace, agent_id)) if len(agent_id) <= 128 else None
        return stored is not None and read_owner_of(stored.value).principal == caller.principal

    async def _owns_task(self, caller: Caller, namespace: str, task_id: str) -> bool:
        try:
            task, _ = await self._verbs.get_task(task_id, namespace=namespace)
        except NotFound:
            return False
        for agent_id in holders(task):
            if await self._owns_agent(caller, namespace, agent_id):
                return True
        return False


def holders(task: Task) -> list[str]:
    """Return the agents a task is or was given to, the present one first."""
    now = [task.lease.agent_id] if task.lease is not None else []
    pinned = [task.spec.agent_id] if task.spec.agent_id else []
    return list(dict.fromkeys(now + pinned + [attempt.agent_id for attempt in task.attempts]))


def foreign() -> PermissionDenied:
    """Return the error for what belongs to somebody else, or does not exist."""
    return PermissionDenied("this is not yours")
