"""A thread that notices when the event loop stands still, and names the plugin whose code it stands in."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType
from typing import Final

from agenthive_server.kernel.clock import Clock

from .cell import Cell, Running

LOOKS: Final = 10
"""How many times within the span that counts as a block the thread looks, once the loop is late."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Block:
    """The event loop stood still: in which plugin (None: in none), in which act and line, and for how long."""

    cell: Cell | None
    act: str
    place: str
    seconds: float


class Watchdog:
    """Asks the event loop for an answer now and then. Runs in a thread of its own from `start` to `stop`."""

    def __init__(
        self,
        running: Running,
        cells: Callable[[], Iterable[Cell]],
        blocked: Callable[[Block], None],
        clock: Clock,
        *,
        seconds: float = 1.0,
    ) -> None:
        """`blocked` is told of a block of at least `seconds`, on the event loop, once it goes on."""
        self._running = running
        self._cells = cells
        self._blocked = blocked
        self._clock = clock
        self._seconds = seconds
        self._stop = threading.Event()
        self._answer = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0

    def start(self) -> None:
        """Watch the running event loop."""
        if self._thread is not None or self._seconds <= 0:
            return
        self._stop.clear()
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="plugin-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.set()
            self._answer.set()
            thread.join(timeout=self._seconds)

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds / 2):
            self._answer.clear()
            asked = self._clock.monotonic()
            if not self._call(self._answer.set) or self._answer.wait(self._seconds / 2):
                continue
            self._follow(asked)

    def _follow(self, asked: float) -> None:
        """Look where the loop is until it answers. Where it was most often is to blame."""
        seen: dict[tuple[Cell | None, str, str], int] = {}
        told = False
        while not self._answer.wait(self._seconds / LOOKS) and not self._stop.is_set():
            found = self._look()
            if found is not None:
                seen[found] = seen.get(found, 0) + 1
            late = self._clock.monotonic() - asked
            if late >= self._seconds and not told and seen:
                told = True
                cell, act, place = max(seen, key=lambda each: seen[each])
                whose = f"plugin {cell.name}, {act}" if cell else "no plugin's code"
                _log.critical("the event loop stands still for %.1f s in %s at %s", late, whose, place)
        late = self._clock.monotonic() - asked
        if late >= self._seconds and seen and not self._stop.is_set():
            cell, act, place = max(seen, key=lambda each: seen[each])
            self._call(self._blocked, Block(cell, act, place, late))

    def _look(self) -> tuple[Cell | None, str, str] | None:
        """Return whose code the loop's thread is in, the act, and the line."""
        frame = sys._current_frames().get(self._loop_thread)
        if frame is None:
            return None
        act = self._running.act
        if act is not None:
            return act.cell, act.name, _place(frame, act.cell.roots)
        cells = tuple(self._cells())
        inner: FrameType | None = frame
        while inner is not None:
            file = inner.f_code.co_filename
            for cell in cells:
                if file.startswith(cell.roots):
                    return cell, inner.f_code.co_name, _place(frame, cell.roots)
            inner = inner.f_back
        return None, "", _place(frame, ())

    def _call(self, what: Callable[..., object], *arguments: object) -> bool:
        try:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:
            self._stop.set()  # the loop is closed
            return False
        return True


def _place(frame: FrameType, roots: tuple[str, ...]) -> str:
    """Return file and line of the innermost frame below `roots`, else of the innermost."""
    inner: FrameType | None = frame
    while inner is not None:
        if roots and inner.f_code.co_filename.startswith(roots):
            return f"{inner.f_code.co_filename.rpartition('/')[2]}:{inner.f_lineno}"
        inner = inner.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
