"""What a replica measures that does not keep the series: it reports it, and the one that keeps them adds it up.

There is one report of each replica in the state. Whoever measures adds to it; whoever keeps the series takes it out,
whole, by its revision, so that nothing of it counts twice.
"""

from __future__ import annotations

from typing import Final

import msgspec
from agenthive_server.plugin.api import Conflict, HookState, State

from .blame import Blame
from .buckets import Bucket, Histogram
from .series import FINE, SeriesSet

PREFIX: Final = "report/"
KEPT: Final = 900
"""Seconds of which a report tells at most, should nobody take it."""

_Row = tuple[str, int, float, float, float, float, Histogram | None]
_Whose = tuple[str, str, float, int]


class Report:
    """Takes what a `Sampler` measures; times are rounded to ten seconds."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, int], Bucket] = {}
        self._blame: dict[tuple[str, str, int], float] = {}

    def __bool__(self) -> bool:
        return bool(self._buckets or self._blame)

    def add(self, name: str, time: float, bucket: Bucket) -> None:
        """Add to a series what happened at about `time`."""
        if bucket.count:
            self._buckets.setdefault((name, int(time // FINE.width)), Bucket()).merge(bucket)

    def gauge(self, name: str, time: float, value: float) -> None:
        """Add one reading to a series."""
        self.add(name, time, Bucket(1, value, value, value))

    def count(self, name: str, time: float, number: float) -> None:
        """Add to a series that `number` of something happened."""
        if number:
            self.add(name, time, Bucket(1, number, number, number))

    def blame(self, kind: str, name: str, amount: float, time: float) -> None:
        """Blame a name for some of what was bad at a time."""
        if amount > 0:
            key = (kind, name, int(time // FINE.width))
            self._blame[key] = self._blame.get(key, 0.0) + amount

    def merge(self, other: Report) -> None:
        """Add all that another report holds."""
        for (name, span), bucket in other._buckets.items():
            self.add(name, span * FINE.width, bucket)
        for (kind, name, span), amount in other._blame.items():
            self.blame(kind, name, amount, span * FINE.width)

    def expire(self, now: float) -> None:
        """Forget what nobody has taken for too long."""
        oldest = int((now - KEPT) // FINE.width)
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if key[1] >= oldest}
        self._blame = {key: amount for key, amount in self._blame.items() if key[2] >= oldest}

    def tell(self, series: SeriesSet, blame: Blame) -> None:
        """Add everything to the series of the hive."""
        for (name, span), bucket in self._buckets.items():
            series.add(name, span * FINE.width, bucket)
        for (kind, name, span), amount in self._blame.items():
            blame.add(kind, name, amount, span * FINE.width)

    def pack(self) -> bytes:
        """Return it as bytes."""
        rows: list[_Row] = [
            (name, span, each.count, each.total, each.least, each.most, each.histogram)
            for (name, span), each in self._buckets.items()
        ]
        whose: list[_Whose] = [(kind, name, amount, span) for (kind, name, span), amount in self._blame.items()]
        return msgspec.msgpack.encode((rows, whose))


_decoder: Final = msgspec.msgpack.Decoder(tuple[list[_Row], list[_Whose]])


def unpack(raw: bytes) -> Report:
    """Return what `pack` made; an empty report for what is damaged."""
    report = Report()
    try:
        rows, whose = _decoder.decode(raw)
    except msgspec.MsgspecError:
        return report
    for name, span, count, total, least, most, histogram in rows:
        report.add(name, span * FINE.width, Bucket(count, total, least, most, histogram))
    for kind, name, amount, span in whose:
        report.blame(kind, name, amount, span * FINE.width)
    return report


async def hand_in(state: State, replica: str, report: Report, now: float) -> None:
    """Add to what a replica has reported and nobody took yet."""
    key = PREFIX + replica

    def change(rows: HookState) -> None:
        raw = rows.get(key)
        whole = unpack(raw) if raw is not None else Report()
        whole.merge(report)
        whole.expire(now)
        rows.put(key, whole.pack())

    await state.change(change)


async def take_all(state: State) -> list[Report]:
    """Take out what all replicas have reported. One that is being added to is for the next time."""
    found: list[Report] = []
    for stored in await state.scan(PREFIX):
        try:
            if await state.delete(stored.key, revision=stored.revision):
                found.append(unpack(stored.value))
        except Conflict:
            continue
    return found
