"""How far the output of each attempt was read: what makes an OUTPUT stream resumable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agenthive.v1 import orchestrator_service_pb2 as orchestrator

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agenthive.v1.event_pb2 import Event
    from agenthive.v1.orchestrator_service_pb2 import OutputPosition

MAX_POSITIONS: Final = 256
"""As many as a request may name; of more attempts, those read last are kept."""


class OutputPositions:
    """The first byte wanted of each attempt. Without a namespace in the request, task ids stand for themselves."""

    def __init__(self, positions: Iterable[OutputPosition] = ()) -> None:
        """Begin with these positions."""
        self._next = {(each.task_id, each.attempt): each.offset for each in positions}

    def positions(self) -> Sequence[OutputPosition]:
        """Return them for a request."""
        return [
            orchestrator.OutputPosition(task_id=task_id, attempt=attempt, offset=offset)
            for (task_id, attempt), offset in self._next.items()
        ]

    def unseen(self, event: Event) -> Event | None:
        """Return the event without the bytes that were seen before, or None when all of them were."""
        if event.HasField("output_gap"):
            gap = event.output_gap
            self._move(event.task_id, gap.attempt, gap.to_offset)
        if not event.HasField("task_output"):
            return event
        output = event.task_output
        wanted = self._next.get((event.task_id, output.attempt), 0)
        end = output.offset + len(output.data)
        if end <= wanted and output.data:
            return None
        if output.offset < wanted:
            output.data = output.data[wanted - output.offset :]
            output.offset = wanted
        self._move(event.task_id, output.attempt, end)
        return event

    def _move(self, task_id: str, attempt: int, offset: int) -> None:
        key = (task_id, attempt)
        self._next[key] = max(offset, self._next.pop(key, 0))
        if len(self._next) > MAX_POSITIONS:
            del self._next[next(iter(self._next))]
