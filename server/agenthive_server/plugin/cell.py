"""One open plugin as the hot path sees it: whose turn it is, what each act costs, and when enough is enough."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import PluginFailed

from .registration import Failure

if TYPE_CHECKING:
    from .walls import Wall

_log = logging.getLogger(__name__)

OPEN: Final = "OPEN"
"""The kind of act that opening and closing a plugin is."""

LOGGED_AT_ONCE: Final = 5
"""Failures that are logged with their traceback within one window; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a plugin may do before it is switched off. Times in seconds."""

    inline: float = 0.05
    """The longest an inline act may take."""
    call: float = 1.0
    """The longest all interceptors of one call may wait, together."""
    failures: int = 5
    """So many failures within `window` switch it off."""
    window: float = 60.0
    tasks: int = 200
    """Tasks it may have at once."""
    block: float = 1.0
    """Blocking the event loop for so long switches it off at once."""


class Running:
    """Whose code the event loop's thread is in. The watchdog reads it from its own thread."""

    __slots__ = ("act",)

    def __init__(self) -> None:
        self.act: Act | None = None


class Act:
    """One act of an open plugin, and what it came to."""

    __slots__ = ("calls", "cell", "failures", "kind", "name", "seconds", "stage")

    def __init__(self, cell: Cell, kind: str, name: str, stage: str = "") -> None:
        self.cell = cell
        self.kind = kind
        self.name = name
        self.stage = stage
        self.calls = 0
        self.failures = 0
        self.seconds = 0.0


class Cell:
    """An open plugin's standing. `live` is false from the moment it is switched off, whoever still holds its acts."""

    __slots__ = (
        "_background", "_clock", "_failed_at", "acts", "bounds", "calls", "closed", "ending", "live", "name", "roots",
        "running", "served", "tasks", "trouble", "waits", "walls",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        failure: Failure,
        running: Running,
        bounds: Bounds,
        clock: Clock,
        trouble: Callable[[Cell, str, str, bool], None],
    ) -> None:
        """`trouble` is told of each failure: the cell, the act, what happened, and whether it is switched off."""
        self.name = name
        self.closed = failure is Failure.CLOSED
        self.running = running
        self.bounds = bounds
        self._clock = clock
        self.trouble = trouble
        self.live = True
        self.acts: list[Act] = []
        # Files and folders its code lies in.
        self.roots: tuple[str, ...] = ()
        # Those its interceptors stand behind, also of older chains that still serve calls.
        self.walls: WeakSet[Wall] = WeakSet()
        # Brief calls of its own services that have begun and not ended yet.
        self.served = 0
        self.tasks: set[asyncio.Task[object]] = set()
        # Calls of its own services.
        self.calls: set[asyncio.Task[object]] = set()
        # Whether what is left of its tasks and calls is being cancelled.
        self.ending = False
        # Waits of its interceptors that end when it is switched off.
        self.waits: set[asyncio.Timeout] = set()
        self._background: Act | None = None
        self._failed_at: deque[float] = deque(maxlen=max(bounds.failures, LOGGED_AT_ONCE))

    def act(self, kind: str, name: str, stage: str = "") -> Act:
        """Add an act."""
        made = Act(self, kind, name, stage)
        self.acts.append(made)
        return made

    def background(self) -> Act:
        """Return the act under which tasks run that it starts while it opens, and those it hands over."""
        if self._background is None:
            self._background = self.act("TASK", "background")
        return self._background

    def refusal(self) -> PluginFailed:
        """Return what a caller is told when this plugin should have looked at its call and could not."""
        return PluginFailed(
            f"plugin {self.name}, without which nothing passes, could not do its part", metadata={"plugin": self.name}
        )

    def failed(self, act: Act, error: BaseException) -> None:
        """Count an act that raised what it should not; too many of them switch an OPEN plugin off."""
        self.count(act, f"{type(error).__name__} at {_place(error.__traceback__, self.roots)}", error)

    def overran(self, act: Act, seconds: float) -> None:
        """Count an act that took too long."""
        self.count(act, f"took {seconds * 1e3:.0f} ms")

    def count(self, act: Act, what: str, error: BaseException | None = None) -> None:
        """Count a failure."""
        act.failures += 1
        now = self._clock.monotonic()
        recent = [at for at in self._failed_at if now - at < self.bounds.window]
        self._failed_at.append(now)
        if len(recent) < LOGGED_AT_ONCE:
            _log.error("plugin %s: %s failed: %s", self.name, act.name, what, exc_info=error)
        enough = len(recent) + 1 >= self.bounds.failures
        self.tell(act.name, what, off=enough)

    def tell(self, act: str, what: str, *, off: bool) -> None:
        """Tell the host; with `off` an OPEN plugin is out of every call from now on."""
        off = off and not self.closed and self.live
        if off:
            self.end()
        self.trouble(self, act, what, off)

    @property
    def in_flight(self) -> int:
        """Brief calls in which it takes part and that have not ended yet; others are not waited for.

        Counted in plain numbers, because every call changes them twice.
        """
        return self.served + sum(wall.calls for wall in self.walls)

    @property
    def recent_failures(self) -> int:
        """Failures within the window; as many as switch it off at most."""
        now = self._clock.monotonic()
        return sum(1 for at in self._failed_at if now - at < self.bounds.window)

    def end(self) -> None:
        """Take it out of every call, also of those that wait for it."""
        self.live = False
        for wait in tuple(self.waits):
            if not wait.expired():
                wait.reschedule(0.0)


def _place(trace: TracebackType | None, roots: tuple[str, ...]) -> str:
    """Return file and line of the innermost frame in the plugin's own code, else of the innermost one."""
    place = own = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
        if code.co_filename.startswith(roots):
            own = place
        trace = trace.tb_next
    return own or place
