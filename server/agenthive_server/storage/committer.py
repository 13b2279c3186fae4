"""Group commit: the change sets of all calls in flight go to the store together; one sync serves all who wait."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from agenthive_server.kernel.changes import MAX_ROWS, ChangeSet, Committed, Outcome
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import Draining, KernelError, OutcomeUnknown, Overloaded, StoreUnavailable
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.pending import Pending
from agenthive_server.kernel.ports import Store
from agenthive_server.kernel.tasks import TaskError
from agenthive_server.telemetry import COUNTS, Histogram

MAX_EVENT_BYTES = 1024 * 1024
"""About as many bytes of events a change set may bring, so that they always fit into one message."""

FLAT = 800
"""Bytes counted for an event whose texts are ids and words: at most 128 characters each."""

WORDY = frozenset(
    {
        EventType.AGENT_DRAINING,
        EventType.AGENT_FAILED,
        EventType.AGENT_LOST,
        EventType.AGENT_RESTARTING,
        EventType.AGENT_SLEEPING,
        EventType.AGENT_STOPPED,
        EventType.SESSION_ENDED,
        EventType.SESSION_OPENED,
        EventType.SESSION_SUSPECT,
        EventType.TASK_CANCELED,
        EventType.TASK_CANCEL_REQUESTED,
        EventType.TASK_FAILED,
        EventType.TASK_INPUT_REQUESTED,
        EventType.TASK_REQUEUED,
        EventType.TASK_RETRY_SCHEDULED,
        EventType.TASK_SENT_BACK,
    }
)
"""Events with texts for people, which are measured."""

GROUP_ROWS = 4_096
GROUP_EVENT_BYTES = 4 * 1024 * 1024

Settled = Callable[[Sequence[tuple[ChangeSet, Outcome]]], None]
"""Follows a group that was decided: cache, ring, dispatcher."""

Failed = Callable[[Sequence[ChangeSet], KernelError], None]
"""Follows a group that was not written, or of which that is not known."""

_log = logging.getLogger(__name__)


class _Waiting:
    """A change set in the queue, its weight, and its outcome to be."""

    __slots__ = ("changes", "event_bytes", "pending", "rows")

    def __init__(self, changes: ChangeSet) -> None:
        self.changes = changes
        self.pending = Pending()
        self.rows = len(changes.puts) + len(changes.deletes) + len(changes.checks) + len(changes.events)
        self.event_bytes = sum(map(event_size, changes.events))


class Committer:
    """Hands change sets to the store in the order they came, one group in flight at a time.

    A group is what gathered during the last; there is no timer. After each group, and before anyone is answered,
    `settled` is called with all its outcomes, or `failed` when the store could not say or did not write.
    """

    def __init__(
        self, store: Store, *, settled: Settled, failed: Failed, clock: Clock, maximum_waiting: int = 50_000
    ) -> None:
        self._store = store
        self._settled = settled
        self._failed = failed
        self._clock = clock
        self._maximum_waiting = maximum_waiting
        self._queue: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self._running = False
        self._stopping = False
        # Whether a group is with the store.
        self.committing = False
        self.waiting_rows = 0
        self.groups = 0
        self.change_sets = 0
        self.rows = 0
        self.failures = 0
        self.last_latency = 0.0
        self.durations = Histogram()
        self.sizes = Histogram(COUNTS)

    def submit(self, changes: ChangeSet) -> Pending:
        """Queue a change set; awaiting gives its outcome, or raises `StoreUnavailable` or `OutcomeUnknown`.

        Cancelling who awaits only stops the waiting: the change set is committed all the same and `settled` hears of
        it.

        Raises `Overloaded` when more than `maximum_waiting` rows would wait, `StoreUnavailable` while it is not known
        what became of the group before, `Draining` once it is stopped, and `ValueError` for a change set beyond the
        bounds (a programming error).
        """
        waiting = _Waiting(changes)
        _require_bounds(waiting)
        if self._stopping:
            raise Draining("the server is stopping")
        if self.committing and (doubt := self._store.in_doubt):
            # It would wait for as long as the database is away; so nothing of it is written, and that is known.
            raise StoreUnavailable(doubt)
        if self._queue and self.waiting_rows + waiting.rows > self._maximum_waiting:
            raise Overloaded("too many changes wait to be written", retry_after=max(0.1, 2 * self.last_latency))
        self._queue.append(waiting)
        self.waiting_rows += waiting.rows
        self._wake.set()
        return waiting.pending

    async def run(self) -> None:
        """Commit until it is stopped. It must not be cancelled; if it is, whoever waits gets `OutcomeUnknown`."""
        self._running = True
        try:
            while self._queue or not self._stopping:
                if self._queue:
                    await self._commit(self._take())
                else:
                    self._wake.clear()
                    await self._wake.wait()
        finally:
            self._stopping = True
            self._refuse(list(self._queue), OutcomeUnknown("the committer has ended"))
            self._queue.clear()
            self._ended.set()

    async def stop(self) -> None:
        """Take nothing new, write what waits, and return when `run` has ended. Cancelling it only stops the waiting."""
        self._stopping = True
        self._wake.set()
        if self._running:
            await self._ended.wait()

    def _take(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        rows = event_bytes = 0
        while self._queue:
            first = self._queue[0]
            rows += first.rows
            event_bytes += first.event_bytes
            if group and (rows > GROUP_ROWS or event_bytes > GROUP_EVENT_BYTES):
                break
            group.append(self._queue.popleft())
            self.waiting_rows -= first.rows
        return group

    async def _commit(self, group: list[_Waiting]) -> None:
        began = self._clock.monotonic()
        self.committing = True
        try:
            outcomes = await self._store.commit([waiting.changes for waiting in group])
        except (StoreUnavailable, OutcomeUnknown) as error:
            self._refuse(group, error)
            return
        except asyncio.CancelledError:
            self._refuse(group, OutcomeUnknown("the committer was cancelled"))
            raise
        except Exception:  # noqa: BLE001 - a bug in the store must not leave everyone waiting for ever
            _log.exception("commit_failed", extra={"change_sets": len(group)})
            self._refuse(group, OutcomeUnknown("the store failed in an unexpected way"))
            return
        finally:
            self.committing = False
        self._count(group, self._clock.monotonic() - began)
        for waiting, outcome in zip(group, outcomes, strict=True):
            _end(waiting.changes, void=not isinstance(outcome, Committed))
        pairs = [(waiting.changes, outcome) for waiting, outcome in zip(group, outcomes, strict=True)]
        _follow(self._settled, pairs)
        for waiting, outcome in zip(group, outcomes, strict=True):
            waiting.pending.settle(outcome)

    def _count(self, group: list[_Waiting], seconds: float) -> None:
        self.last_latency = seconds
        self.groups += 1
        self.change_sets += len(group)
        self.durations.observe(seconds)
        self.sizes.observe(len(group))
        self.rows += sum(waiting.rows for waiting in group)

    def _refuse(self, group: list[_Waiting], error: KernelError) -> None:
        if not group:
            return
        self.failures += 1
        for waiting in group:
            _end(waiting.changes, void=True)
        _follow(self._failed, [waiting.changes for waiting in group], error)
        for waiting in group:
            waiting.pending.fail(error)


def _end(changes: ChangeSet, *, void: bool) -> None:
    """Note what became of a change set; what it was built on is over, and forgotten."""
    changes.void, changes.built_on = void, ()


def _follow(follower: Callable[..., None], *arguments: Any) -> None:
    try:
        follower(*arguments)
    except Exception:  # noqa: BLE001 - what follows a commit cannot take the committer with it
        _log.exception("commit_follow_up_failed")


def _require_bounds(waiting: _Waiting) -> None:
    changes = waiting.changes
    rows = len(changes.puts) + len(changes.deletes) + len(changes.checks)
    if rows > MAX_ROWS:
        raise ValueError(f"a change set of {rows} rows; {MAX_ROWS} is the most")
    if waiting.event_bytes > MAX_EVENT_BYTES:
        raise ValueError(f"a change set with {waiting.event_bytes} bytes of events; {MAX_EVENT_BYTES} is the most")


def event_size(event: Event) -> int:
    """Return about how many bytes an event takes, never much less.

    What most events hold is counted at a flat rate: measuring every text cost an eighth of a delegated task.
    """
    size = FLAT
    if event.ancestors:
        size += 40 * len(event.ancestors) + sum(map(len, event.ancestors))
    if event.labels:
        size += _size(event.labels)
    if event.type in WORDY:
        size += _size(event.data)
    return size


def _size(value: Any) -> int:
    if isinstance(value, str):
        return 4 + (len(value) if value.isascii() else len(value.encode()))
    if isinstance(value, bytes):
        return 4 + len(value)
    if isinstance(value, dict):
        return sum(_size(name) + _size(part) for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value))
    if isinstance(value, TaskError):
        return 24 + _size(value.reason) + _size(value.message)
    return 10
