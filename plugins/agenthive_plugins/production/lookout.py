"""The lookout: hands every watched metric to its detector, minute by minute, and keeps what they find.

A detector's baseline is stored with the minute it had come to. After a crash the minutes since then, which are in the
series, are looked at again; an anomaly's id follows from its metric and its begin, so that none is told twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final

import msgspec
from agenthive_server.plugin.api import Clock, State

from .anomalies import WATCHED, Anomaly, Detector, Finding, Watched
from .baseline import Baseline
from .ledger import Family, Ledger
from .metrics import value_of
from .series import MINUTES, SeriesSet

ANOMALIES: Final = Family("anomaly/", Anomaly, "anomaly")
KEPT: Final = 500
SAVE_EVERY: Final = 3_600.0
CATCH_UP: Final = 86_400.0
"""How far back it looks after it was away."""
_AT_A_TIME: Final = 50
_PRESENT: Final = 0.9
"""The share of a minute that must have been measured for it to count."""
_PREFIX: Final = "baseline/"


@dataclass(kw_only=True)
class _Kept:
    """What is stored of a detector."""

    position: float
    baseline: Baseline
    above: float = 0.0
    below: float = 0.0
    scores: list[float] = field(default_factory=list)
    unusual: list[float] = field(default_factory=list)
    worst: tuple[float, float, float] | None = None
    started: float = 0.0
    shifted: bool = False
    away: int = 0


_STATE: Final = ("baseline", "above", "below", "scores", "unusual", "worst", "started", "shifted", "away")


class Lookout:
    """Detectors of all watched metrics."""

    def __init__(
        self,
        ledger: Ledger,
        state: State,
        series: SeriesSet,
        clock: Clock,
        log: logging.Logger,
        *,
        sensitivity: float,
        watched: Mapping[str, Watched] = WATCHED,
    ) -> None:
        self._ledger = ledger
        self._state = state
        self._series = series
        self._clock = clock
        self._log = log
        self._detectors = {name: Detector(what, sensitivity) for name, what in watched.items()}
        self._positions = dict.fromkeys(watched, 0.0)
        self._saved = clock.now()

    async def load(self) -> None:
        """Go on with the baselines that are stored."""
        now = self._clock.now()
        for name, detector in self._detectors.items():
            self._positions[name] = now // MINUTES.width * MINUTES.width
            stored = await self._state.get(_PREFIX + name)
            if stored is None:
                continue
            try:
                kept = msgspec.json.decode(stored.value, type=_Kept)
            except msgspec.MsgspecError as error:
                self._log.warning(
                    "baseline of %s cannot be read; it is learned anew", name, extra={"error": str(error)}
                )
                continue
            self._positions[name] = max(kept.position, now - CATCH_UP)
            for attribute in _STATE:
                setattr(detector, attribute, getattr(kept, attribute))

    async def save(self) -> None:
        """Store the baselines."""
        values = {}
        for name, detector in self._detectors.items():
            state = {attribute: getattr(detector, attribute) for attribute in _STATE}
            values[_PREFIX + name] = msgspec.json.encode(_Kept(position=self._positions[name], **state))
        await self._state.put_many(values)
        self._saved = self._clock.now()

    async def turn(self) -> list[Anomaly]:
        """Look at the minutes that are over by now; returns the anomalies that have not ended."""
        now = self._clock.now()
        # A minute later than it is over: until then something of it may still come.
        end = now // MINUTES.width * MINUTES.width - MINUTES.width
        for name, detector in self._detectors.items():
            await self._catch_up(name, detector, end, now)
        if now - self._saved >= SAVE_EVERY:
            await self.save()
            await self._prune()
        return await self.open()

    async def _catch_up(self, name: str, detector: Detector, end: float, now: float) -> None:
        position = max(self._positions[name], end - CATCH_UP)
        looked = 0
        while position + MINUTES.width <= end:
            value = self._value(name, position, now)
            finding = None if value is None else detector.update(position, value)
            position += MINUTES.width
            self._positions[name] = position
            if finding is not None:
                await self._keep(name, finding)
            looked += 1
            if looked % _AT_A_TIME == 0:
                await self._clock.sleep(0)

    def _value(self, name: str, start: float, now: float) -> float | None:
        """Return a metric in a minute; None where nothing was measured, also because nobody was there all the time."""
        if self._series.window("up_seconds", start, start + MINUTES.width, now).total < _PRESENT * MINUTES.width:
            return None
        return value_of(self._series, name, start, start + MINUTES.width, now)

    async def _keep(self, name: str, finding: Finding) -> None:
        anomaly = Anomaly(
            id=_id(name, finding.start),
            metric=name,
            kind=finding.kind,
            start=finding.start,
            value=finding.value,
            expected=finding.expected,
            score=finding.score,
            end=finding.end,
        )
        await self._ledger.change(lambda rows: rows.put(ANOMALIES, anomaly.id, anomaly))

    async def open(self) -> list[Anomaly]:
        """Return the anomalies that have not ended."""
        found = []
        for name, detector in self._detectors.items():
            if detector.open:
                anomaly = await self._ledger.find(ANOMALIES, _id(name, detector.started))
                if anomaly is not None:
                    found.append(anomaly)
        return found

    async def _prune(self) -> None:
        """Forget all but the last ones; one that no detector goes on with has ended."""
        everything = await self._ledger.all(ANOMALIES)
        still = {anomaly.id for anomaly in await self.open()}
        for anomaly in everything[:KEPT]:
            if not anomaly.end and anomaly.id not in still:
                ended = replace(anomaly, end=self._clock.now())
                await self._ledger.change(lambda rows, ended=ended: rows.put(ANOMALIES, ended.id, ended))  # type: ignore[misc]  # bound now
        gone = [ANOMALIES.key(anomaly.id) for anomaly in everything[KEPT:]]
        if gone:
            await self._state.delete_many(gone[:1_000])


def _id(metric: str, start: float) -> str:
    """Return the id of an anomaly: it follows from metric and begin, and sorts before those of all earlier ones."""
    left = (1 << 44) - int(start * 1e3)
    return f"{left:011x}-{blake2b(metric.encode(), digest_size=4).hexdigest()}"
