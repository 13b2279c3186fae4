"""OrchestratorService.StreamEvents: a subscription for each caller; its frames are passed through as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final

from agenthive.v1 import event_pb2
from agenthive.v1 import orchestrator_service_pb2 as pb

from agenthive_server.events.filter import EventFilter
from agenthive_server.events.output_reader import OutputPosition
from agenthive_server.events.subscription import EventClass, Start, SubscriptionSpec, TakenSnapshot
from agenthive_server.events.subscriptions import Subscriptions
from agenthive_server.kernel.agents import Agent
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.events import Event, EventType, Severity, task_event
from agenthive_server.kernel.tasks import Task
from agenthive_server.plugin.api import Call

from . import validate
from .convert.agents import Shown

Snapshot = Callable[[str | None], TakenSnapshot | Awaitable[TakenSnapshot]]
"""Takes a snapshot of a namespace, or of all: its sequence, and what `snapshot_events` makes of the records."""

_CURSOR: Final = 128
_SEVERITIES: Final = frozenset(int(severity) for severity in Severity)
_TYPES: Final = frozenset(int(kind) for kind in EventType)


class StreamMethods:
    """Makes subscriptions of requests. `longest` gives the seconds after which a stream ends by itself; None: never."""

    def __init__(
        self, subscriptions: Subscriptions, snapshot: Snapshot, *, longest: Callable[[], float | None] = lambda: None
    ) -> None:
        self._subscriptions = subscriptions
        self._snapshot = snapshot
        self._longest = longest

    async def StreamEvents(self, request: pb.StreamEventsRequest, call: Call) -> AsyncIterator[bytes]:
        """Stream events as encoded responses; ends with a last cursor when the server drains."""
        spec = _spec(request, call.namespace)
        snapshot = self._snapshot
        namespace = spec.filter.namespace
        async with self._subscriptions.open(spec, lambda: snapshot(namespace)) as subscription:
            seconds = self._longest()
            timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, subscription.end)
            try:
                async for frame in subscription:
                    yield frame
            finally:
                if timer is not None:
                    timer.cancel()


def _spec(request: pb.StreamEventsRequest, namespace: str) -> SubscriptionSpec:
    start = _start(request)
    if request.event_class not in pb.EventClass.values():
        raise BadRequest(f"{request.event_class} is no value of this enum", field="event_class")
    kind = EventClass(request.event_class) if request.event_class else EventClass.LIFECYCLE
    bookmark = validate.span(request.bookmark_interval, "bookmark_interval")
    validate.count(request.output_positions, "output_positions", validate.MAX_COUNT)
    return SubscriptionSpec(
        start=start,
        cursor=validate.text(request.after_cursor, "after_cursor", _CURSOR),
        time=validate.instant(request.start_time, "start_time"),
        filter=_filter(request.filter, namespace),
        event_class=kind,
        follow=not request.no_follow,
        **({"bookmark_interval": bookmark} if bookmark else {}),
        offsets=tuple(
            OutputPosition(
                namespace=namespace,
                task_id=validate.required_id(position.task_id, f"output_positions[{n}].task_id"),
                attempt=validate.between(position.attempt, 1, 2**31 - 1, f"output_positions[{n}].attempt"),
                offset=validate.between(position.offset, 0, 2**53, f"output_positions[{n}].offset"),
            )
            for n, position in enumerate(request.output_positions)
        ),
    )


def _start(request: pb.StreamEventsRequest) -> Start:
    if request.start not in pb.StreamStart.values():
        raise BadRequest(f"{request.start} is no value of this enum", field="start")
    if request.start == pb.STREAM_START_UNSPECIFIED:
        return Start.AFTER if request.after_cursor else Start.NOW
    start = Start(request.start)
    if start is Start.AFTER and not request.after_cursor:
        raise BadRequest("required with this start", field="after_cursor")
    if start is not Start.AFTER and request.after_cursor:
        raise BadRequest("contradicts the start", field="after_cursor")
    if start is Start.AT_TIME and not request.HasField("start_time"):
        raise BadRequest("required with this start", field="start_time")
    return start


def _filter(message: event_pb2.EventFilter, namespace: str) -> EventFilter:
    validate.count(message.types, "filter.types", validate.MAX_COUNT)
    for n, number in enumerate(message.types):
        if number not in _TYPES:
            raise BadRequest(f"{number} is no type of events", field=f"filter.types[{n}]")
    severity = int(message.minimum_severity) or int(Severity.INFO)
    if severity not in _SEVERITIES:
        raise BadRequest(f"{severity} is no value of this enum", field="filter.minimum_severity")
    return EventFilter(
        namespace=None if message.all_namespaces else namespace,
        types=frozenset(EventType(number) for number in message.types),
        agent_ids=frozenset(validate.ids(message.agent_ids, "filter.agent_ids")),
        task_ids=frozenset(validate.ids(message.task_ids, "filter.task_ids")),
        root_task_id=validate.optional_id(message.root_task_id, "filter.root_task_id"),
        roles=frozenset(validate.texts(message.roles, "filter.roles", validate.MAX_COUNT)),
        labels=frozenset(validate.labels(message.labels, "filter.labels").items()),
        minimum_severity=Severity(severity),
    )


def agent_snapshot(agent: Agent, shown: Shown) -> Event:
    """Return the synthetic event that tells of an agent as it is."""
    return Event(
        type=EventType.AGENT_SNAPSHOT,
        namespace=agent.namespace,
        agent_id=agent.id,
        session_id=agent.session_id,
        role=agent.spec.role,
        labels=agent.spec.labels,
        data={"agent": (agent, shown)},
    )


def task_snapshot(task: Task) -> Event:
    """Return the synthetic event that tells of an open task as it is."""
    event = task_event(EventType.TASK_SNAPSHOT, task)
    event.data["task"] = task
    return event


def snapshot_events(agents: Iterable[tuple[Agent, Shown]], tasks: Iterable[Task]) -> list[Event]:
    """Return the events of a snapshot: agents by id, then tasks, oldest first."""
    found = [agent_snapshot(agent, shown) for agent, shown in sorted(agents, key=lambda pair: pair[0].key)]
    return found + [task_snapshot(task) for task in sorted(tasks, key=lambda task: (task.create_time, task.id))]
