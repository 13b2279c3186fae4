"""Moves a hive: copied while it may be served, then, without a server, caught up, compared, and handed over.

By the order of the end there is never more than one hive that can be served: the source says durably that it was moved,
then the target becomes one. Whatever ends in between (this program, the database), the next run goes on from there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import Refused, StoreUnavailable
from agenthive_server.kernel.ports import StoreUnusable
from agenthive_server.storage.backup.place import failures
from agenthive_server.storage.postgres.failures import FAILURES, code, lost, passing, sentence

from .copying import copy_all
from .progress import Progress
from .source import Mark, Source, Standing
from .target import Found, Target
from .verify import Sum, verify

T = TypeVar("T")

PATIENCE: Final = 60.0
"""Seconds for which a database that was lost is waited for."""

_NO_ROOM: Final = "53"
"""The class of errors for which resources are short: disk, memory, connections."""

LOOKED_EVERY: Final = 0.25
REST: Final = 5.0
"""Seconds between looks whether the server has stopped, and between copies of what it has changed meanwhile."""


class StillServed(Refused):
    """All is copied, but a server writes to the source: the move cannot end."""


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A hive that was moved, or was before; `sums` are of what was compared."""

    target: str
    standing: Standing
    sums: tuple[Sum, ...] = ()
    written: int = 0
    before: bool = False


class Move:
    """One hive and where it goes. Everything raises `KernelError`, or `StoreUnusable` where the target is not fit."""

    def __init__(self, path: Path, url: str, clock: Clock, say: Callable[[str], None]) -> None:
        """`say` takes a line for people about once a second."""
        self._path = path
        self._target = Target(url, clock)
        self._clock = clock
        self._progress = Progress(clock, say)
        self._said_waiting = False

    async def run(self, *, wait: bool = False) -> Moved:
        """Move it. While a server runs on it, all is copied, then `StillServed` is raised; with `wait`, what changes is
        copied until the server stops.

        Cancelled, or killed, it is gone on with by the next run.
        """
        return await self._with_source(lambda source: self._lasting(lambda: self._run(source, wait)))

    async def compare(self) -> Moved:
        """Compare the hive with what was moved, whole; raises `verify.Differs`. No server may run on either."""
        return await self._with_source(lambda source: self._lasting(lambda: self._compare(source)))

    async def take_back(self) -> Moved:
        """Let the source be served again and the target not; a later move goes on from what is there.

        Raises `Refused` when the target has been served since, or the source was not moved there.
        """
        return await self._with_source(lambda source: self._lasting(lambda: self._take_back(source)))

    async def _with_source(self, work: Callable[[Source], Awaitable[T]]) -> T:
        with failures(str(self._path)), closing(Source(self._path)) as source:
            try:
                return await work(source)
            finally:
                self._target.hang_up()

    async def _lasting(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do work on the target that can be done again, and do it again when the connection was lost."""
        try:
            await self._target.connect()
        except FAILURES as error:
            raise self._failure(error) from error
        while True:
            try:
                return await work()
            except FAILURES as error:
                if not passing(error):
                    raise self._failure(error) from error
                self._progress.say(f"the database was lost ({sentence(error)}); waiting for it")
            await self._connect_again()

    async def _connect_again(self) -> None:
        end = self._clock.monotonic() + PATIENCE
        while True:
            try:
                return await self._target.connect()
            except (*FAILURES, StoreUnusable, Refused) as error:
                if self._clock.monotonic() >= end:
                    why = sentence(error) if isinstance(error, FAILURES) else str(error)
                    raise StoreUnavailable(f"{self._target.name} was lost: {why}") from error
            await self._clock.sleep(LOOKED_EVERY)

    def _failure(self, error: BaseException) -> Exception:
        """Return what tells of a failure: of something that passes, as a full disk, or of what has to be set right."""
        text = f"{self._target.name}: {sentence(error)}"
        passes = lost(error) or code(error)[:2] == _NO_ROOM
        return StoreUnavailable(text) if passes else StoreUnusable(text)

    # What is done

    async def _run(self, source: Source, wait: bool) -> Moved:
        found = await self._begin(source)
        if found.mark is None:
            return Moved(target=self._target.name, standing=source.standing(), before=True)
        while True:
            # Claimed before it is copied: what is copied then is all there is.
            claimed = source.claim()
            await copy_all(source, self._target, self._progress)
            if claimed:
                return await self._finish(source, found.mark)
            if not wait:
                raise StillServed(
                    f"all of {source.path} was copied, but a server runs on it: stop the server and run this again to"
                    " finish, or run it with --wait and stop the server then"
                )
            await self._rest(source)

    async def _begin(self, source: Source) -> Found:
        standing, mark = source.standing(), source.mark()
        found = await self._target.look()
        elsewhere = found.log_id != standing.log_id or (found.mark is not None and found.mark != mark)
        if mark is not None and elsewhere:
            raise Refused(f"{source.path} was moved to {mark.target} before; --undo lets it be served and moved again")
        if found.standing is not None and found.log_id == standing.log_id and mark is None:
            raise Refused(
                f"{self._target.name} holds this hive whole, though {source.path} does not say that it was moved; make"
                " sure which of the two is served, and move into an empty database or schema"
            )
        return await self._target.begin(standing.log_id)

    async def _rest(self, source: Source) -> None:
        if not self._said_waiting:
            self._said_waiting = True
            self._progress.say("all is copied; stop the server now, and the move ends by itself")
        end = self._clock.monotonic() + REST
        while self._clock.monotonic() < end and not source.claim():
            await self._clock.sleep(LOOKED_EVERY)

    async def _finish(self, source: Source, mark: Mark) -> Moved:
        standing = source.standing()
        sums = await verify(source, self._target, standing, self._progress)
        source.set_mark(mark)
        await self._target.finish(standing)
        return Moved(target=self._target.name, standing=standing, sums=tuple(sums), written=self._progress.written)

    async def _compare(self, source: Source) -> Moved:
        _require_claimed(source)
        standing = source.standing()
        found = await self._target.look()
        if found.log_id != standing.log_id:
            raise Refused(f"{self._target.name} holds nothing of this hive")
        sums = await verify(source, self._target, standing, self._progress)
        if found.standing is not None and found.standing != standing:
            raise Refused(f"{self._target.name} has been served since: it is at event {found.standing.head}")
        return Moved(target=self._target.name, standing=standing, sums=tuple(sums))

    async def _take_back(self, source: Source) -> Moved:
        _require_claimed(source)
        standing = source.standing()
        found = await self._target.look()
        if found.log_id != standing.log_id:
            raise Refused(f"{source.path} was not moved to {self._target.name}")
        await self._target.take_back(standing)
        source.remove_mark()
        return Moved(target=self._target.name, standing=standing)


def forget_move(path: Path) -> Mark:
    """Let a hive be served again that was moved, and return where to; what became of that is not looked at.

    Raises `Refused` when it was not moved.
    """
    with failures(str(path)), closing(Source(path)) as source:
        _require_claimed(source)
        mark = source.mark()
        if mark is None:
            raise Refused(f"{path} was not moved; a server can be started on it")
        source.remove_mark()
        return mark


def _require_claimed(source: Source) -> None:
    if not source.claim():
        raise Refused(f"a server runs on {source.path}; stop it first")
