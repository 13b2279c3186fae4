"""Which events a reader wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agenthive_server.kernel.events import Event, EventType, Severity

_SEVERITY = {kind: Event(type=kind, namespace="").severity for kind in EventType}


@dataclass(frozen=True, kw_only=True, slots=True, weakref_slot=True)
class EventFilter:
    """Conditions on events; hashable, so that readers who want the same share their frames.

    Conditions of different fields must all hold, values of one field are alternatives. Empty fields ask for nothing;
    `namespace` None means every namespace. `labels` are pairs that must all be there.
    """

    namespace: str | None = None
    types: frozenset[EventType] = frozenset()
    agent_ids: frozenset[str] = frozenset()
    task_ids: frozenset[str] = frozenset()
    root_task_id: str = ""
    roles: frozenset[str] = frozenset()
    labels: frozenset[tuple[str, str]] = frozenset()
    minimum_severity: Severity = Severity.INFO
    # What follows from the fields above: the types that pass, None for all; whether only type and namespace count.
    _types: frozenset[EventType] | None = field(init=False, repr=False, compare=False)
    _broad: bool = field(init=False, repr=False, compare=False)
    # Tasks or agents of which a matching event must name one; empty when that is not so.
    subjects: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        types: frozenset[EventType] | None = self.types or None
        if self.minimum_severity > Severity.INFO:
            severe = frozenset(kind for kind, severity in _SEVERITY.items() if severity >= self.minimum_severity)
            types = severe if types is None else types & severe
        narrow = self.agent_ids or self.task_ids or self.root_task_id or self.roles or self.labels
        object.__setattr__(self, "_types", types)
        object.__setattr__(self, "_broad", not narrow)
        root = frozenset({self.root_task_id} if self.root_task_id else ())
        object.__setattr__(self, "subjects", self.task_ids or root or self.agent_ids)

    def excludes(self, named: frozenset[str]) -> bool:
        """Return whether events that name only these tasks and agents (see `named_in`) cannot be wanted."""
        return bool(self.subjects) and self.subjects.isdisjoint(named)

    def matches(self, event: Event) -> bool:
        """Return whether the reader wants this event; half a microsecond at most, for it is asked for every one."""
        namespace = self.namespace
        if namespace is not None and event.namespace != namespace:
            return False
        types = self._types
        if types is not None and event.type not in types:
            return False
        return self._broad or self._matches_subject(event)

    def _matches_subject(self, event: Event) -> bool:
        if self.task_ids and event.task_id not in self.task_ids:
            return False
        if self.agent_ids and event.agent_id not in self.agent_ids:
            return False
        root = self.root_task_id
        if root and event.task_id != root and root not in event.ancestors:
            return False
        if self.roles and event.role not in self.roles:
            return False
        return not self.labels or self.labels <= event.labels.items()


def named_in(events: Sequence[Event]) -> frozenset[str]:
    """Return the tasks, their ancestors and the agents that events name: asked once for all readers with filters."""
    named: set[str] = set()
    for event in events:
        named.add(event.task_id)
        named.add(event.agent_id)
        named.update(event.ancestors)
    return frozenset(named)
