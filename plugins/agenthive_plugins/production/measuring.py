"""Everything that measures, put together: it goes on with what is stored, looks again and again, stores what is new."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from agenthive_server.plugin.api import KernelError, PluginContext

from .blame import Blame
from .calls import Calls
from .config import ProductionConfig
from .keeper import Keeper
from .machine import process_age, process_identity, read_machine
from .outcomes import Outcomes
from .sampler import Sampler
from .series import SeriesSet
from .uptime import LastLook, Uptime


class Measuring:
    """The series, and whoever writes them: `load`, then `turn` again and again, at the end `save`."""

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
        self._process, age = process_identity(), process_age()
        self.started = clock.now() - age if age is not None else None
        """When this process began, if that is known."""

    async def load(self) -> None:
        """Go on with what is stored."""
        last, self.outcomes.sequence = await self._keeper.load()
        self._uptime.begin(last, self._process, self._ctx.clock.now())
        self._sampler.look()

    async def turn(self) -> None:
        """Look, and store what is new."""
        sequence, now = self.outcomes.fold(), self._sampler.look()
        await self._keeper.flush(LastLook(time=now, process=self._process), sequence)

    async def save(self) -> None:
        """Store everything that is new. Where the store is away, what came since the last turn is lost."""
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
