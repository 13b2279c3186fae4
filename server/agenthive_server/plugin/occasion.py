"""On what occasion a plugin acts: the event its handler was called for, from which request ids are made.

An event is handled at least once. What a handler asks for a second time, because it or the server was stopped in
between, carries the same request id as the first time, and so has one effect: the id is made of the event's sequence,
of what is asked for, and of how often the same was asked for on this occasion. The order of different calls plays no
part, because a handler that looks at the world may find it changed when it runs again.
"""

from __future__ import annotations

from collections import Counter
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any, Final

import msgspec

_pack = msgspec.msgpack.Encoder().encode


class Occasion:
    """One event, and the calls made because of it so far."""

    __slots__ = ("_asked", "_token", "sequence")

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self._asked: Counter[str] | None = None

    def __enter__(self) -> None:
        """Let what is called from now on, and the tasks made there, act because of this event."""
        self._token = enter(self)

    def __exit__(self, *_: object) -> None:
        """Let what is called from now on act as before."""
        leave(self._token)

    def request_id(self, digest: str) -> str:
        """Return the request id of the next call with this digest."""
        if self._asked is None:
            self._asked = Counter()
        self._asked[digest] += 1
        return f"{self.sequence}-{digest}-{self._asked[digest]}"


_present: ContextVar[Occasion | None] = ContextVar("agenthive_plugin_occasion", default=None)


enter: Final = _present.set
"""Let what is called from now on act on an occasion, until `leave` is given what this returns; `with` does the same."""

leave: Final = _present.reset


def present() -> Occasion | None:
    """Return the occasion of the handler that runs, None outside of handlers."""
    return _present.get()


def digest_of(*asked: Any) -> str:
    """Return the hash of what is asked for; raises TypeError for what is no plain record."""
    return blake2b(_pack(asked), digest_size=8).hexdigest()
