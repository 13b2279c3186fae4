"""What a worker has on its desk: the leases it holds, and what the server says about them."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from agenthive.execution import Ending, Execution, failed
from agenthive.outbox import Lease, lease_of
from agenthive.task_context import TaskContext, TaskFailed
from agenthive.v1 import error_pb2, task_pb2
from agenthive.v1 import worker_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Set

    from agenthive.execution import Handler

RETRY_AFTER: Final = 1.0
"""Seconds after which a task that was rejected may be offered again."""

_LAST_GRACE: Final = 1.0  # seconds a handler that is told to hand back may take to end
_REMEMBERED: Final = 1024  # leases that ended
_REFUSED: Final = "RESULT_REFUSED"

log = logging.getLogger(__name__)


class Desk:
    """The leases of one agent and their executions."""

    def __init__(
        self,
        slots: int,
        handlers: Mapping[str, Handler],
        send: Callable[[pb.WorkerItem], None],
        news: Callable[[], None],
    ) -> None:
        """Begin with nothing in hand. `news` is called when a heartbeat should not wait for its interval."""
        self.taking = True
        self._slots = slots
        self._handlers = handlers
        self._send = send
        self._news = news
        self._executions: dict[str, Execution] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._ended: dict[Lease, None] = {}
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="task")

    # -- what is held

    def held(self) -> Sequence[Lease]:
        """Return the leases held."""
        return [each.lease for each in self._executions.values() if each.held]

    def beats(self) -> Sequence[pb.TaskBeat]:
        """Return what is new about each lease held."""
        return [each.context.take_beat() for each in self._executions.values() if each.held]

    def context_of(self, task_id: str) -> TaskContext | None:
        """Return the context of a task that is held, or None."""
        execution = self._executions.get(task_id)
        return execution.context if execution is not None and execution.held else None

    def keep_only(self, valid: Set[Lease]) -> None:
        """Stop every lease that is not among these, and report nothing about it."""
        for execution in self._executions.values():
            if execution.lease not in valid:
                execution.stop(Ending.REVOKED)

    def revoke_exclusive(self) -> None:
        """Stop exclusive tasks: another attempt may run from now on."""
        for execution in self._executions.values():
            if execution.context.assignment.spec.exclusive:
                execution.stop(Ending.REVOKED)

    async def finish(self, grace: float, reason: str) -> None:
        """Wait until what is in hand has ended; after `grace` seconds hand the rest back."""
        executions = list(self._executions.values())
        try:
            async with asyncio.timeout(grace):
                for execution in executions:
                    await execution.settled.wait()
        except TimeoutError:
            for execution in executions:
                execution.stop(Ending.HAND_BACK, reason, _LAST_GRACE)
            for execution in executions:
                await execution.settled.wait()

    async def clear(self) -> None:
        """End what still runs, without a report, and wait for it; plain functions have to look at `task.cancelled`."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._threads.shutdown(wait=False)

    # -- what the server says

    def assigned(self, assignment: pb.TaskAssignment) -> None:
        """Accept, reject or refuse a task; a repeat changes nothing, a newer epoch stops the older one first."""
        lease = Lease(assignment.task_id, assignment.lease_epoch)
        current = self._executions.get(lease.task_id)
        if lease in self._ended or (current is not None and current.lease.epoch > lease.epoch):
            return
        if current is not None and current.lease == lease and current.held:
            return
        if assignment.repeated or (current is not None and current.lease == lease):
            # It was ours before and is not in hand any more: it must not be started twice.
            self._send(_hand_back(assignment))
        elif assignment.spec.type not in self._handlers:
            self._refuse(lease, assignment.spec.type)
        elif current is None and (why := self._refusal()):
            self._send(_reject(lease, why))
        else:
            self._begin(assignment, lease, current)

    def canceled(self, cancel: pb.TaskCancel) -> None:
        """Stop an attempt and report that; if it does not end within the grace, report all the same."""
        lease = Lease(cancel.task_id, cancel.lease_epoch)
        if execution := self._find(*lease):
            grace = cancel.grace.ToNanoseconds() / 1e9 if cancel.HasField("grace") else 10.0
            execution.stop(Ending.CANCEL, cancel.reason, grace)
        elif lease not in self._ended and lease.task_id not in self._executions:
            # Nothing runs, and the server does not know that: it would wait until the lease expires.
            self._end(
                lease,
                pb.WorkerItem(
                    result=pb.TaskResult(
                        task_id=lease.task_id, lease_epoch=lease.epoch, canceled="the worker does not hold it any more"
                    )
                ),
            )

    def revoked(self, revoked: pb.LeaseRevoked) -> None:
        """Stop an attempt and report nothing."""
        if execution := self._find(revoked.task_id, revoked.lease_epoch):
            execution.stop(Ending.REVOKED)

    def paused(self, pause: pb.TaskPause) -> None:
        """Hold an attempt, or let it go on."""
        if execution := self._find(pause.task_id, pause.lease_epoch):
            execution.context.pause(pause.resume)

    def answered(self, answer: pb.TaskAnswer) -> None:
        """Hand an answer to the attempt that asked."""
        if execution := self._find(answer.task_id, answer.lease_epoch):
            execution.context.take_answer(answer.answer)

    def refused(self, refused: pb.ItemRefused, item: pb.WorkerItem | None) -> None:
        """Deal with an item that was not applied: a stale lease is gone, a result that is refused becomes an error."""
        lease = _refused_lease(refused, item)
        log.warning("item refused: task=%s reason=%s %s", refused.task_id, refused.reason, refused.message)
        if lease is None or item is None:
            return
        if refused.reason == error_pb2.ERROR_REASON_STALE_ATTEMPT:
            if execution := self._find(*lease):
                execution.stop(Ending.REVOKED)
        elif item.HasField("result") and item.result.error.reason != _REFUSED:
            self._send(failed(lease, TaskFailed(refused.message, reason=_REFUSED)))

    # -- inside

    def _find(self, task_id: str, epoch: int) -> Execution | None:
        execution = self._executions.get(task_id)
        return execution if execution is not None and execution.lease.epoch == epoch else None

    def _refusal(self) -> str:
        if not self.taking:
            return "draining"
        return "no free slot" if len(self._executions) >= self._slots else ""

    def _refuse(self, lease: Lease, type: str) -> None:  # noqa: A002 - the contract's word
        text = f"this worker has no handler for tasks of type {type!r}"
        invalid = task_pb2.TASK_ERROR_CLASS_INVALID
        self._end(lease, failed(lease, TaskFailed(text, error_class=invalid, reason="NO_HANDLER")))

    def _begin(self, assignment: pb.TaskAssignment, lease: Lease, previous: Execution | None) -> None:
        if previous is not None:
            previous.stop(Ending.REVOKED)
        self._send(pb.WorkerItem(accept=pb.TaskAccept(task_id=lease.task_id, lease_epoch=lease.epoch)))
        execution = Execution(
            TaskContext(assignment, self._send, self._news),
            self._handlers[assignment.spec.type],
            lambda item: self._end(lease, item),
            self._threads,
        )
        self._executions[lease.task_id] = execution
        running = asyncio.ensure_future(self._execute(execution, previous))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _execute(self, execution: Execution, previous: Execution | None) -> None:
        try:
            await execution.run(previous)
        finally:
            if self._executions.get(execution.lease.task_id) is execution:
                del self._executions[execution.lease.task_id]

    def _end(self, lease: Lease, item: pb.WorkerItem) -> None:
        self._ended[lease] = None
        if len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]
        self._send(item)


def _reject(lease: Lease, reason: str) -> pb.WorkerItem:
    reject = pb.TaskReject(task_id=lease.task_id, lease_epoch=lease.epoch, reason=reason)
    reject.retry_after.FromNanoseconds(round(RETRY_AFTER * 1e9))
    return pb.WorkerItem(reject=reject)


def _hand_back(assignment: pb.TaskAssignment) -> pb.WorkerItem:
    return pb.WorkerItem(
        hand_back=pb.TaskHandBack(
            task_id=assignment.task_id,
            lease_epoch=assignment.lease_epoch,
            checkpoint=assignment.checkpoint,
            reason="the worker does not hold it any more",
        )
    )


def _refused_lease(refused: pb.ItemRefused, item: pb.WorkerItem | None) -> Lease | None:
    if item is None:
        return None
    if item.HasField("heartbeat"):
        beats = (Lease(each.task_id, each.lease_epoch) for each in item.heartbeat.tasks)
        return next((lease for lease in beats if lease.task_id == refused.task_id), None)
    return lease_of(item)
