"""Writes the audit trail: gathers acts for a moment and puts them at the end of the chain of this replica.

A call does not wait for its record, unless it must not be answered without one. What is still gathered is lost by
`kill -9`; the next start finds that the chain was not ended, and says so in it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

import msgspec
from agenthive_server.plugin.api import Clock, HookState, KernelError, State, StoreUnavailable

from .chains import append, read_row, write_row
from .records import Act, Category, Ending, Unreadable

QUEUED: Final = 10_000
"""Acts that may wait to be written."""

AT_ONCE: Final = 2_000
_FOLDS: Final = 1_000
_LONGEST_PAUSE: Final = 5.0

Waiter = asyncio.Future[None]


class Folds:
    """Refusals that repeat: the first is recorded at once, those that follow within a span as one, with their count."""

    def __init__(self, seconds: float) -> None:
        self._span = int(seconds * 1000)
        # By key: when the span began, the last act, and how many followed the first.
        self._open: OrderedDict[tuple[str, ...], tuple[int, Act, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def fold(self, act: Act) -> Act | None:
        """Return what to record now: the act itself when it is the first of its kind, else nothing yet."""
        key = (act.principal, act.token_id, act.peer, act.method, act.reason)
        found = self._open.get(key)
        if found is None:
            self._open[key] = (act.time, act, 0)
            return act
        self._open[key] = (found[0], act, found[2] + 1)
        return None

    def due(self, now: int) -> list[Act]:
        """Return what the spans gathered that are over by now (in milliseconds), or too many."""
        found = []
        while self._open:
            key, (began, act, count) = next(iter(self._open.items()))
            if now - began < self._span and len(self._open) <= _FOLDS:
                break
            del self._open[key]
            if count:
                found.append(msgspec.structs.replace(act, count=count))
        return found

    def rest(self) -> list[Act]:
        """Return everything gathered so far."""
        found = [msgspec.structs.replace(act, count=count) for _, act, count in self._open.values() if count]
        self._open.clear()
        return found


class Trail:
    """This replica's end of the trail. `open`, then `run` beside the calls, then `close`."""

    def __init__(
        self, state: State, clock: Clock, chain: str, *, flush_seconds: float = 0.1, fold_seconds: float = 10.0
    ) -> None:
        self.chain = chain
        self.failing = ""
        """Why nothing can be written at the moment; empty when it can."""
        self.lost = 0
        """Acts that could not be taken because too many waited; the trail says so as soon as it can be written."""
        self.written = 0
        self._state = state
        self._clock = clock
        self._pause = flush_seconds
        self._queue: deque[tuple[Act, Waiter | None]] = deque()
        self._folds = Folds(fold_seconds)
        self._some = asyncio.Event()
        self._hurry = asyncio.Event()
        self._writing = asyncio.Lock()

    @property
    def full(self) -> bool:
        """Whether so much waits to be written that nothing may happen that would have to be recorded."""
        return len(self._queue) >= QUEUED

    @property
    def queued(self) -> int:
        """How many acts wait to be written."""
        return len(self._queue)

    def now(self) -> int:
        """Return the time as records have it: milliseconds since 1970."""
        return int(self._clock.now() * 1000)

    def note(self, act: Act) -> None:
        """Have an act recorded within a moment. When too many wait it is counted as lost instead."""
        if self.full:
            self.lost += 1
            return
        self._queue.append((act, None))
        self._some.set()

    def note_refusal(self, act: Act) -> None:
        """Have a refusal recorded, together with those that repeat it."""
        first = self._folds.fold(act)
        if first is not None:
            self.note(first)
        self._some.set()

    async def note_durably(self, act: Act) -> None:
        """Have an act recorded, and return when it is durable. Raises `StoreUnavailable` when too many wait."""
        if self.full:
            raise trail_full()
        done: Waiter = asyncio.get_running_loop().create_future()
        self._queue.append((act, done))
        self._some.set()
        self._hurry.set()
        await done

    async def open(self, *, alone: bool = True) -> bool:
        """Begin, and say so in the trail; returns whether the writer before this one ended in order.

        `alone`: no other writer of this chain is at work, so one that has not ended was killed. Raises `Unreadable`.
        """

        def begin(rows: HookState) -> bool:
            row = read_row(rows, self.chain)
            killed = alone and row.writers > 0
            text = "what came before did not end in order: its last moments may be missing" if killed else ""
            row = append(rows, row, [self._own("audit.began", text=text, reason="NOT_ENDED" if killed else "")])
            write_row(rows, msgspec.structs.replace(row, writers=1 if alone else row.writers + 1))
            return not killed

        return await self._state.change(begin)

    async def run(self) -> None:
        """Write what is noted, until cancelled."""
        pause = self._pause
        while True:
            if not self._queue and not self._folds and not self.lost:
                self._some.clear()
                await self._some.wait()
            await self._gather(pause)
            pause = self._pause if await self._try() else min(max(1.0, pause * 2), _LONGEST_PAUSE)

    async def close(self) -> None:
        """Write everything, and say in the trail that it ended. Raises `KernelError` and `Unreadable` as `flush`."""
        for act in self._folds.rest():
            self.note(act)
        while self._queue or self.lost:
            await self.flush()
        await self._state.change(self._end)

    async def flush(self) -> None:
        """Write what waits. Raises `KernelError` or `Unreadable` when it could not be written; then it waits on."""
        async with self._writing:
            batch = list(islice(self._queue, AT_ONCE))
            acts, lost = [act for act, _ in batch], self.lost
            if lost:
                acts.append(self._own("audit.lost", count=lost, reason="QUEUE_FULL"))
            if acts:
                await self._state.change(lambda rows: self._write(rows, acts))
            self.lost -= lost
            self.written += len(acts)
            for _ in batch:
                _, done = self._queue.popleft()
                if done is not None and not done.done():
                    done.set_result(None)

    async def _try(self) -> bool:
        self._hurry.clear()
        for act in self._folds.due(self.now()):
            self.note(act)
        try:
            while self._queue or self.lost:
                await self.flush()
        except (KernelError, Unreadable) as error:
            self.failing = str(error)
            return False
        self.failing = ""
        return True

    async def _gather(self, seconds: float) -> None:
        """Wait a moment for more to come, or until somebody waits for what he noted."""
        if self._hurry.is_set():
            return
        tasks = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._hurry.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    def _write(self, rows: HookState, acts: Sequence[Act]) -> None:
        write_row(rows, append(rows, read_row(rows, self.chain), acts))

    def _end(self, rows: HookState) -> None:
        row = append(rows, read_row(rows, self.chain), [self._own("audit.ended")])
        write_row(rows, msgspec.structs.replace(row, writers=max(0, row.writers - 1)))

    def _own(self, method: str, *, text: str = "", reason: str = "", count: int = 1) -> Act:
        return Act(
            time=self.now(),
            category=Category.AUDIT_TRAIL,
            outcome=Ending.OK,
            method=method,
            text=text,
            reason=reason,
            count=count,
        )


def trail_full() -> StoreUnavailable:
    """Return what a call is refused with that could not be recorded."""
    return StoreUnavailable("the audit trail cannot be written, and nothing is done unrecorded", retry_after=5.0)
