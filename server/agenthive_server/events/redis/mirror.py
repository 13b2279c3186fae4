"""Output of other servers for readers here: brought into the hub as long as somebody here wants it.

A bell tells that there is more of an attempt; then its stream is read from where the hub's copy ends. One loop reads,
so that what is brought in stays in order.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from agenthive_server.events.attempt_output import AttemptKey
from agenthive_server.events.filter import EventFilter
from agenthive_server.events.output import OutputHub
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.tasks import Task

from .ear import Ear
from .held import HeldChunks
from .link import ANSWER_LIMIT, Backoff, Command, Line, RedisAway, RedisLink
from .records import Names, attempt_of, decode_bell, decode_record, event_about, member
from .wishes import Wish, Wishes

ATTEMPTS: Final = 32
RECORDS: Final = 16
"""Read at once: streams, and records of each (64 KiB at most)."""

PART: Final = "output of others"


@dataclass(slots=True)
class Want:
    """What is to be read of an attempt: from `begin` on, if nothing of it is here; `again`, all of it anew.

    `since`: only of an attempt that began after the log stood there. `listed`: it stands in the directory.
    """

    begin: int = 0
    again: bool = False
    since: int | None = None
    listed: bool = False


class OutputMirror:
    """Brings in what is wanted. Nothing but `run`, `open` and `whole` waits."""

    def __init__(self, link: RedisLink, ear: Ear, hub: OutputHub, server: str) -> None:
        self._link = link
        self._line = Line(link)
        self._hub = hub
        self._server = server
        self._wishes = Wishes(ear, self._rung)
        self._wanted: dict[AttemptKey, Want] = {}
        self._held = HeldChunks(hub)
        # The attempts that were brought in, by task; some may be gone again.
        self._brought: defaultdict[tuple[str, str], set[AttemptKey]] = defaultdict(set)
        # Directories to be read: prefixes of their entries.
        self._lists: dict[str, Want] = {}
        self._wake = asyncio.Event()
        # Resolved when all that was wanted has been read, or cannot be.
        self._rest = asyncio.Event()
        self._rest.set()
        ear.rejoined.append(self._rejoined)

    # What readers ask -----------------------------------------------------------------------------------------------

    async def open(
        self, wanted: EventFilter, sequence: int, offsets: Mapping[AttemptKey, int], *, backlog: bool
    ) -> Wish:
        """Bring in what a reader wants from now on, and first what there is: from offsets, and `backlog`, all of it.

        Returns when it is here, or cannot be had.
        """
        names = Names(self._link.prefix)
        wish = await self._wishes.open(wanted, sequence, names)
        try:
            for key, offset in offsets.items():
                kept = self._hub.attempts.get(key)
                if kept is None or kept.guest:
                    self._want(key, Want(offset, again=kept is not None and kept.first_kept > offset))
            if backlog:
                self._list(wanted, Want(listed=True))
            if (offsets or backlog) and not self._link.trouble:
                with suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER_LIMIT):
                        await self._rest.wait()
        except BaseException:
            self.close(wish)
            raise
        return wish

    def close(self, wish: object) -> None:
        """Bring it in no more; what nobody else wants is let go."""
        assert isinstance(wish, Wish)
        self._wishes.close(wish)
        wanted = wish.wanted
        tasks = [(wanted.namespace, task_id) for task_id in wanted.task_ids] if wanted.namespace is not None else []
        for task in tasks or list(self._brought):
            for key in list(self._brought.get(task, ())):
                kept = self._hub.attempts.get(key)
                if kept is None or self._wishes.since(kept.sample) is None:
                    self._let_go(key)

    def _let_go(self, key: AttemptKey) -> None:
        self._hub.evict(key)
        self._wanted.pop(key, None)
        task = self._brought[key[:2]]
        task.discard(key)
        if not task:
            del self._brought[key[:2]]

    # What the hub asks ----------------------------------------------------------------------------------------------

    def hold(self, task: Task, attempt: int, offset: int, data: bytes, stream: str) -> bool:
        """Return whether it takes a chunk before which something is missing, and appends it with that, or without."""
        if self._link.trouble or not self._held.add(task, attempt, offset, data, stream):
            return False
        self._want((task.namespace, task.id, attempt), Want())
        return True

    async def whole(self, key: AttemptKey) -> None:
        """Return when no chunk of an attempt is held any more."""
        await self._held.released(key)

    # What others tell -----------------------------------------------------------------------------------------------

    def _rung(self, said: bytes) -> None:
        try:
            bell = decode_bell(said)
        except msgspec.MsgspecError:
            return
        sample = event_about(bell.key, bell.about)
        since = None if bell.server == self._server else self._wishes.since(sample)
        if since is None:
            return
        # Of one that ran before anybody here asked, the beginning is not wanted.
        begin = 0 if bell.about.begun > since else bell.offset
        if bell.more:
            self._want(bell.key, Want(begin))
        if bell.progress is not None:
            fraction, text, event_time, origin = bell.progress
            event = event_about(bell.key, bell.about, EventType.TASK_PROGRESSED)
            event.data |= {"fraction": fraction, "text": text}
            event.time = event_time
            self._admit(bell.key, event, begun=bell.about.begun, begin=begin, origin=origin)

    def _admit(self, key: AttemptKey, event: Event, *, begun: int, begin: int, origin: int) -> None:
        self._hub.admit(key, event, begun=begun, begin=begin, origin=origin)
        if key not in self._brought[key[:2]]:
            self._brought[key[:2]].add(key)
            if len(self._brought) > 1_000 + 2 * len(self._hub.attempts):
                self._prune()

    def _prune(self) -> None:
        for key in [key for keys in self._brought.values() for key in keys if key not in self._hub.attempts]:
            self._let_go(key)

    def _rejoined(self) -> None:
        """Look for what was said while nothing could be heard."""
        for kept in self._hub.attempts.values():
            if kept.guest and self._wishes.since(kept.sample) is not None:
                self._want(kept.key, Want())
        for wish in self._wishes.all():
            self._list(wish.wanted, Want(since=wish.sequence, listed=True))

    # Reading --------------------------------------------------------------------------------------------------------

    def _want(self, key: AttemptKey, want: Want) -> None:
        known = self._wanted.setdefault(key, want)
        known.begin = min(known.begin, want.begin)
        known.again = known.again or want.again
        known.since = None if want.since is None else known.since
        self._rest.clear()
        self._wake.set()

    def _list(self, wanted: EventFilter, want: Want) -> None:
        namespace = wanted.namespace
        if namespace is None:
            prefixes = [""]
        else:
            prefixes = [f"{namespace}:{task}:" for task in sorted(wanted.task_ids)] or [f"{namespace}:"]
        for prefix in prefixes:
            known = self._lists.setdefault(prefix, want)
            if want.since is None or (known.since is not None and want.since < known.since):
                self._lists[prefix] = want
        self._rest.clear()
        self._wake.set()

    async def run(self) -> None:
        """Read until cancelled."""
        backoff = Backoff(self._link.clock)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                try:
                    await self._read()
                    self._link.well(PART)
                    backoff.reset()
                except RedisAway as error:
                    self._link.failed(PART, error)
                    self._give_up()
                    await backoff.wait()
                    self._wake.set()
        finally:
            self._give_up()
            await self._line.close()

    def _give_up(self) -> None:
        """Let nobody wait any longer."""
        self._rest.set()
        self._held.release_all()

    async def _read(self) -> None:
        names = Names(self._link.prefix)
        while self._wanted or self._lists:
            if self._lists:
                await self._read_directory(names)
            await self._read_streams(names)
        self._rest.set()

    async def _read_directory(self, names: Names) -> None:
        lists, self._lists = self._lists, {}
        commands: list[Command] = [
            ("ZRANGEBYLEX", names.directory, f"[{prefix}" if prefix else "-", f"[{prefix}\xff" if prefix else "+")
            for prefix in lists
        ]
        try:
            found = await self._line.ask(*commands)
        except RedisAway:
            self._lists = {**lists, **self._lists}
            raise
        for want, entries in zip(lists.values(), found, strict=True):
            for entry in entries:
                self._want_listed(attempt_of(entry), want)

    def _want_listed(self, key: AttemptKey | None, want: Want) -> None:
        if key is None:
            return
        kept = self._hub.attempts.get(key)
        if kept is None or kept.guest:
            again = want.since is None and kept is not None and kept.first_kept > 0
            self._want(key, Want(0, again=again, since=want.since if kept is None else None, listed=True))

    async def _read_streams(self, names: Names) -> None:
        batch = {key: self._wanted[key] for key in list(self._wanted)[:ATTEMPTS]}
        if not batch:
            return
        commands: list[Command] = []
        for key, want in batch.items():
            del self._wanted[key]
            kept = self._hub.attempts.get(key)
            if want.again and kept is not None and kept.guest:
                self._hub.evict(key)
                kept = None
            begin = kept.end if kept is not None else want.begin
            commands.append(("XRANGE", names.stream(key), f"({begin}-0", "+", "COUNT", RECORDS))
        try:
            found = await self._line.ask(*commands)
        except RedisAway:
            for key, want in batch.items():
                self._want(key, want)
            raise
        taken = zip(batch.items(), found, strict=True)
        gone = [key for (key, want), records in taken if self._take(key, want, records)]
        if gone:
            await self._line.ask(("ZREM", names.directory, *(member(key) for key in gone)))

    def _take(self, key: AttemptKey, want: Want, records: Collection[tuple[bytes, list[bytes]]]) -> bool:
        """Admit what was read of an attempt; returns whether the directory names it without reason."""
        before = self._end(key)
        for _, fields in records:
            with suppress(msgspec.MsgspecError):
                record = decode_record(fields[1])
                event = event_about(key, record.about)
                since = self._wishes.since(event)
                fresh = want.since is None or record.about.begun > want.since
                if key in self._held or (since is not None and fresh):
                    event.time = record.time
                    event.data |= {"offset": record.offset, "data": record.data, "stream": record.stream}
                    begun = record.about.begun
                    self._admit(key, event, begun=begun, begin=want.begin, origin=record.sequence)
        if len(records) >= RECORDS and self._end(key) > before:
            self._want(key, Want(want.begin))
        else:
            self._held.release(key)
        return want.listed and not records and key not in self._hub.attempts

    def _end(self, key: AttemptKey) -> int:
        kept = self._hub.attempts.get(key)
        return kept.end if kept is not None else -1
