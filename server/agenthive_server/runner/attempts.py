"""One attempt in a runner: what its agent says becomes items of the session, its outcome the last of them."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from typing import Protocol

from agenthive.errors import HiveError
from agenthive.v1 import event_pb2, task_pb2, worker_service_pb2

from agenthive_server.runner.driver import Driver, Handle, Outcome, TaskKey
from agenthive_server.runner.payloads import cut_text, failed

_UNSENT_BYTES = 4 * 1024 * 1024
_LOOK = 1.0
_INFRA = task_pb2.TASK_ERROR_CLASS_INFRA
_logger = logging.getLogger(__name__)


class Link(Protocol):
    """What a runner uses of `agenthive.session.Session`."""

    connected: bool

    @property
    def lost_for(self) -> float:
        """Seconds without the server."""

    def send(self, item: worker_service_pb2.WorkerItem) -> None:
        """Queue an item for the server."""

    def beat_now(self) -> None:
        """Send a heartbeat without waiting for the interval."""

    async def run(self) -> None:
        """Keep the session until it is closed."""

    async def close(self, reason: str = "") -> None:
        """Say goodbye."""

    async def flushed(self) -> None:
        """Return when the server has dealt with all that was sent."""


class Outlet:
    """Output on its way to the server: agents wait for a slow server.

    They do not wait for one that is away: the session then drops the oldest output, and offsets show the gap.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._unsent = 0
        self._flush: asyncio.Task[None] | None = None

    async def send(self, chunk: worker_service_pb2.TaskOutputChunk) -> None:
        """Queue a chunk; returns when there is room for the next."""
        while self._unsent > _UNSENT_BYTES and self._link.connected:
            if self._flush is None:
                self._flush = asyncio.create_task(self._wait())
            await asyncio.wait({self._flush}, timeout=_LOOK)
        self._unsent += len(chunk.data)
        self._link.send(worker_service_pb2.WorkerItem(output=chunk))

    async def _wait(self) -> None:
        try:
            await self._link.flushed()
        except HiveError:
            _logger.info("output was not acknowledged before the session ended")
        finally:
            self._unsent = 0
            self._flush = None


class Fate(enum.IntEnum):
    """What the server is told of an attempt that did not reach a result. A later one only ever takes precedence."""

    REPORT = 0
    HAND_BACK = 1
    CANCEL = 2
    NOTHING = 3


class RunningAttempt:
    """An attempt that was accepted. It is the `Report` its driver speaks to."""

    def __init__(
        self, task: worker_service_pb2.TaskAssignment, link: Link, outlet: Outlet, news: Callable[[], None]
    ) -> None:
        self.task = task
        self.key = TaskKey(task.task_id, task.lease_epoch)
        self.fate = Fate.REPORT
        self.done = asyncio.Event()
        self._link = link
        self._outlet = outlet
        self._news = news
        self._offset = 0
        self._beat = worker_service_pb2.TaskBeat()
        self._checkpoint = b""
        self._usage: task_pb2.Usage | None = None

    async def output(self, content: bytes, stream: event_pb2.OutputStream.ValueType) -> None:
        """See `Report`. What a lease that is gone says is dropped."""
        offset, self._offset = self._offset, self._offset + len(content)
        if self.fate == Fate.NOTHING:
            return
        task_id, lease_epoch = self.key
        await self._outlet.send(
            worker_service_pb2.TaskOutputChunk(
                task_id=task_id, lease_epoch=lease_epoch, offset=offset, data=content, stream=stream
            )
        )

    def progress(self, fraction: float, text: str | None) -> None:
        """See `Report`."""
        self._beat.fraction = fraction
        if text is not None:
            self._beat.text = text
        self._news()

    def checkpoint(self, content: bytes) -> None:
        """See `Report`."""
        self._checkpoint = self._beat.checkpoint = content
        self._news()

    def usage(self, usage: task_pb2.Usage) -> None:
        """See `Report`."""
        self._usage = usage
        self._beat.usage.CopyFrom(usage)
        self._news()

    def context_usage(self, share: float) -> None:
        """See `Report`."""
        self._beat.context_usage = share
        self._news()

    def take_beat(self) -> worker_service_pb2.TaskBeat:
        """Its part of the next heartbeat; what is new is told once."""
        beat, self._beat = self._beat, worker_service_pb2.TaskBeat()
        beat.task_id, beat.lease_epoch = self.key
        return beat

    async def run(self, driver: Driver, handle: Handle) -> None:
        """Run it to its end and tell the server. Cancelled, it is killed and handed back."""
        try:
            outcome = await self._outcome(driver, handle)
        except asyncio.CancelledError:
            self.fate = max(self.fate, Fate.HAND_BACK)
            self._tell(Outcome(canceled="the runner stopped"))
            raise
        else:
            self._tell(outcome)
        finally:
            self.done.set()

    async def _outcome(self, driver: Driver, handle: Handle) -> Outcome:
        if self.fate != Fate.REPORT:
            return Outcome(canceled="stopped before it began")
        try:
            return await driver.run_task(handle, self.task, self)
        except Exception as error:
            _logger.error("driver failed", exc_info=error, extra={"driver": driver.name, "task_id": self.key.task_id})
            return failed(_INFRA, "DRIVER_FAILED", f"The driver failed: {error!r}")

    def _tell(self, outcome: Outcome) -> None:
        stopped = outcome.canceled is not None or (outcome.error is not None and outcome.error.error_class == _INFRA)
        if self.fate == Fate.NOTHING:
            return
        if self.fate == Fate.HAND_BACK and stopped:
            self._hand_back(outcome.canceled or "the agent was stopped")
            return
        if self.fate == Fate.CANCEL and stopped:
            outcome = Outcome(canceled=outcome.canceled or "stopped")
        self._tell_news()
        self._link.send(worker_service_pb2.WorkerItem(result=self._result(outcome)))

    def _tell_news(self) -> None:
        """A checkpoint said with the last breath is for the next attempt: it travels before the result."""
        if self._beat.ListFields():
            beat = worker_service_pb2.Heartbeat(tasks=[self.take_beat()])
            self._link.send(worker_service_pb2.WorkerItem(heartbeat=beat))

    def _hand_back(self, reason: str) -> None:
        task_id, lease_epoch = self.key
        self._tell_news()
        back = worker_service_pb2.TaskHandBack(
            task_id=task_id, lease_epoch=lease_epoch, checkpoint=self._checkpoint, reason=cut_text(reason, 255)
        )
        self._link.send(worker_service_pb2.WorkerItem(hand_back=back))

    def _result(self, outcome: Outcome) -> worker_service_pb2.TaskResult:
        task_id, lease_epoch = self.key
        result = worker_service_pb2.TaskResult(task_id=task_id, lease_epoch=lease_epoch, usage=self._usage)
        if outcome.result is not None:
            result.result.CopyFrom(outcome.result)
        elif outcome.error is not None:
            result.error.CopyFrom(outcome.error)
        elif outcome.canceled is not None and self.fate == Fate.CANCEL:
            result.canceled = cut_text(outcome.canceled, 255)
        else:  # nobody asked: somebody on this machine stopped it
            text = outcome.canceled or "stopped"
            result.error.MergeFrom(task_pb2.TaskError(error_class=_INFRA, reason="STOPPED", message=text))
        return result
