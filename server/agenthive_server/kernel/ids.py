"""Ids that were never used before."""

from __future__ import annotations

import os

from .clock import Clock

_BYTES = 10
_AT_ONCE = 64


class Ids:
    """Makes ids of 48 bits of time and 80 of chance, as in UUID version 7 (RFC 9562).

    Ids made one after the other lie side by side in the database's indexes, which makes writing them cheaper.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._chance = ""
        self._used = 0

    def __call__(self) -> str:
        """Return a new id of 32 hexadecimal digits."""
        used = self._used
        if used == len(self._chance):
            # Asking the system costs more than the rest; a process that is forked makes an object of its own.
            self._chance, used = os.urandom(_BYTES * _AT_ONCE).hex(), 0
        self._used = used + 2 * _BYTES
        return f"{int(self._clock.now() * 1000) & 0xFFFFFFFFFFFF:012x}{self._chance[used : self._used]}"
