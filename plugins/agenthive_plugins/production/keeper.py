"""Keeps the series over restarts: reads them from the plugin's state, writes what changed since the last time."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec
from agenthive_server.plugin.api import Clock, State, Stored

from . import series_chunks as chunks
from .blame import PREFIX as BLAME
from .blame import Blame, expired_blame
from .series import SeriesSet
from .uptime import KEY as ALIVE
from .uptime import LastLook, unpack_look

SEQUENCE = "sequence"
"""The last event that is in the series."""
_PAGE = 100
_HOUR = 3_600


class Keeper:
    """Series, blame, the last look and the last event counted, in the store."""

    def __init__(self, state: State, series: SeriesSet, blame: Blame, clock: Clock, log: logging.Logger) -> None:
        self._state = state
        self._series = series
        self._blame = blame
        self._clock = clock
        self._log = log
        self._parts: dict[str, int] = {}
        self._hour = 0
        self._hours: set[int] = set()
        """Spans in which something changed since the hours were last written."""
        self.damaged = 0
        """Chunks that could not be read; their time is missing from the series."""

    async def load(self) -> tuple[LastLook | None, int]:
        """Let the series hold what is stored; returns the last look, and the sequence of the last event counted.

        Whoever reads them meanwhile sees what they held before.
        """
        now = self._clock.now()
        series, blame = SeriesSet(now), Blame()
        self._parts, self._hours = {}, set()
        for prefix in (chunks.MINUTES_PREFIX, chunks.HOURS_PREFIX):
            for stored in await self._all(prefix):
                self._read(series, stored)
                # One chunk takes milliseconds; whoever waits gets a turn.
                await self._clock.sleep(0)
        for stored in await self._all(BLAME):
            try:
                blame.unpack(stored.value)
            except ValueError as error:
                self._tell(stored.key, error)
        chunks.rebuild_hours(series, now)
        self._series.become(series)
        self._blame.become(blame)
        self._hour = int(now // _HOUR)
        alive, sequence = await self._state.get(ALIVE), await self._state.get(SEQUENCE)
        return unpack_look(alive.value if alive else None), int(sequence.value) if sequence else 0

    async def _all(self, prefix: str) -> list[Stored]:
        found: list[Stored] = []
        after = ""
        while page := await self._state.scan(prefix, after=after, limit=_PAGE):
            found += page
            after = page[-1].key
            if len(page) < _PAGE:
                break
        return found

    def _read(self, series: SeriesSet, stored: Stored) -> None:
        try:
            chunks.unpack(series, stored.key, stored.value)
        except chunks.Damaged as error:
            self._tell(stored.key, error)
        chunk, _, part = stored.key.rpartition("/")
        self._parts[chunk] = max(self._parts.get(chunk, 0), int(part) + 1)

    def _tell(self, key: str, error: Exception) -> None:
        self.damaged += 1
        self._log.warning("stored series cannot be read and are left out", extra={"key": key, "error": str(error)})

    async def flush(self, look: LastLook, sequence: int, *, all_of_it: bool = False) -> None:
        """Write what has changed. Hours are written when one is over, or when all is asked for."""
        now = look.time
        hour = int(now // _HOUR)
        whole = all_of_it or hour != self._hour
        values = {ALIVE: msgspec.json.encode(look), SEQUENCE: str(sequence).encode()}
        touched = self._series.take_touched()
        self._hours |= touched
        values |= self._packed(chunks.chunks_of(chunks.MINUTES_PREFIX, touched, now))
        if whole:
            values |= self._packed(chunks.chunks_of(chunks.HOURS_PREFIX, self._hours, now))
            self._hours = set()
        values |= self._blame.changed()
        gone = self._stale(values)
        await self._state.put_many(values)
        if hour != self._hour:
            self._hour = hour
            gone += await self._expired(now)
        if gone:
            await self._state.delete_many(gone)

    def _packed(self, names: Iterable[str]) -> dict[str, bytes]:
        packed: dict[str, bytes] = {}
        for chunk in names:
            packed |= chunks.pack(self._series, chunk)
        return packed

    def _stale(self, values: dict[str, bytes]) -> list[str]:
        """Return the keys of parts of chunks that now have fewer parts."""
        counts: dict[str, int] = {}
        for key in values:
            chunk, _, part = key.rpartition("/")
            if key.startswith((chunks.MINUTES_PREFIX, chunks.HOURS_PREFIX)):
                counts[chunk] = max(counts.get(chunk, 0), int(part) + 1)
        gone = [f"{chunk}/{n}" for chunk, count in counts.items() for n in range(count, self._parts.get(chunk, 0))]
        self._parts |= counts
        return gone

    async def _expired(self, now: float) -> list[str]:
        self._blame.expire(now)
        gone: list[str] = []
        for prefix in (chunks.MINUTES_PREFIX, chunks.HOURS_PREFIX):
            gone += chunks.expired([stored.key for stored in await self._all(prefix)], now)
        gone += expired_blame([stored.key for stored in await self._all(BLAME)], now)
        for key in gone:
            self._parts.pop(key.rpartition("/")[0], None)
        return gone[:1_000]
