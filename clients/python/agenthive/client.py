"""`Client`: everything a caller can ask of the control plane, as typed methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agenthive.agents import AgentCalls
from agenthive.blobs import BlobCalls
from agenthive.events import EventStream
from agenthive.messages import MessageCalls
from agenthive.operations import OperationCalls
from agenthive.task_control import TaskControlCalls
from agenthive.tasks import TaskCalls
from agenthive.v1 import event_pb2
from agenthive.v1 import orchestrator_service_pb2 as orchestrator

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from types import TracebackType
    from typing import Self, Unpack

    from agenthive.events import FilterFields
    from agenthive.v1.orchestrator_service_pb2 import EventClass, OutputPosition, StreamStart


class Client(AgentCalls, TaskCalls, TaskControlCalls, MessageCalls, BlobCalls, OperationCalls):
    """A caller's view of the hive; its methods come from the modules named after their nouns.

    Use it as a context manager, or close it. Every call has a deadline (30 s unless said otherwise), every mutating
    one a `request_id`: the transport repeats calls that met a stopping or unreachable server, at most five times, and
    that is harmless. A failed call raises a subclass of `HiveError`. One client serves any number of concurrent calls
    in one event loop. Nothing is opened before the first call.
    """

    async def __aenter__(self) -> Self:
        """Return the client; leaving the block closes it."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the channel; calls and streams in flight end."""
        await self.close()

    def events(
        self,
        *,
        start: StreamStart.ValueType = orchestrator.STREAM_START_UNSPECIFIED,
        after: str = "",
        start_time: datetime | None = None,
        filter: event_pb2.EventFilter | None = None,  # noqa: A002 - the contract's word
        follow: bool = True,
        event_class: EventClass.ValueType = orchestrator.EVENT_CLASS_UNSPECIFIED,
        output_positions: Iterable[OutputPosition] = (),
        give_up_after: float | None = None,
        **fields: Unpack[FilterFields],
    ) -> EventStream:
        """Return the events from `start` (default: now, or after the cursor `after`) as one unbroken iterator.

        The filter is `filter` with the fields given laid over it. Without `follow` it ends at the head of the log.
        It reconnects for ever, or until nothing was heard for `give_up_after` seconds. See EventStream.
        """
        request = orchestrator.StreamEventsRequest(
            start=start,
            after_cursor=after,
            event_class=event_class,
            no_follow=not follow,
            output_positions=output_positions,
        )
        if start_time is not None:
            request.start_time.FromDatetime(start_time)
            if start == orchestrator.STREAM_START_UNSPECIFIED:
                request.start = orchestrator.STREAM_START_AT_TIME
        if filter is not None:
            request.filter.CopyFrom(filter)
        request.filter.MergeFrom(event_pb2.EventFilter(**fields))
        return EventStream(
            self._orchestrator.StreamEvents, request, metadata=self._access.metadata, give_up_after=give_up_after
        )
