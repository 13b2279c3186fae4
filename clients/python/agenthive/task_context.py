"""`TaskContext`: what a handler has in hand while it works on one attempt of a task."""

from __future__ import annotations

import asyncio
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from agenthive.payload import payload, value
from agenthive.steering import Steering
from agenthive.v1 import event_pb2, message_pb2, task_pb2
from agenthive.v1 import worker_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agenthive.payload import JsonValue
    from agenthive.v1.event_pb2 import OutputStream
    from agenthive.v1.message_pb2 import MessageUrgency
    from agenthive.v1.payload_pb2 import Payload
    from agenthive.v1.task_pb2 import TaskErrorClass

MAX_CHECKPOINT_BYTES: Final = 64 * 1024
MAX_OUTPUT_CHUNK_BYTES: Final = 64 * 1024
_MAX_TEXT_BYTES: Final = 1024


class TaskFailed(Exception):
    """Raised by a handler to say exactly how an attempt failed; any other exception fails it as TOOL.

    `next_retry_delay` is in seconds: ask for the next attempt no sooner.
    """

    def __init__(
        self,
        message: str = "",
        *,
        error_class: TaskErrorClass.ValueType = task_pb2.TASK_ERROR_CLASS_TOOL,
        reason: str = "",
        next_retry_delay: float | None = None,
    ) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.reason = reason
        self.message = message
        self.next_retry_delay = next_retry_delay


class SlotReleased(BaseException):
    """Ends a handler that gave its slot back with `ask(…, release_slot=True)`. Let it pass."""


class Flag(asyncio.Event):
    """An event that is true once it is set."""

    def __bool__(self) -> bool:
        """Say whether it is set; this may be asked from any thread."""
        return self.is_set()


class TaskContext:
    """One attempt of a task, for its handler.

    `cancelled` is true once the attempt is to end; a coroutine is cancelled as well, a plain function has to look.
    `checkpoint` is the last one saved, by this attempt or an earlier one. `steering` holds messages about this task.

    `report`, `save_checkpoint`, `output`, `usage` and `send_message` may be called from any thread and return at
    once: the news goes out with a heartbeat within about a second, output and messages immediately.
    """

    def __init__(
        self, assignment: pb.TaskAssignment, send: Callable[[pb.WorkerItem], None], news: Callable[[], None]
    ) -> None:
        """Made by the worker; `news` is called when the next heartbeat should not wait for its interval."""
        self.assignment = assignment
        self.task_id = assignment.task_id
        self.type = assignment.spec.type
        self.attempt = assignment.attempt
        self.payload: Payload = assignment.spec.input
        self.checkpoint = assignment.checkpoint
        self.cancelled = Flag()
        self.steering = Steering(self._read)
        self._send = send
        self._news = news
        self._beat = pb.TaskBeat()
        self._offset = 0
        self._usage: task_pb2.Usage | None = None
        self._going = asyncio.Event()
        self._going.set()
        self._answer: asyncio.Future[Payload] | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._lock = threading.Lock()

    @cached_property
    def input(self) -> JsonValue | bytes:
        """The input, decoded by its content type. Raises ValueError when it is not what that says, or a blob."""
        return value(self.payload)

    @cached_property
    def answers(self) -> Sequence[JsonValue | bytes]:
        """Answers to questions of earlier attempts and comments of reviewers, oldest first. Raises as `input` does."""
        return [value(each) for each in self.assignment.answers]

    async def progress(self, fraction: float, text: str = "") -> None:
        """Report progress, as `report()` does, and let others run: a good place to be cancelled."""
        self.report(fraction, text)
        await asyncio.sleep(0)

    def report(self, fraction: float, text: str = "") -> None:
        """Report progress: 0 to 1, and what it is doing, of which the first 1 KiB is kept. Only the newest is sent."""
        with self._lock:
            self._beat.fraction = min(1.0, max(0.0, fraction))
            if text:
                self._beat.text = cut(text, _MAX_TEXT_BYTES)
        self._in_loop(self._news)

    def save_checkpoint(self, data: bytes) -> None:
        """Keep what the next attempt should resume from. Raises ValueError for more than 64 KiB."""
        if len(data) > MAX_CHECKPOINT_BYTES:
            raise ValueError(f"a checkpoint of {len(data)} bytes; at most {MAX_CHECKPOINT_BYTES}")
        with self._lock:
            self.checkpoint = self._beat.checkpoint = data
        self._in_loop(self._news)

    def usage(
        self,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cost_micros: int = 0,
        context_usage: float | None = None,
    ) -> None:
        """Report what this attempt has consumed so far (totals, not additions; cost in millionths of a US dollar).

        Raises ValueError for a negative one: a heartbeat that is refused would not renew the lease.
        """
        if min(input_tokens, output_tokens, cost_micros) < 0:
            raise ValueError("consumption is not negative")
        totals = task_pb2.Usage(input_tokens=input_tokens, output_tokens=output_tokens, cost_micros=cost_micros)
        with self._lock:
            self._usage = totals
            self._beat.usage.CopyFrom(totals)
            if context_usage is not None:
                self._beat.context_usage = min(1.0, max(0.0, context_usage))
        self._in_loop(self._news)

    def output(
        self, data: str | bytes, *, stream: OutputStream.ValueType = event_pb2.OUTPUT_STREAM_UNSPECIFIED
    ) -> None:
        """Publish a piece of output, live; when the server is away for long the oldest is lost, visibly."""
        content = data.encode() if isinstance(data, str) else bytes(data)
        with self._lock:
            for start in range(0, len(content), MAX_OUTPUT_CHUNK_BYTES):
                chunk = content[start : start + MAX_OUTPUT_CHUNK_BYTES]
                item = pb.TaskOutputChunk(
                    task_id=self.task_id, lease_epoch=self.lease_epoch, offset=self._offset, data=chunk, stream=stream
                )
                self._offset += len(chunk)
                self._in_loop(self._send, pb.WorkerItem(output=item))

    async def ask(
        self,
        question: str,
        schema: Mapping[str, JsonValue] | None = None,
        default: object = None,
        *,
        release_slot: bool = False,
    ) -> JsonValue | bytes:
        """Ask a human and return the answer, decoded; `default` applies when the task's `input_timeout` passes.

        With `release_slot` it never returns: the attempt ends, and a later one finds the answer in `answers` and the
        last `checkpoint`. Raises RuntimeError when a question is open already. Cancelled, the question stays.
        """
        if self._answer is not None:
            raise RuntimeError("one question at a time")
        request = task_pb2.InputRequest(question=question, release_slot=release_slot)
        if schema is not None:
            request.schema.update(schema)
        if default is not None:
            request.default_answer.CopyFrom(payload(default))
        item = pb.TaskInputRequest(task_id=self.task_id, lease_epoch=self.lease_epoch, request=request)
        if release_slot:
            item.checkpoint = self.checkpoint
            self._send(pb.WorkerItem(input_request=item))
            raise SlotReleased
        self._answer = self._loop.create_future()
        self._send(pb.WorkerItem(input_request=item))
        try:
            return value(await self._answer)
        finally:
            self._answer = None

    async def not_paused(self) -> None:
        """Return at once, or, when the task is paused, when it goes on. Call it between two steps."""
        await self._going.wait()

    @property
    def paused(self) -> bool:
        """Whether the task is paused; for plain functions."""
        return not self._going.is_set()

    @property
    def lease_epoch(self) -> int:
        """The fencing token of this attempt; keep it with effects outside of the hive."""
        return self.assignment.lease_epoch

    def send_message(
        self,
        content: object,
        *,
        agent_id: str = "",
        task_id: str = "",
        role: str = "",
        urgency: MessageUrgency.ValueType = message_pb2.MESSAGE_URGENCY_UNSPECIFIED,
    ) -> None:
        """Send a message as this agent: to an agent, to the holder of a task, to a role or, with none of these, all."""
        if sum(map(bool, (agent_id, task_id, role))) > 1:
            raise ValueError("give one recipient at most")
        message = pb.OutgoingMessage(
            request_id=uuid4().hex,
            sender_agent_id=self.assignment.agent_id,
            payload=payload(content),
            urgency=urgency,
        )
        if agent_id:
            message.agent_id = agent_id
        elif task_id:
            message.task_id = task_id
        elif role:
            message.role = role
        else:
            message.all = True
        self._in_loop(self._send, pb.WorkerItem(message=message))

    # -- for the worker

    def take_beat(self) -> pb.TaskBeat:
        """Return what is new since the last call."""
        with self._lock:
            beat, self._beat = self._beat, pb.TaskBeat()
        beat.task_id, beat.lease_epoch = self.task_id, self.lease_epoch
        return beat

    def last_usage(self) -> task_pb2.Usage | None:
        """Return the totals reported last."""
        return self._usage

    def pause(self, resume: bool) -> None:
        """Hold the handler at its next `not_paused()`, or let it go on."""
        if resume:
            self._going.set()
        else:
            self._going.clear()

    def take_answer(self, answer: Payload) -> None:
        """Hand the answer to the open question; without one it is a repeat."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def _read(self, message_id: str) -> None:
        read = pb.MessagesRead(agent_id=self.assignment.agent_id, message_ids=[message_id])
        self._in_loop(self._send, pb.WorkerItem(messages_read=read))

    def _in_loop(self, action: Callable[..., None], *arguments: pb.WorkerItem) -> None:
        if threading.get_ident() == self._thread:
            action(*arguments)
        else:
            self._loop.call_soon_threadsafe(action, *arguments)


def cut(text: str, limit: int) -> str:
    """Return as much of the beginning of a text as fits into `limit` bytes of UTF-8, without what cannot be sent."""
    return text.replace("\x00", "").encode(errors="ignore")[:limit].decode(errors="ignore")
