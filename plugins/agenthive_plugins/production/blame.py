"""Who did it: for each span, the few names behind what was bad in it.

Kept like the series, ten minutes for a day and hours for 40 days, and only where something was. Of each kind at most
`NAMES` names a span, the least of which makes room for a new one and leaves it its count: the space-saving sketch of
Metwally, Agrawal and El Abbadi (ICDT 2005), which never underrates a name that matters.
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from .series import HOURS, Span

NAMES: Final = 8
TENS: Final = Span(600, 86_400)
PREFIX: Final = "blame/"
CHUNK: Final = 86_400

Found = dict[str, dict[str, float]]
"""By kind (`slow`, `fault`, `task`), name and amount."""


class Blame:
    """Names and amounts by span and kind."""

    def __init__(self) -> None:
        self._spans: dict[int, dict[int, Found]] = {TENS.width: {}, HOURS.width: {}}
        self._changed: set[int] = set()

    def add(self, kind: str, name: str, amount: float, time: float) -> None:
        """Blame a name for some of what was bad at a time."""
        if amount <= 0:
            return
        for width, spans in self._spans.items():
            names = spans.setdefault(int(time // width), {}).setdefault(kind, {})
            if name not in names and len(names) >= NAMES:
                least = min(names, key=lambda known: names[known])
                names[name] = names.pop(least)
            names[name] = names.get(name, 0.0) + amount
        self._changed.add(int(time // CHUNK))

    def become(self, other: Blame) -> None:
        """Hold what another holds, which is not used any more."""
        self._spans, self._changed = other._spans, other._changed

    def worst(self, kind: str, start: float, end: float, now: float, *, most: int = 10) -> list[tuple[str, float]]:
        """Return the worst names of a window, worst first. Spans that lie partly outside count whole."""
        sums: dict[str, float] = defaultdict(float)
        fine_from = int((now - TENS.kept) // HOURS.width + 1) * HOURS.width
        for found in self._between(HOURS.width, start, min(end, fine_from)):
            _sum_up(sums, found.get(kind, {}))
        for found in self._between(TENS.width, max(start, fine_from), end):
            _sum_up(sums, found.get(kind, {}))
        return sorted(sums.items(), key=lambda pair: -pair[1])[:most]

    def _between(self, width: int, start: float, end: float) -> Iterator[Found]:
        if start < end:
            for number, found in self._spans[width].items():
                if start < (number + 1) * width and number * width < end:
                    yield found

    def expire(self, now: float) -> None:
        """Forget what is too long ago."""
        for span in (TENS, HOURS):
            spans = self._spans[span.width]
            for number in [n for n in spans if (n + 1) * span.width < now - span.kept]:
                del spans[number]

    def changed(self) -> dict[str, bytes]:
        """Return the chunks that changed since the last time, by key: one for each day."""
        chunks = {f"{PREFIX}{day:06d}": self._pack(day) for day in sorted(self._changed)}
        self._changed.clear()
        return chunks

    def _pack(self, day: int) -> bytes:
        held = {
            str(width): {str(n): found for n, found in spans.items() if n * width // CHUNK == day}
            for width, spans in self._spans.items()
        }
        return zlib.compress(json.dumps(held, separators=(",", ":")).encode(), 6)

    def unpack(self, raw: bytes) -> None:
        """Put back what a chunk holds. Raises `ValueError` for what is none."""
        try:
            held = json.loads(zlib.decompress(raw))
            for width, spans in held.items():
                self._spans[int(width)].update({int(number): dict(found) for number, found in spans.items()})
        except (zlib.error, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no chunk of blame: {error}") from None


def _sum_up(sums: dict[str, float], amounts: dict[str, float]) -> None:
    for name, amount in amounts.items():
        sums[name] += amount


def expired_blame(keys: list[str], now: float) -> list[str]:
    """Return the keys of chunks whose time is over."""
    return [key for key in keys if (int(key.removeprefix(PREFIX)) + 1) * CHUNK < now - HOURS.kept]
