"""How old a stream may become: load spreads to new replicas only if streams, too, are opened anew now and then."""

from __future__ import annotations

import math

from .clock import Clock
from .contact import Contact, Contacts
from .ports import Chance
from .session_items import Reconnect

TICK = 1.0
"""Seconds between two looks at the age of sessions' streams."""

SPREAD = 0.1
"""Share by which a stream's age is longer or shorter, so that streams that began together do not end together."""


class Turnover:
    """Ends streams at an age: sessions are told to go on elsewhere, which loses nothing; others ask `longest`."""

    def __init__(self, contacts: Contacts, clock: Clock, chance: Chance, age: float) -> None:
        """`age` is in seconds; 0: streams live for ever."""
        self._contacts = contacts
        self._clock = clock
        self._chance = chance
        self._age = age

    def longest(self) -> float | None:
        """Return for how many seconds a stream that begins now may live; None: for ever."""
        return self._age * (1 - SPREAD + 2 * SPREAD * self._chance()) if self._age else None

    async def run(self) -> None:
        """Look at the age of sessions' streams until cancelled."""
        while True:
            self.look()
            await self._clock.sleep(TICK)

    def look(self) -> None:
        """Tell each session whose stream is old enough, once, to go on in another."""
        now = self._clock.monotonic()
        for contact in self._contacts:
            if now >= self._end(contact):
                contact.ends = math.inf
                contact.link.deliver(Reconnect(0.0))

    def _end(self, contact: Contact) -> float:
        if contact.ends is None:
            seconds = self.longest()
            contact.ends = math.inf if seconds is None else contact.opened + seconds
        return contact.ends
