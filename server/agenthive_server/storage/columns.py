"""What can be asked of records besides their key: the columns of each kind, and how they are read from a record.

Every store takes them from here, so that a condition means the same in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agenthive_server.kernel.agents import Agent
from agenthive_server.kernel.messages import Broadcast, Message
from agenthive_server.kernel.ports import Query
from agenthive_server.kernel.records import CursorRecord, Kind, Record, RequestRecord, RoleRecord, StateRecord
from agenthive_server.kernel.sessions import Session
from agenthive_server.kernel.tasks import TERMINAL, Progress, Task

Values = tuple[Any, ...]

REVISION = "0003"
"""The migration this version's tables stand at; it is the newest file in `migrations/versions`."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The columns of one kind beside namespace, id and revision.

    `fixed` never change once the record exists; `changing` are written with every revision. `due_time` is the time from
    which `Store.expired` counts: None while a record is not over. `newest_first`: pages go by (create_time, id)
    backwards, else by id.
    """

    record: type[Record]
    fixed: tuple[str, ...] = ()
    fixed_values: Callable[[Any], Values] = lambda _: ()
    changing: tuple[str, ...] = ()
    changing_values: Callable[[Any], Values] = lambda _: ()
    newest_first: bool = False

    def facts(self, record: Record) -> dict[str, Any]:
        """Return the columns of a record by name."""
        facts = dict(zip(self.fixed, self.fixed_values(record), strict=True))
        facts.update(zip(self.changing, self.changing_values(record), strict=True))
        return facts

    def sort_key(self, record: Record) -> tuple[float | str, str]:
        """Return the place of a record in pages, as `Query.after` takes it."""
        return (record.create_time, record.id) if self.newest_first else ("", record.id)  # type: ignore[attr-defined] # only kinds that have it


def _task_fixed(task: Task) -> Values:
    spec = task.spec
    return (spec.type, spec.role or None, spec.parent_task_id or None, spec.labels, task.create_time)


def _task_changing(task: Task) -> Values:
    if task.state in TERMINAL:
        return (task.state.value, None, task.end_time or task.update_time)
    lease = task.lease
    return (task.state.value, lease.agent_id if lease else None, None)


def _agent_changing(agent: Agent) -> Values:
    return (agent.state.value, agent.spec.role or None, agent.spec.labels)


SHAPES: Mapping[Kind, Shape] = {
    Kind.AGENT: Shape(
        record=Agent,
        changing=("state", "role", "labels"),
        changing_values=_agent_changing,
    ),
    Kind.TASK: Shape(
        record=Task,
        fixed=("type", "role", "parent_task_id", "labels", "create_time"),
        fixed_values=_task_fixed,
        changing=("state", "agent_id", "due_time"),
        changing_values=_task_changing,
        newest_first=True,
    ),
    Kind.PROGRESS: Shape(record=Progress),
    Kind.SESSION: Shape(
        record=Session,
        changing=("state", "labels"),
        changing_values=lambda session: (session.state.value, session.labels),
    ),
    Kind.MESSAGE: Shape(
        record=Message,
        fixed=("agent_id", "create_time"),
        fixed_values=lambda message: (message.agent_id or None, message.create_time),
        changing=("state", "due_time"),
        changing_values=lambda message: (message.state.value, message.expire_time),
        newest_first=True,
    ),
    Kind.BROADCAST: Shape(
        record=Broadcast,
        fixed=("role", "create_time", "due_time"),
        fixed_values=lambda broadcast: (broadcast.role or None, broadcast.create_time, broadcast.expire_time),
        newest_first=True,
    ),
    Kind.REQUEST: Shape(
        record=RequestRecord,
        fixed=("create_time", "due_time"),
        fixed_values=lambda request: (request.create_time, request.create_time),
        newest_first=True,
    ),
    Kind.CURSOR: Shape(record=CursorRecord),
    Kind.ROLE: Shape(record=RoleRecord),
    Kind.STATE: Shape(record=StateRecord),
}
"""The columns of every kind. Empty is None; what is not a column of a kind is empty in all its records."""


def conditions(query: Query) -> dict[str, str]:
    """Return the conditions of a query that ask for one value of a column."""
    asked = {
        "role": query.role,
        "parent_task_id": query.parent_task_id,
        "type": query.type,
        "agent_id": query.agent_id,
    }
    return {name: value for name, value in asked.items() if value}


def matches(facts: Mapping[str, Any], query: Query) -> bool:
    """Return whether a record with these columns meets a query's conditions (its namespace and place aside)."""
    if query.states and facts.get("state", "") not in query.states:
        return False
    if any(facts.get(name) != value for name, value in conditions(query).items()):
        return False
    labels = facts.get("labels") or {}
    return all(labels.get(name) == value for name, value in query.labels.items())
