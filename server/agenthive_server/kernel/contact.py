"""The live side of sessions: which stream speaks for which, when it was last heard, and what it was told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from .clock import Clock
from .records import Key
from .session_items import Delivery, Link


class Contact:
    """One session with a live stream. Kept in memory only; a beat costs no commit."""

    __slots__ = ("ends", "epoch", "heard", "key", "link", "opened", "progressed", "renewed", "written")

    def __init__(self, key: Key, epoch: int, link: Link, now: float) -> None:
        self.key = key
        self.epoch = epoch
        self.link = link
        self.opened = now
        self.heard = now
        # When it is to go on in another stream, as `turnover.py` has drawn; None before that.
        self.ends: float | None = None
        # By task: when its lease was last renewed, when it last made progress, when progress was last written.
        self.renewed: dict[Key, float] = {}
        self.progressed: dict[Key, float] = {}
        self.written: dict[Key, float] = {}

    def forget(self, task: Key) -> None:
        """Drop what is known of a task whose lease has ended."""
        self.renewed.pop(task, None)
        self.progressed.pop(task, None)
        self.written.pop(task, None)


class Contacts:
    """The sessions that have a live stream on this server."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._contacts: dict[Key, Contact] = {}
        # Sessions whose stream is about to be here: written as open, but not told anything yet.
        self._expected: Counter[Key] = Counter()

    @contextmanager
    def expecting(self, key: Key) -> Iterator[None]:
        """Let a session count as in contact while its stream is being opened."""
        self._expected[key] += 1
        try:
            yield
        finally:
            self._expected[key] -= 1
            self._expected += Counter()

    def live(self, key: Key) -> bool:
        """Whether a session has a stream here, or will have one in a moment."""
        return key in self._contacts or key in self._expected

    def __len__(self) -> int:
        return len(self._contacts)

    def __iter__(self) -> Iterator[Contact]:
        return iter(list(self._contacts.values()))

    def get(self, key: Key) -> Contact | None:
        """Return the contact of a session, or None."""
        return self._contacts.get(key)

    def add(self, key: Key, epoch: int, link: Link) -> Contact:
        """Register the stream of a session; returns its contact."""
        contact = self._contacts[key] = Contact(key, epoch, link, self._clock.monotonic())
        return contact

    def drop(self, key: Key, epoch: int) -> Contact | None:
        """Forget the stream of a session if it is still this one; returns it, or None."""
        contact = self._contacts.get(key)
        if contact is None or contact.epoch != epoch:
            return None
        del self._contacts[key]
        return contact

    def deliver(self, key: Key, delivery: Delivery) -> bool:
        """Say something on a session; False when it has no stream here (it is then told when it resumes)."""
        contact = self._contacts.get(key)
        if contact is None:
            return False
        contact.link.deliver(delivery)
        return True

    def forgive(self) -> None:
        """Count no silence up to now: the control plane itself was away."""
        now = self._clock.monotonic()
        for contact in self._contacts.values():
            contact.heard = now
            for times in (contact.renewed, contact.progressed):
                for task in times:
                    times[task] = now
