"""What groups of other replicas did to records, taken over into the memory: only the last state of each, and of what
is over nothing at all, unless somebody here has to hear how it ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from .events import Event
from .memory import Memory
from .ports import Change, Feed, Store, Touched
from .records import Key, Kind, Record, Ref
from .tasks import Task

READ: Final = 500
"""Records read at once."""


class Own(NamedTuple):
    """A group of this replica that has not had its turn yet."""

    before: int
    after: int
    refs: frozenset[Ref]
    events: Sequence[Event]


class Done(NamedTuple):
    """What some groups did: the last to each record, what was removed on the way, and the records that are new here."""

    last: Mapping[Ref, Touched]
    anew: Collection[Ref]
    records: Mapping[Ref, Record | None]


class Others:
    """Reads what others did, and puts it into the memory."""

    def __init__(self, memory: Memory, store: Store, feed: Feed, concerns: Callable[[Record], bool]) -> None:
        """`concerns`: whether somebody here has to hear how a record ended."""
        self._memory = memory
        self._store = store
        self._feed = feed
        self._concerns = concerns

    async def read(self, found: Sequence[Change], own: Iterable[Own]) -> Done:
        """Return what groups did, but for what this replica's `own` did after them; raises `StoreUnavailable`."""
        last, anew = _last(found, own)
        return Done(last, anew, await self._records(last, anew))

    def take(self, done: Done, newer: Collection[Ref]) -> None:
        """Put into the memory what was read, but for what is known to be `newer`."""
        refs = [ref for ref in done.last if ref[0] is not Kind.PROGRESS and ref not in newer]
        # Tasks before their progress, which is kept for those that are open.
        progress = {ref: None for some in (done.last, done.records) for ref in some if ref[0] is Kind.PROGRESS}
        refs += [ref for ref in progress if ref not in newer]
        for ref in refs:
            if ref in done.records:
                self._memory.follow(ref, done.records[ref], anew=ref in done.anew)
            elif (revision := done.last[ref].revision) < 0:
                self._memory.close(ref, -revision, anew=ref in done.anew)
            elif ref in done.anew:
                self._memory.follow(ref, None, anew=True)
        self._memory.followed()

    async def _records(self, last: Mapping[Ref, Touched], anew: Collection[Ref]) -> dict[Ref, Record | None]:
        """Return the records that are not known as they were left; what the feed does not have is read."""
        found: dict[Ref, Record | None] = {}
        unread: list[Ref] = []
        for ref, touched in last.items():
            known = self._memory.committed(ref) if ref not in anew else None
            revision = touched.revision
            if known is not None and known.revision >= abs(revision):
                continue
            if revision <= 0:
                if revision and known is not None and self._concerns(known):
                    unread.append(ref)
                continue
            record = found[ref] = self._feed.record(touched, known)
            if record is None:
                unread.append(ref)
        if unread:
            found.update(await self._read(unread))
        if left_behind := self._left_behind(last, found):
            found.update(await self._read(left_behind))
        return found

    def _left_behind(self, last: Mapping[Ref, Touched], records: Mapping[Ref, Record | None]) -> list[Ref]:
        """Return the progress of tasks that are tried again: it is not in memory if they were over."""
        found: list[Ref] = []
        for ref, touched in last.items():
            if ref[0] is not Kind.TASK or touched.revision <= 0:
                continue
            task = records.get(ref) or self._memory.committed(ref)
            if not isinstance(task, Task) or task.terminal:
                continue
            progress = (Kind.PROGRESS, ref[1])
            if (
                task.attempt > (1 if task.lease is not None else 0)
                and progress not in last
                and self._memory.progress(ref[1]) is None
            ):
                found.append(progress)
        return found

    async def _read(self, refs: Iterable[Ref]) -> dict[Ref, Record | None]:
        by_kind: dict[Kind, list[Key]] = {}
        for kind, key in refs:
            by_kind.setdefault(kind, []).append(key)
        found: dict[Ref, Record | None] = {}
        for kind, keys in by_kind.items():
            for start in range(0, len(keys), READ):
                some = keys[start : start + READ]
                found.update(zip(((kind, key) for key in some), await self._store.get(kind, some), strict=True))
        return found


def _last(found: Sequence[Change], own: Iterable[Own]) -> tuple[dict[Ref, Touched], set[Ref]]:
    """Return what was done last to each record, and those that were removed on the way.

    What this replica did itself after that is in memory.
    """
    last: dict[Ref, Touched] = {}
    anew: set[Ref] = set()
    groups = list(own)
    for change in found:
        while groups and groups[0].before < change.number:
            for ref in groups.pop(0).refs:
                last.pop(ref, None)
                anew.discard(ref)
        for touched in change.touched:
            ref, revision, body, spec = touched
            if not revision:
                anew.add(ref)
            elif body and not spec and (before := last.get(ref)) is not None and before.spec:
                # A specification is written once.
                touched = Touched(ref, revision, body, before.spec)
            last[ref] = touched
    return last, anew
