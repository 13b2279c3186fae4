"""What readers here want of other servers' output, and on which channels that is told of."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from agenthive_server.events.filter import EventFilter
from agenthive_server.kernel.events import Event, EventType

from .ear import Ear, Heard
from .records import Names


@dataclass(frozen=True, eq=False)
class Wish:
    """What one reader wants: output that matches a filter, of attempts that began after the log stood at a sequence
    all of it, of others what comes from now on."""

    wanted: EventFilter
    sequence: int
    channels: tuple[str, ...]

    def matches(self, sample: Event) -> bool:
        """Whether it wants something of an attempt, be it how far it is."""
        if self.wanted.matches(sample):
            return True
        kind, sample.type = sample.type, EventType.TASK_PROGRESSED
        try:
            return self.wanted.matches(sample)
        finally:
            sample.type = kind


class Wishes:
    """The wishes of all readers here. A channel is heard as long as one of them needs it."""

    def __init__(self, ear: Ear, heard: Heard) -> None:
        self._ear = ear
        self._heard = heard
        self._open: set[Wish] = set()
        # Those that name their tasks, by task; the others.
        self._by_task: defaultdict[str, set[Wish]] = defaultdict(set)
        self._broad: set[Wish] = set()
        self._needed: Counter[str] = Counter()

    async def open(self, wanted: EventFilter, sequence: int, names: Names) -> Wish:
        """Add a wish; when it returns, and Redis is there, nothing that is told of from now on is missed."""
        wish = Wish(wanted, sequence, _channels(wanted, names))
        self._open.add(wish)
        for group in self._groups(wish):
            group.add(wish)
        try:
            self._needed.update(wish.channels)
            for channel in wish.channels:
                await self._ear.hear(channel, self._heard)
        except BaseException:
            self.close(wish)
            raise
        return wish

    def close(self, wish: Wish) -> None:
        """Take a wish back."""
        if wish not in self._open:
            return
        self._open.discard(wish)
        for group in self._groups(wish):
            group.discard(wish)
        for task_id in wish.wanted.task_ids:
            if not self._by_task[task_id]:
                del self._by_task[task_id]
        for channel in wish.channels:
            self._needed[channel] -= 1
            if self._needed[channel] <= 0:
                del self._needed[channel]
                self._ear.forget(channel)

    def all(self) -> list[Wish]:
        """Return the wishes there are."""
        return list(self._open)

    def since(self, sample: Event) -> int | None:
        """Return the earliest sequence from which somebody wants new attempts like this one; None when nobody does."""
        named = self._by_task.get(sample.task_id, ())
        return min((wish.sequence for wish in (*named, *self._broad) if wish.matches(sample)), default=None)

    def _groups(self, wish: Wish) -> list[set[Wish]]:
        return [self._by_task[task_id] for task_id in wish.wanted.task_ids] or [self._broad]


def _channels(wanted: EventFilter, names: Names) -> tuple[str, ...]:
    """Return where attempts are told of that a filter may let pass: those of its tasks, or all."""
    if wanted.task_ids and wanted.namespace is not None:
        return tuple(names.channel(wanted.namespace, task_id) for task_id in sorted(wanted.task_ids))
    return (names.channels(wanted.namespace),)
