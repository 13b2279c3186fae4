"""Output of this server for the others: written to a stream of Redis for each attempt, a batch at a time.

What is kept there is what the hub keeps here, so Redis holds at most what the servers' hubs hold. While Redis is away
the newest waits, within bounds; what has to go is a gap to readers elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final

from agenthive_server.events.attempt_output import AttemptKey, Entry

from .link import Backoff, Command, Line, RedisAway, RedisLink
from .records import Bell, Names, Record, about, encode, member

PENDING_BYTES: Final = 8 * 2**20
"""Output that waits for Redis, with what it takes in memory."""

BATCH_BYTES: Final = 2**20
RECORD_BYTES: Final = 65_536

PACE: Final = 0.01
"""Seconds between two batches; a longer one is followed by a pause as long as it took."""

RENEWED_EVERY: Final = 60.0
"""Seconds after which a stream's expiry is set again, and its attempt is entered into the directory again."""

RENEWED: Final = 50_000
"""Streams of which it is remembered that their expiry is set."""

PART: Final = "output"


class OutputStreams:
    """Writes what is taken in here. Nothing but `run` waits."""

    def __init__(self, link: RedisLink, server: str, retention: float) -> None:
        """`server` tells this one from the others; streams that nobody writes to are gone after `retention` seconds."""
        self._link = link
        self._line = Line(link)
        self._server = server
        self._ttl = int((retention + RENEWED_EVERY) * 1_000)
        self._pending: deque[Entry] = deque()
        self._bytes = 0
        self._progress: dict[AttemptKey, Entry] = {}
        self._trims: dict[AttemptKey, int] = {}
        self._ended: set[AttemptKey] = set()
        self._renewed: dict[AttemptKey, float] = {}
        self._wake = asyncio.Event()

    def taken(self, entry: Entry) -> None:
        """Write a chunk soon, or say how far its attempt is."""
        if entry.offset < 0:
            self._progress[entry.attempt.key] = entry
        else:
            self._pending.append(entry)
            self._bytes += entry.weight
            self._bound()
        self._wake.set()

    def dropped(self, entry: Entry) -> None:
        """Drop a chunk from its stream, with all before it."""
        self._trims[entry.attempt.key] = entry.offset + entry.size
        self._wake.set()

    def ended(self, key: AttemptKey) -> None:
        """Drop what is left of an attempt."""
        self._trims.pop(key, None)
        self._progress.pop(key, None)
        self._renewed.pop(key, None)
        self._ended.add(key)
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled, then what is left, once."""
        backoff = Backoff(self._link.clock)
        try:
            while True:
                await self._wake.wait()
                began = self._link.clock.monotonic()
                try:
                    await self._write()
                except RedisAway as error:
                    self._link.failed(PART, error)
                    self._renewed.clear()
                    await backoff.wait()
                else:
                    self._link.well(PART)
                    backoff.reset()
                    await self._link.clock.sleep(max(PACE, self._link.clock.monotonic() - began))
        finally:
            if not self._link.trouble:
                with suppress(RedisAway):
                    await self._write()
            await self._line.close()

    async def _write(self) -> None:
        """Write a batch; raises `RedisAway`, and what it took waits on then."""
        self._wake.clear()
        batch, progress = self._take_batch(), self._progress
        trims, ended, self._progress, self._trims, self._ended = self._trims, self._ended, {}, {}, set()
        commands = self._commands(batch, progress, trims, ended)
        if self._pending:
            self._wake.set()
        try:
            if commands:
                # Written before, though no answer came; or by a server the attempt has moved to.
                await self._line.ask(*commands, tolerated="equal or smaller")
        except BaseException:
            self._pending.extendleft(reversed(batch))
            self._bytes += sum(entry.weight for entry in batch)
            self._bound()
            self._progress = {**progress, **self._progress}
            self._trims = {**trims, **self._trims}
            self._ended |= ended
            self._wake.set()
            raise

    def _take_batch(self) -> list[Entry]:
        batch, size = list[Entry](), 0
        while self._pending and size < BATCH_BYTES:
            entry = self._pending.popleft()
            self._bytes -= entry.weight
            if entry.event is not None:
                batch.append(entry)
                size += entry.size
        return batch

    def _commands(
        self,
        batch: list[Entry],
        progress: dict[AttemptKey, Entry],
        trims: dict[AttemptKey, int],
        ended: set[AttemptKey],
    ) -> list[Command]:
        names = Names(self._link.prefix)
        commands = list[Command]()
        by_attempt: dict[AttemptKey, list[Entry]] = {}
        for entry in batch:
            by_attempt.setdefault(entry.attempt.key, []).append(entry)
        for key, entries in by_attempt.items():
            stream = names.stream(key)
            for record in _records(entries):
                commands.append(("XADD", stream, f"{record.offset + len(record.data)}-0", "r", encode(record)))
            commands += self._renewal(key, stream, names)
        for key in dict.fromkeys((*by_attempt, *progress)):
            bell = self._bell(key, by_attempt.get(key), progress.get(key))
            commands.append(("PUBLISH", names.channel(key[0], key[1]), encode(bell)))
        commands += [("XTRIM", names.stream(key), "MINID", "~", f"{end}-1") for key, end in trims.items()]
        for key in ended:
            commands += [("DEL", names.stream(key)), ("ZREM", names.directory, member(key))]
        return commands

    def _renewal(self, key: AttemptKey, stream: str, names: Names) -> list[Command]:
        now = self._link.clock.monotonic()
        if now < self._renewed.get(key, 0.0):
            return []
        if len(self._renewed) >= RENEWED:
            self._renewed.clear()
        self._renewed[key] = now + RENEWED_EVERY
        return [("PEXPIRE", stream, self._ttl), ("ZADD", names.directory, 0, member(key))]

    def _bell(self, key: AttemptKey, entries: list[Entry] | None, progress: Entry | None) -> Bell:
        told = None
        if progress is not None and progress.event is not None:
            event = progress.event
            told = (event.data["fraction"], event.data["text"], event.time, progress.sequence)
        entry = entries[0] if entries else progress
        assert entry is not None
        kept = entry.attempt
        offset = entries[0].offset if entries else kept.end
        return Bell(self._server, *key, offset, bool(entries), told, about(entry.event or kept.sample, kept.begun))

    def _bound(self) -> None:
        while self._bytes > PENDING_BYTES:
            self._bytes -= self._pending.popleft().weight


def _records(entries: list[Entry]) -> list[Record]:
    """Return chunks as records: those that follow each other in one."""
    records, run = list[Record](), list[Entry]()
    size = 0
    for entry in entries:
        if run and not _follows(run[-1], entry, size):
            records.append(_record(run))
            run, size = [], 0
        run.append(entry)
        size += entry.size
    return [*records, _record(run)]


def _follows(last: Entry, entry: Entry, size: int) -> bool:
    assert last.event is not None
    assert entry.event is not None
    if last.offset + last.size != entry.offset or size + entry.size > RECORD_BYTES:
        return False
    return bool(last.event.data["stream"] == entry.event.data["stream"])


def _record(run: list[Entry]) -> Record:
    first = run[0]
    assert first.event is not None
    data = b"".join(entry.event.data["data"] for entry in run if entry.event is not None)
    stream = first.event.data["stream"]
    return Record(first.offset, stream, first.event.time, first.sequence, data, about(first.event, first.attempt.begun))
