"""One lease being worked on: runs its handler, stops it, and reports how it ended, once."""

from __future__ import annotations

import asyncio
import contextvars
import enum
import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from agenthive.outbox import MAX_ITEM_BYTES, Lease
from agenthive.payload import payload
from agenthive.task_context import SlotReleased, TaskContext, TaskFailed, cut
from agenthive.v1 import task_pb2
from agenthive.v1 import worker_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor

Handler: TypeAlias = "Callable[[TaskContext], Awaitable[Any]] | Callable[[TaskContext], Any]"

log = logging.getLogger(__name__)

_MAX_REASON: Final = 63
_MAX_MESSAGE_BYTES: Final = 4096


class Ending(enum.Enum):
    """Why an execution is stopped, which says what is reported."""

    CANCEL = "the task is canceled: report that"
    HAND_BACK = "the worker stops: hand the task back with its checkpoint"
    REVOKED = "the lease is gone: report nothing"


class Execution:
    """A handler at work. Its slot is taken until the handler has really ended, also when the lease is gone before."""

    def __init__(
        self, context: TaskContext, handler: Handler, send: Callable[[pb.WorkerItem], None], threads: Executor
    ) -> None:
        """Keep what to run; plain functions run in `threads`."""
        self.context = context
        self.lease = Lease(context.task_id, context.lease_epoch)
        self.ending: Ending | None = None
        self.reported = False
        self.ended = asyncio.Event()
        self.settled = asyncio.Event()  # reported, or nothing to report
        self._handler = handler
        call = type(handler).__call__  # a handler may be an object with an `async def __call__`
        self._plain = not (inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call))
        self._send = send
        self._threads = threads
        self._reason = ""
        self._work: asyncio.Task[object] | None = None
        self._give_up: asyncio.TimerHandle | None = None

    @property
    def held(self) -> bool:
        """Whether the lease is still ours, for heartbeats and hellos."""
        return not self.reported and self.ending is not Ending.REVOKED

    async def run(self, previous: Execution | None = None) -> None:
        """Run the handler, after the previous execution has ended, and report its end.

        Raises nothing of the handler. Cancelled, it ends the handler and reports nothing.
        """
        try:
            if previous is not None:
                await previous.ended.wait()
            if self.ending is None:
                self._work = asyncio.ensure_future(self._invoke())
                await asyncio.wait({self._work})
            self._report(self._outcome(self._work) if self._work else None)
        except asyncio.CancelledError:
            self.stop(Ending.REVOKED)
            if self._work is not None:
                await asyncio.wait({self._work})
            raise
        finally:
            if self._give_up is not None:
                self._give_up.cancel()
            self.ended.set()
            self.settled.set()

    def stop(self, ending: Ending, reason: str = "", grace: float | None = None) -> None:
        """Stop the handler: a coroutine is cancelled, a plain function finds `task.cancelled`.

        After `grace` seconds the end is reported although the handler goes on. A lost lease beats any other ending.
        """
        if self.ending is Ending.REVOKED or (self.ending is not None and ending is not Ending.REVOKED):
            return
        self.ending, self._reason = ending, reason
        if ending is Ending.REVOKED:
            self.settled.set()
        self.context.cancelled.set()
        self.context.pause(resume=True)
        if self._work is not None:
            self._interrupt()
        if grace is not None:
            self._give_up = asyncio.get_running_loop().call_later(grace, self._report, None)

    def _interrupt(self) -> None:
        if not self._plain and self._work is not None:
            self._work.cancel()

    async def _invoke(self) -> object:
        try:
            if not self._plain:
                returned: object = await self._handler(self.context)
                return returned
            run = functools.partial(contextvars.copy_context().run, self._handler, self.context)
            return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        except SystemExit as error:  # it must not take the worker down
            raise TaskFailed(f"the handler exited with {error.code}", reason="SystemExit") from error

    def _report(self, item: pb.WorkerItem | None) -> None:
        if self.reported or self.ending is Ending.REVOKED:
            return
        self.reported = True
        self._send(item or self._stopped())
        self.settled.set()

    def _outcome(self, work: asyncio.Task[object]) -> pb.WorkerItem | None:
        """Return what to report: None for what the ending says."""
        if work.cancelled():
            return None if self.ending else self._error(TaskFailed("the handler cancelled itself", reason="CANCELLED"))
        error = work.exception()
        if isinstance(error, SlotReleased):
            self.reported = True  # the question was the report
            return None
        if self.ending is not None and (error is not None or self._plain):
            return None
        if error is None:
            return self._result(work.result())
        if not isinstance(error, TaskFailed):
            log.warning("handler failed: task=%s type=%s", self.lease.task_id, self.context.type, exc_info=error)
        return self._error(error)

    def _stopped(self) -> pb.WorkerItem:
        task_id, epoch = self.lease
        if self.ending is Ending.CANCEL:
            usage = self.context.last_usage()
            text = cut(self._reason or "canceled", _MAX_MESSAGE_BYTES)
            return pb.WorkerItem(result=pb.TaskResult(task_id=task_id, lease_epoch=epoch, canceled=text, usage=usage))
        return pb.WorkerItem(
            hand_back=pb.TaskHandBack(
                task_id=task_id, lease_epoch=epoch, checkpoint=self.context.checkpoint, reason=self._reason
            )
        )

    def _result(self, returned: object) -> pb.WorkerItem:
        try:
            result = payload(returned)
        except (TypeError, ValueError) as error:
            return self._error(TaskFailed(f"the result cannot be sent: {error}", reason="RESULT_NOT_JSON"))
        if result.ByteSize() > MAX_ITEM_BYTES - 1024:
            text = f"the result has {result.ByteSize()} bytes; upload it as a blob and return that payload"
            return self._error(TaskFailed(text, reason="RESULT_TOO_LARGE"))
        task_id, epoch = self.lease
        usage = self.context.last_usage()
        return pb.WorkerItem(result=pb.TaskResult(task_id=task_id, lease_epoch=epoch, result=result, usage=usage))

    def _error(self, error: BaseException) -> pb.WorkerItem:
        return failed(self.lease, error, self.context.last_usage())


def failed(lease: Lease, error: BaseException, usage: task_pb2.Usage | None = None) -> pb.WorkerItem:
    """Return the result of an attempt that failed: as a TaskFailed says, else TOOL with the type's name as reason."""
    if isinstance(error, TaskFailed):
        known, reason, message = error.error_class, error.reason, error.message
    else:
        known, reason, message = task_pb2.TASK_ERROR_CLASS_TOOL, type(error).__name__, str(error)
    task_error = task_pb2.TaskError(
        error_class=known, reason=reason[:_MAX_REASON], message=cut(message, _MAX_MESSAGE_BYTES)
    )
    if isinstance(error, TaskFailed) and error.next_retry_delay is not None:
        task_error.next_retry_delay.FromNanoseconds(round(error.next_retry_delay * 1e9))
    task_id, epoch = lease
    return pb.WorkerItem(result=pb.TaskResult(task_id=task_id, lease_epoch=epoch, error=task_error, usage=usage))
