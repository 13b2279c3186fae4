"""Everything that measures, put together: it goes on with what is stored, looks again and again, stores what is new.

One replica keeps the series; the others report to it what they measure, and read them where they are asked.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

from agenthive_server.plugin.api import KernelError, PluginContext

from .blame import Blame
from .calls import Calls
from .config import ProductionConfig
from .keeper import Keeper
from .machine import process_age, process_identity, read_machine
from .outcomes import Outcomes
from .report import Report, hand_in, take_all
from .sampler import Sampler
from .series import SeriesSet
from .uptime import LastLook, Uptime

_LATE = 3.0
_PATIENCE = 2.0
"""Seconds a caller waits where nobody has looked for so many intervals."""


class Measuring:
    """The series, and whoever writes them: `load`, then `turn` again and again, at the end `save` or `hand_over`."""

    def __init__(self, ctx: PluginContext[ProductionConfig]) -> None:
        self._ctx = ctx
        clock = ctx.clock
        self.series = SeriesSet(clock.now())
        self.blame = Blame()
        self.calls = Calls(clock.monotonic)
        self.outcomes = Outcomes(self.series, self.blame, 0)
        self._uptime = Uptime(self.series, ctx.config.sample_interval_seconds)
        self._sampler = Sampler(
            self.series,
            self.blame,
            self.calls,
            self._uptime,
            vitals=ctx.vitals,
            machine=partial(read_machine, ctx.data_dir),
        )
        self._keeper = Keeper(ctx.state, self.series, self.blame, clock, ctx.log)
        # Whether this replica keeps the series, and whether it has some of them to store.
        self.keeping = self._unsaved = False
        self._here_since = clock.now()
        self._replica = ctx.new_id()
        self._report = Report()
        self._reading = asyncio.Lock()
        self._kept = asyncio.Event()
        self._fresh_until = 0.0
        self._process, age = process_identity(), process_age()
        self.started = clock.now() - age if age is not None else None
        """When this process began, if that is known."""

    async def load(self) -> None:
        """Keep the series from now on, from what is stored."""
        async with self._reading:
            last, sequence = await self._keeper.load()
            self.outcomes.begin(sequence)
            self._uptime.begin(last, self._process, self._ctx.clock.now(), self._here_since)
            self.keeping = self._unsaved = True
            self._sampler.look()
            self._kept.set()

    async def turn(self) -> None:
        """Look, add what other replicas report, and store what is new."""
        sequence, now = self.outcomes.fold(), self._sampler.look()
        for report in await take_all(self._ctx.state):
            report.tell(self.series, self.blame)
        await self._keeper.flush(LastLook(time=now, process=self._process), sequence)

    async def report(self) -> None:
        """Report what this replica measures, unless it keeps the series itself."""
        if self.keeping:
            return
        now = self._sampler.look(self._report)
        self._report.expire(now)
        report, self._report = self._report, Report()
        try:
            await hand_in(self._ctx.state, self._replica, report, now)
        except KernelError:
            # For the next time.
            self._report.merge(report)
            raise

    async def fresh(self) -> None:
        """Know what another replica has stored of the series lately, where this one does not keep them."""
        clock, every = self._ctx.clock, self._ctx.config.sample_interval_seconds
        async with self._reading:
            if self.keeping or clock.monotonic() < self._fresh_until:
                return
            last, _ = await self._keeper.load()
            self._fresh_until = clock.monotonic() + every
        if last is None or clock.now() - last.time > _LATE * every:
            # Nobody keeps them: this replica is about to, or another one; what was down meanwhile is known then.
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self._kept.wait()

    async def hand_over(self) -> None:
        """Store everything that is new, for whichever replica keeps the series from now on."""
        self.keeping = False
        self._kept.clear()
        await self._save()
        self._unsaved = False

    async def save(self) -> None:
        """Store everything that is new. Where the store is away, what came since the last turn is lost."""
        if self._unsaved:
            await self._save()

    async def _save(self) -> None:
        sequence, now = self.outcomes.fold(), self._sampler.look()
        # When only the plugin is switched off, nothing is known of the time until it comes back.
        switched_off = not self._ctx.vitals().draining
        look = LastLook(time=now, process=self._process, switched_off=switched_off)
        with suppress(KernelError):
            await self._keeper.flush(look, sequence, all_of_it=True)

    async def missed(self, first: int, last: int) -> None:
        """Take note of events that were removed before they were counted."""
        self.outcomes.sequence = max(self.outcomes.sequence, last)
        self._ctx.log.warning("events were compacted before they were counted", extra={"first": first, "last": last})

    def slow_from(self, milliseconds: float) -> None:
        """Blame the methods of calls that take longer than this."""
        self._sampler.slow = milliseconds
