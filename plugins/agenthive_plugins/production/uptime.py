"""Whether the server was up, second by second: what availability is made of.

Up is the time in which the server looked at itself every few seconds and its store was usable. Down is everything else
that is known: a store that cannot be reached, a process that did not get round to anything, and the time between the
last look of one process and the first of the next. Where only this plugin was off nothing is known, and nothing counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from agenthive_server.plugin.api import ComponentReport, Status

from .series import SeriesSet

KEY = "alive"
_LATE = 3.0
_LATE_SECONDS = 2.0
"""A look that comes this many times later than it should was kept from coming; by a second any machine may be late."""


@dataclass(frozen=True, kw_only=True)
class LastLook:
    """What is stored of the last look: when it was, by which process, and whether the plugin was switched off then."""

    time: float
    process: str = ""
    switched_off: bool = False


def unpack_look(raw: bytes | None) -> LastLook | None:
    """Return what was stored; None for nothing, or what cannot be read."""
    try:
        return None if raw is None else msgspec.json.decode(raw, type=LastLook)
    except msgspec.MsgspecError:
        return None


def usable(components: tuple[ComponentReport, ...]) -> bool:
    """Whether the store can be reached: without it no call is answered."""
    return all(each.status is not Status.DOWN for each in components if each.name == "store")


class Uptime:
    """Adds up and down time to the series, look by look."""

    def __init__(self, series: SeriesSet, every: float) -> None:
        self._series = series
        self._late = max(_LATE * every, _LATE_SECONDS)
        self._last: float | None = None

    def begin(self, last: LastLook | None, process: str, now: float, here_since: float | None = None) -> None:
        """Take in how it was left. Only another process than this one leaves time in which the server was down.

        `here_since`: from when on this process was there, beside the one that looked last; from now on, if not given.
        """
        self._last = now
        if last is None or last.time >= now:
            return
        began = now if here_since is None else here_since
        if last.time < began and not last.switched_off and (not process or process != last.process):
            self._series.spread("down_seconds", last.time, began)
        if began < now:
            self._series.spread("up_seconds", max(last.time, began), now)

    def look(self, now: float, *, up: bool) -> None:
        """Add the time since the last look."""
        last, self._last = self._last, now
        if last is None or now <= last:
            return
        if now - last > self._late:
            self._series.spread("down_seconds", last, now)
        else:
            self._series.spread("up_seconds" if up else "down_seconds", last, now)
