"""Following one task: its events and output as they happen, until it has ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from agenthive.client import Client
    from agenthive.events import EventStream
    from agenthive.v1.event_pb2 import Event
    from agenthive.v1.task_pb2 import Task

_QUIET: Final = 0.2  # seconds without output after the end: then all of it is here
_LONGEST_TAIL: Final = 2.0
_KEPT: Final = 1024 * 1024  # bytes of output kept with a task; a blob of that size may lack the beginning
_ENDS: Final = frozenset({"task_succeeded", "task_failed", "task_canceled", "task_expired", "task_quarantined"})


class OutputWriter:
    """Writes the output of a task, each byte of an attempt once and in order; a new attempt begins anew."""

    def __init__(self, write: Callable[[bytes], None], note: Callable[[str], None]) -> None:
        """Begin before the first attempt. `note` gets remarks about what is missing."""
        self.attempt = 0
        self.offset = 0
        self._write = write
        self._note = note

    def see(self, event: Event) -> None:
        """Take an event; those that are no output are passed over."""
        fact = event.WhichOneof("fact")
        if fact == "task_output":
            output = event.task_output
            self._begin(output.attempt)
            if output.attempt == self.attempt and output.offset + len(output.data) > self.offset:
                self._write(output.data[max(0, self.offset - output.offset) :])
                self.offset = output.offset + len(output.data)
        elif fact == "output_gap" and event.output_gap.attempt >= self.attempt:
            self._begin(event.output_gap.attempt)
            self._note("[some output is not available any more]")
            self.offset = max(self.offset, event.output_gap.to_offset)

    def _begin(self, attempt: int) -> None:
        if attempt > self.attempt:
            if self.attempt:
                self._note(f"[attempt {attempt}]")
            self.attempt, self.offset = attempt, 0

    async def complete(self, client: Client, task: Task) -> None:
        """Write what the kept output of an ended task has and the stream did not bring."""
        if not task.output_blob_id:
            return
        self._begin(task.attempt)
        if task.attempt != self.attempt or self.offset >= _KEPT:
            return
        kept = await client.download_blob(task.output_blob_id)
        if self.offset == 0 or len(kept) < _KEPT:
            self._write(kept[self.offset :])
            self.offset = max(self.offset, len(kept))


async def head_cursor(client: Client) -> str:
    """Return the cursor of the head of the log: what happens after this call is after it."""
    async with client.events(follow=False, give_up_after=client.timeout) as stream:
        async for _, cursor in stream.batches():
            if cursor:
                return cursor
    return stream.cursor


async def follow_task(
    client: Client, task_id: str, events: EventStream, see: Callable[[Event], None], time_limit: float | None
) -> Task:
    """Hand every event to `see` until the task has ended and its output is here; return the task.

    After `time_limit` seconds it returns the task as it stands. Raises a HiveError of the stream or the wait.
    """
    tail = _Tail()

    async def read() -> None:
        async for event in events:
            tail.saw(event)
            see(event)

    reader = asyncio.ensure_future(read())
    waiter = asyncio.ensure_future(client.wait_task(task_id, timeout=time_limit))
    try:
        await asyncio.wait((reader, waiter), return_when=asyncio.FIRST_COMPLETED)
        if reader.done():
            reader.result()
        task = await waiter
        if not reader.done() and task.HasField("end_time"):
            await tail.quiet()
        return task
    finally:
        reader.cancel()
        waiter.cancel()
        await asyncio.gather(reader, waiter, return_exceptions=True)
        await events.aclose()


class _Tail:
    """Knows when nothing more will come: the end was seen and it has been quiet for a moment."""

    def __init__(self) -> None:
        self._ended = asyncio.Event()
        self._count = 0

    def saw(self, event: Event) -> None:
        self._count += 1
        if event.WhichOneof("fact") in _ENDS:
            self._ended.set()

    async def quiet(self) -> None:
        try:
            async with asyncio.timeout(_LONGEST_TAIL):
                await self._ended.wait()
                before = -1
                while before != self._count:
                    before = self._count
                    await asyncio.sleep(_QUIET)
        except TimeoutError:
            return
